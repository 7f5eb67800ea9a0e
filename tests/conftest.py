"""Eight simulated devices, a compilation cache, and the mesh that a test runs on."""

import dataclasses
import gc
import importlib.metadata
import os
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole import Whole

from retro_jax.cli.training import run_all
from retro_jax.config import (
    CorpusConfig,
    DecoderConfig,
    EncoderConfig,
    EvaluateConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    ReadingConfig,
    RetrievalConfig,
    TrainConfig,
)
from retro_jax.config.request import Request
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.evaluate.scorer import Scorer
from retro_jax.generate.generator import Generator
from retro_jax.model import functional
from retro_jax.model.layers import AXES
from retro_jax.store.workdir import WorkDir


def pytest_configure(config):
    """Before JAX first runs: where tests compute. `-m accelerator` takes what there is."""
    # No power fails here, and waiting for the disk took a second of each preparation. What is forced to the disk, and
    # when, is asked by tests/store/test_files.py and tests/faults/test_power.py.
    os.fsync = lambda descriptor: None
    kept = str(Path(__file__).parent / ".jax_cache")
    jax.config.update("jax_compilation_cache_dir", kept)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = kept  # of programs that tests start
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if config.option.markexpr == "accelerator":
        return
    # Almost all of the time goes into compiling programs that run for milliseconds. In the environment, so that
    # programs that tests start have it too.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    quick += " --xla_cpu_parallel_codegen_split_count=1"  # more parts cost more than threads gain
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    jax.config.update("jax_traceback_in_locations_limit", 0)
    # A tracer makes many objects and little garbage; looking for it took a sixth of a compilation.
    gc.set_threshold(50_000, 20, 100)
    if importlib.metadata.version("jaxlib") < "0.11":  # a later one refuses a flag that it lacks
        quick += " --xla_cpu_use_fusion_emitters=false"
    os.environ.setdefault("XLA_FLAGS", quick)
    jax.config.update("jax_platforms", "cpu")  # libtpu, where it is installed, looks for a TPU
    jax.config.update("jax_num_cpu_devices", 8)


def make_mesh(replica: int, data: int, model: int) -> jax.sharding.Mesh:
    size = replica * data * model
    return jax.make_mesh((replica, data, model), AXES, devices=jax.devices()[:size])


@pytest.fixture
def mesh():
    """A mesh of one device, in context."""
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    """A RETRO small enough to be run at every length, with every part of a large one."""
    return ModelConfig(
        decoder=DecoderConfig(d=16, layers=3, heads=4, head_size=8),
        encoder=EncoderConfig(d=24, layers=2, heads=4, head_size=8),
        reading=ReadingConfig(cca_layers=(2, 3), chunk=4, retrieved=8),
    )


def altered(config, **values):
    """A config with other values; those of a part are a dict: altered(model, decoder={"d": 32})."""
    for name, value in values.items():
        part = getattr(config, name)
        if dataclasses.is_dataclass(part) and isinstance(value, dict):
            values[name] = altered(part, **value)
    return dataclasses.replace(config, **values)


def weights(config: ModelConfig, vocab: int, retrieval: bool = True) -> dict[str, jax.Array]:
    """Random weights of a network by name."""
    return drawn(config, functional.shapes(config, vocab, retrieval))


def drawn(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """Random weights, unlike `functional.init` none 0 or 1: such would hide mistakes.

    Drawn by NumPy, because compiling JAX's draws takes most of a small test's time.
    """
    rng, params = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        draw = rng.normal(size=shape).astype(np.float32)
        if name.endswith("scale"):
            params[name] = 1 + 0.3 * draw
        elif name.endswith("_bias"):
            params[name] = 0.3 * draw
        else:
            params[name] = draw * (config.decoder.heads * config.decoder.head_size) ** -0.5
    return {name: jnp.asarray(value) for name, value in params.items()}


def reading_step(step, read):
    """A step of which some rows read fresh neighbours from their token on: before it they stand still with it.

    step, read: as `decode.step` and `decode.read`. What is returned takes `fresh` between tokens and `active`.
    """
    step, read = jax.jit(step), jax.jit(read)

    def go(net, state, tokens, fresh=None, active=None):
        every = jax.device_put(np.ones(len(tokens), bool), tokens.sharding)
        if fresh is not None:
            state = read(net, step(net, state, tokens, ~every)[1], fresh)
        return step(net, state, tokens, every if active is None else active)

    return go


def write_corpus(directory: Path, documents: int = 60, seed: int = 0):
    """Small files of made-up prose; each repeats passages of others, so that retrieval finds some."""
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "ten", "sur") for b in ("ra", "po", "nel", "is")]
    passages = [" ".join(rng.choices(words, k=60)) + ".\n" for _ in range(40)]
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        own = [" ".join(rng.choices(words, k=50)) + ".\n" for _ in range(4)]
        text = "".join(rng.sample(own + rng.sample(passages, 3), 7))
        (directory / f"{i:03d}.txt").write_text(text)


def small_experiment(
    corpus: Path, methods=("retro", "language_model"), own_continuation: float = 0.5, **train
) -> Experiment:
    """An experiment on `write_corpus` that trains in seconds."""
    return Experiment(
        name="small",
        methods=methods,
        method_settings={"retro": {"own_continuation": own_continuation}},
        corpus=CorpusConfig(source=f"text:{corpus}/*.txt", heldout=0.2, vocab=320),
        retrieval=RetrievalConfig(embedder="tfidf", rerank="none", settings={"tfidf": {"dim": 16}}),
        model=ModelConfig(
            decoder=DecoderConfig(d=16, layers=2, heads=2, head_size=8),
            encoder=EncoderConfig(d=16, layers=1, heads=2, head_size=8),
            reading=ReadingConfig(cca_layers=(2,), chunk=16, retrieved=32),
        ),
        train=TrainConfig(
            **{"length": 64, "batch": 8, "steps": 6, "warmup": 2, "learning_rate": 1e-2,
               "log_every": 1} | train
        ),
        evaluate=EvaluateConfig(stride=32, batch=8, generated=4),
        generate=Request(prompt="kara lopo minel ", tokens=40),
        mesh=MeshConfig(data=4, model=2),
    )  # fmt: skip


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Experiment:
    """The experiment that `finished` ran."""
    corpus = tmp_path_factory.mktemp("corpus")
    write_corpus(corpus)
    return small_experiment(corpus)


@pytest.fixture(scope="session")
def finished(small, tmp_path_factory) -> Path:
    """A working directory in which every stage of `small` has run. Read it; do not change it."""
    root = tmp_path_factory.mktemp("finished")
    run_all(WorkDir(root, small))
    return root


@pytest.fixture(scope="session")
def generator(finished, small):
    """Of `finished`, with four rows."""
    with Generator.open(WorkDir(finished, small), rows=4, length=160) as generator:
        yield generator


@pytest.fixture(scope="session")
def scorer(small, finished) -> Scorer:
    """Of `finished`, on a mesh of eight devices."""
    return Scorer.open(WorkDir(finished, small))


@pytest.fixture(scope="session")
def whole(generator, finished, small) -> Whole:
    """Full passes of the same model."""
    return Whole(small, finished, generator)


def tables(root: Path) -> dict[str, ChunkTable]:
    """The chunk tables of a working directory, by split."""
    return {s: ChunkTable(root / "prepare" / "chunks" / s) for s in ("train", "heldout")}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """See `talking.made`."""
    import talking  # with torch and transformers, which most tests do without

    return talking.made(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def opened(told):
    """The generator of `told` by rag."""
    with Generator.open(told[1], "rag", rows=2, length=1024) as generator:
        yield generator
