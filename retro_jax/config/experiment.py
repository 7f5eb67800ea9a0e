"""An experiment: everything that one config file says, typed inside, a ConfigDict outside.

An experiment file builds an `Experiment` and returns `to_config_dict(experiment)`, so that every field
can be overridden on the command line (`--config.train.steps=100`). `from_config_dict` turns what comes
back into frozen dataclasses again. Each dataclass checks itself; what several of them must agree on is
checked here.
"""

import dataclasses
import importlib.util
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections

from retro_jax.config.corpus import CorpusConfig
from retro_jax.config.evaluate import EvaluateConfig
from retro_jax.config.fields import build, require, setting
from retro_jax.config.mesh import MeshConfig
from retro_jax.config.model import ModelConfig
from retro_jax.config.request import Request
from retro_jax.config.retrieval import RetrievalConfig
from retro_jax.config.train import TrainConfig


@dataclass(frozen=True)
class Experiment:
    """One experiment: one config file, one working directory."""

    name: str = setting("experiment", "what it is called", free=True)
    methods: tuple[str, ...] = setting(
        ("retro",), "what is trained and compared (methods/method.py)", free=True
    )
    method_settings: dict[str, dict[str, Any]] = setting(
        {}, "settings of methods by name, method_settings.retro.own_continuation for example"
    )
    corpus: CorpusConfig = setting(CorpusConfig(), "where text comes from")
    retrieval: RetrievalConfig = setting(RetrievalConfig(), "how neighbours are found")
    model: ModelConfig = setting(ModelConfig(), "the network")
    train: TrainConfig = setting(TrainConfig(), "how it is trained")
    evaluate: EvaluateConfig = setting(EvaluateConfig(), "how it is evaluated")
    generate: Request = setting(Request(), "what `retro generate` continues, and how", free=True)
    mesh: MeshConfig = setting(MeshConfig(), "how arrays lie on the devices", free=True)

    def __post_init__(self):
        d, m, t, v = self.model.decoder, self.model.reading.chunk, self.train, self.evaluate
        multiple = f"must be a multiple of model.reading.chunk = {m}"
        require(t.length >= m and t.length % m == 0, "train.length", t.length, multiple)
        require(
            0 < v.stride < t.length and v.stride % m == 0,
            "evaluate.stride",
            v.stride,
            f"{multiple}, below train.length = {t.length} (a window's first token needs one before it)",
        )
        require(
            self.corpus.heldout > 0 or t.steps == 0,
            "corpus.heldout",
            self.corpus.heldout,
            f"must be more than 0 where something is trained (train.steps = {t.steps}): what it learned is measured on "
            "text that it has not seen",
        )
        require(
            d.max_length >= t.length or (d.max_length == 0 and d.positions != "learned"),
            "model.decoder.max_length",
            d.max_length,
            f"must be at least train.length = {t.length} (0, any, where positions are not learned)",
        )
        require(
            v.checkpoint == "last" or t.validate > 0,
            "evaluate.checkpoint",
            v.checkpoint,
            "needs train.validate > 0, by which the best is found",
        )
        self.generate.check("config field generate.")

    @property
    def chunks(self) -> int:
        """Chunks of a training sequence."""
        return self.train.length // self.model.reading.chunk


def experiment_beside(file: str, name: str):
    """The module of the experiment NAME.py in the folder of another one's `file`."""
    return module_of(Path(file).with_name(f"{name}.py"))


def module_of(file: Path):
    """The module of an experiment's file, which is run: it raises whatever that raises."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_config_dict(experiment: Experiment) -> ml_collections.ConfigDict:
    """The experiment with every field, for ml_collections flags."""
    return ml_collections.ConfigDict(dataclasses.asdict(experiment))


def from_config_dict(config: ml_collections.ConfigDict | typing.Mapping) -> Experiment:
    """Frozen dataclasses from a ConfigDict or nested dict.

    Raises:
      UserError: an unknown field (with the nearest known one) or a value that cannot work.
    """
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return build(Experiment, dict(plain))
