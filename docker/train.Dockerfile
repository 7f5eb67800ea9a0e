# Training and evaluation on accelerators: of NVIDIA (cuda, the default), or on a TPU VM (tpu).
#
#   docker build -f docker/train.Dockerfile --build-arg ACCELERATOR=cuda -t retro-train .
#   docker run --gpus=all -v "$PWD/runs:/data/runs" retro-train run --config=quickstart --workdir=runs/mine
#   docker build -f docker/train.Dockerfile --build-arg ACCELERATOR=tpu -t retro-train .
#   docker run --privileged --network=host -v /mnt/BUCKET:/mnt/BUCKET retro-train train --config=retro:172m \
#       --workdir=/mnt/BUCKET/172m --distributed
FROM python:3.11-slim
ARG ACCELERATOR=cuda
WORKDIR /src
COPY setup.py README.md ./
COPY retro_jax retro_jax
COPY experiments experiments
RUN pip install --no-cache-dir ".[report,${ACCELERATOR}]"
WORKDIR /data
ENTRYPOINT ["retro"]
