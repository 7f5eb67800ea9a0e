"""A language model with tables of n-grams (Engram: Cheng et al. 2026, arXiv 2601.07372): what a memory is worth that is
trained and not searched. Is what retrieval gains more than what a table of n-grams gains?"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from retro_jax.config import ModelConfig
from retro_jax.config.fields import binding, require_at_least, setting
from retro_jax.config.model import MemoryConfig, ModelWithMemory
from retro_jax.methods.language_model import LanguageModel
from retro_jax.model import formulas, functional
from retro_jax.model.ngrams import GRAMS

_OF = "method_settings.ngram_memory."
_MULTIPLE = 64  # of a table's rows, so that any mesh can divide them


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.ngram_memory.*`."""

    size: int = setting(
        0,
        "rows of a table; 0: as many as give it the parameters that RETRO adds to the language model",
    )
    width: int = setting(16, "numbers of a row")
    hashes: int = setting(4, "tables of each kind of n-gram")

    def __post_init__(self):
        require_at_least(1, _OF, self, "width", "hashes")
        require_at_least(0, _OF, self, "size")


class NGramMemory(LanguageModel):
    """The decoder with a memory of 2- and 3-grams before the layer where RETRO begins to read."""

    name = "ngram_memory"
    meaning = "nothing: a language model with trained tables of n-grams"
    Settings = Settings

    def __init__(self, model: ModelConfig, k: int = 0, settings=None, length: int = 0):
        super().__init__(model, k, settings, length)
        s = self.settings
        memory = MemoryConfig(s.size or _like_retro(model, s), s.width, s.hashes)
        parts = {f.name: getattr(model, f.name) for f in dataclasses.fields(ModelConfig)}
        self.model = ModelWithMemory(**parts, memory=memory)

    def added(self, vocab: int) -> set[str]:
        """The memory."""
        return {name for name in self.shapes(vocab) if name.startswith("memory.")}

    def formula(self, vocab: int, length: int) -> float:
        """The language model's, and `formulas.memory`."""
        return super().formula(vocab, length) + formulas.memory(self.model, length)

    def binding(self) -> dict[str, Any]:
        """The decoder and the memory."""
        return super().binding() | binding(self.model.memory, "model.memory.")


def _like_retro(model: ModelConfig, s: Settings) -> int:
    """Rows of a table with which the memory has about as many parameters as RETRO adds."""
    vocab = 1  # the encoder's own embedding is none of it
    shapes = functional.shapes(model, vocab, True)
    added = functional.count({n: shapes[n] for n in functional.added_by_retrieval(model, vocab)})
    joined = len(GRAMS) * s.hashes * s.width
    rows = (added - 2 * joined * model.decoder.d) / joined
    return max(_MULTIPLE, round(rows / _MULTIPLE) * _MULTIPLE)
