"""Atlas-style reading (Izacard et al. 2022, arXiv 2208.03299, section 2.2; Fusion-in-Decoder, Izacard and Grave 2020,
arXiv 2007.01282): retrieved once, encoded apart, attended all together.

The neighbours of the first chunk of a sequence are looked up. The encoder reads each of them, and the chunk that
retrieved it by cross-attention (where Fusion-in-Decoder puts both into one text); every token after that chunk attends
to all of them at once, by cross-attention without positions. The decoder is the language model's, not T5.

When the reader is trained, the query side of the retriever is (trained_queries.py), with one of Atlas's four losses.
(Atlas trains both at once.)
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from retro_jax.config import ModelConfig
from retro_jax.config.fields import require, require_one_of, setting
from retro_jax.config.model import ReadingOnce
from retro_jax.methods import query_map, reader_says, retriever_losses, retro
from retro_jax.methods.method import LookUps
from retro_jax.methods.trained_queries import TrainedQueries, Training

LOSSES = ("pdist", "emdr2", "loop", "adist", "none")


@dataclass(frozen=True)
class Settings(Training, retro.Settings):
    """The fields `method_settings.atlas.*`."""

    of: ClassVar[str] = "method_settings.atlas."
    retriever: str = setting(
        "pdist",
        "pdist | emdr2 | loop | adist: with which loss it is trained; none: it stays as it was prepared",
    )
    candidates: int = setting(8, "documents of each")
    tau: float = setting(0.1, "temperature of what the reader says of documents; emdr2 has none")

    def __post_init__(self):
        Training.__post_init__(self)
        retro.Settings.__post_init__(self)
        require_one_of(f"{self.of}retriever", self.retriever, LOSSES)
        require(self.tau > 0, f"{self.of}tau", self.tau, "must be above 0")


class Reader(retro.Retro):
    """RETRO's network, with one look-up that all tokens after it read: what is fresh at the start of a sequence is
    old at its end."""

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


class Atlas(TrainedQueries, Reader):
    """A reader of the first chunk's neighbours, and a retriever that is trained for it."""

    name = "atlas"
    meaning = "the real neighbours of the first chunk, all of them at every token"
    Settings = Settings
    instead = "set method_settings.atlas.retriever=none, or leave it out"

    @property
    def retrieves(self) -> bool:
        """Whether the retriever is trained."""
        return self.settings.retriever != "none"

    def loss_of_scores(self, given: query_map.Examples, params: dict, mesh, batch: int) -> Callable:
        """Of the setting `retriever`; what the reader says of a document is a mean over tokens, but for emdr2."""
        s, of = self.settings, (given, self, params, mesh, batch)
        loss = getattr(retriever_losses, s.retriever)
        if s.retriever == "adist":
            said = reader_says.attended(*of)
        else:
            logp, tokens = (reader_says.without if s.retriever == "loop" else reader_says.alone)(
                *of
            )
            said = logp if s.retriever == "emdr2" else logp / tokens.clip(1)[:, None]
        last = () if s.retriever == "emdr2" else (s.tau,)
        return lambda scores, rows: loss(scores, said[rows], *last)
