"""The language model, trained on: what the FLOPs that another method's training takes are worth without it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from retro_jax.config import Experiment
from retro_jax.config.fields import binding, require, setting
from retro_jax.errors import UserError
from retro_jax.methods.language_model import LanguageModel
from retro_jax.methods.method import METHODS, Method, method_of, to_train
from retro_jax.train.log import run_flops

_OF = "method_settings.language_model_longer."
_found: dict[str, float] = {}  # what `matched` said of an experiment: tracing takes seconds


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.language_model_longer.*`."""

    times: float = setting(
        0.0,
        "FLOPs of its training, those of the language model that it begins with included: so many times those; "
        "0: as many as the costliest method that can be trained has",
    )

    def __post_init__(self):
        why = "must be above 1, or 0 for as many as the costliest method has"
        require(self.times > 1 or self.times == 0, f"{_OF}times", self.times, why)


class LanguageModelLonger(LanguageModel):
    """The trained language model, trained on with a learning rate that rises and falls once more."""

    name = "language_model_longer"
    meaning = "nothing: the language model, trained on"
    Settings = Settings
    begins_with = "language_model"

    def trained_with(self, e: Experiment) -> Experiment:
        """With as many steps more as `times` says."""
        if not e.train.steps:
            return e
        times = self.settings.times or matched(e)
        steps = max(1, round((times - 1) * e.train.steps))
        return dataclasses.replace(e, train=dataclasses.replace(e.train, steps=steps))

    def binding(self) -> dict[str, Any]:
        """The decoder, and how long."""
        return super().binding() | binding(self.settings, _OF)


def matched(e: Experiment) -> float:
    """How many times the FLOPs of the language model's training that of the costliest method takes, those of what it
    begins with included."""
    key = repr((e.model, e.train, e.retrieval.neighbours, e.method_settings, e.corpus.vocab))
    if key not in _found:
        others = [m for name in METHODS if (m := _possible(e, name)) and m.trained]
        flops = {m.name: sum(_training(e, t) for t in to_train(e, [m])) for m in others}
        _found[key] = max(flops.values()) / flops[LanguageModel.name]
    return _found[key]


def _possible(e: Experiment, name: str) -> Method | None:
    """A method, unless this experiment cannot have it."""
    try:
        return None if name == LanguageModelLonger.name else method_of(e, name)
    except UserError:
        return None


def _training(e: Experiment, method: Method) -> float:
    train = method.trained_with(e).train
    return run_flops(method, train, e.corpus.vocab, 0, train.steps)
