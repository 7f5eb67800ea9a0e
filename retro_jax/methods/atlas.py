"""Atlas-style reading (Izacard et al. 2022, arXiv 2208.03299, section 2.2; Fusion-in-Decoder, Izacard and Grave 2020,
arXiv 2007.01282): retrieved once, encoded apart, attended all together.

The neighbours of the first chunk of a sequence are looked up. The encoder reads each of them, and the chunk that
retrieved it by cross-attention (where Fusion-in-Decoder puts both into one text); every token after that chunk attends
to all of them at once, by cross-attention without positions. The decoder is the language model's, not T5.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from retro_jax.config import ModelConfig
from retro_jax.config.model import ReadingOnce
from retro_jax.methods import retro
from retro_jax.methods.method import LookUps


@dataclass(frozen=True)
class Settings(retro.Settings):
    """The fields `method_settings.atlas.*`."""

    of: ClassVar[str] = "method_settings.atlas."


class Atlas(retro.Retro):
    """RETRO's network, with one look-up that all tokens after it read: what is fresh at the start of a sequence is
    old at its end."""

    name = "atlas"
    meaning = "the real neighbours of the first chunk, all of them at every token"
    Settings = Settings

    def __init__(self, model: ModelConfig, k: int = 0, settings=None, length: int = 0):
        reading = ReadingOnce(**dataclasses.asdict(model.reading) | self.reading())
        super().__init__(dataclasses.replace(model, reading=reading), k, settings, length)

    def reading(self) -> dict[str, Any]:
        """What of `model.reading` is otherwise."""
        return {}

    @property
    def look_ups(self) -> LookUps:
        """The first chunk, with its own tokens."""
        return dataclasses.replace(super().look_ups, times=1)

    def binding(self) -> dict[str, Any]:
        """As RETRO, and how neighbours are attended."""
        return super().binding() | {"reads": "the neighbours of the first chunk"}
