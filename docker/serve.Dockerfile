# A server of one trained working directory, on the CPU.
#
#   docker build -f docker/serve.Dockerfile -t retro-serve .
#   docker run -p 8000:8000 -e RETRO_API_KEY=... -v "$PWD/runs/quickstart:/run" retro-serve
#
# More flags follow the image's name: `retro-serve --rows=16 --method=retro,rag`.
FROM python:3.11-slim
WORKDIR /src
COPY setup.py README.md ./
COPY retro_jax retro_jax
COPY experiments experiments
RUN pip install --no-cache-dir '.[serve]' && useradd --create-home retro
USER retro
WORKDIR /home/retro
EXPOSE 8000
HEALTHCHECK --start-period=300s CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz')"
ENTRYPOINT ["retro", "serve", "/run", "--host=0.0.0.0", "--port=8000"]
