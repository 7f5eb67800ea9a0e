"""The language model, trained on: what the FLOPs that another method's training takes are worth without it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from retro_jax.config import Experiment
from retro_jax.config.fields import binding, require, setting
from retro_jax.methods.language_model import LanguageModel

_OF = "method_settings.language_model_longer."


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.language_model_longer.*`."""

    times: float = setting(
        2.0,
        "FLOPs of its training, those of the language model that it begins with included: so many times those",
    )

    def __post_init__(self):
        require(self.times > 1, f"{_OF}times", self.times, "must be above 1")


class LanguageModelLonger(LanguageModel):
    """The trained language model, trained on with a learning rate that rises and falls once more."""

    name = "language_model_longer"
    meaning = "nothing: the language model, trained on"
    Settings = Settings
    begins_with = "language_model"

    def trained_with(self, e: Experiment) -> Experiment:
        """With as many steps more as `times` says."""
        steps = max(1, round((self.settings.times - 1) * e.train.steps)) if e.train.steps else 0
        return dataclasses.replace(e, train=dataclasses.replace(e.train, steps=steps))

    def binding(self) -> dict[str, Any]:
        """The decoder, and how long."""
        return super().binding() | binding(self.settings, _OF)
