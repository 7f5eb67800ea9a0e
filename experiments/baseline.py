"""The paper's four baselines: `baseline.py:132m`, `:368m`, `:1.3b`, `:7b`.

    retro train --config=experiments/baseline.py:132m --workdir=/mnt/BUCKET/172m --distributed

The same decoder, text, order and number of steps as the RETRO of the same place in experiments/retro.py,
without encoder and cross-attention. Train it in that RETRO's working directory, whose shards it reads; then

    retro evaluate --config=experiments/retro.py:172m --workdir=/mnt/BUCKET/172m \\
        --config.methods="('retro', 'language_model')"

compares the two. Hardware and hours: those of the RETRO, less what retrieval adds (`retro sizes`: 43, 23, 16
and 9 %). Expected bits per byte on C4, the paper's table 14: 0.98, 0.92, 0.84, 0.78. None has been run.
"""

from retro_jax.config import experiment_beside

SIZES = {"132m": "172m", "368m": "425m", "1.3b": "1.5b", "7b": "7.5b"}


def get_config(size: str = "132m"):
    if size not in SIZES:
        raise ValueError(f"experiments/baseline.py:{size}: choose one of {', '.join(SIZES)}")
    config = experiment_beside(__file__, "retro").get_config(SIZES[size])
    config.name = f"baseline-{size}"
    config.methods = ("language_model",)
    return config
