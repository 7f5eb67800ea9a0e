"""In-context retrieval by a language model that was trained for it, as in the first half of RA-DIT (Lin et al. 2023,
arXiv 2310.01352, section 2.2): the language model is trained on with neighbours in its prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from retro_jax.config.fields import binding
from retro_jax.methods import rag
from retro_jax.methods.language_model import LanguageModel
from retro_jax.model import sizes
from retro_jax.model.retro import PAD


@dataclass(frozen=True)
class Settings(rag.Settings):
    """The fields `method_settings.rag_tuned.*`."""

    of: ClassVar[str] = "method_settings.rag_tuned."


class RagTuned(rag.Rag):
    """`rag` with weights of its own, which begin as the language model's.

    An example is a row as `rag` reads it: the neighbours of a chunk of the sequence, tokens that end with this chunk,
    and the chunks after it. What counts is what comes after the chunk: the tokens before were seen by whoever
    looked the neighbours up.
    """

    name = "rag_tuned"
    meaning = "its real neighbours, in the prompt of a language model trained with such prompts"
    Settings = Settings
    weights_of, begins_with, needs = "", "language_model", "train"

    def binding(self) -> dict[str, Any]:
        """The decoder, and what a row is."""
        row = binding(self.settings, self.settings.of) | {"retrieval.neighbours": self.k}
        return super().binding() | row

    def example(
        self, record: Mapping[str, np.ndarray], rng: np.random.Generator, step: float
    ) -> dict:
        """A row of tokens [W] int32, and which of them count [W] bool."""
        m, tokens = self.model.reading.chunk, record["tokens"]
        length, neighbours = len(tokens), record["neighbours"]
        before = self.k * self.model.reading.retrieved
        window = self._window(length, self.k)
        chunks = (window - before) // m
        first = rng.integers(0, length // m - chunks + 1)
        asked = first + rng.integers(
            0, chunks - 1
        )  # the chunk that looks up; one at least comes after
        near = neighbours[asked, ::-1].reshape(-1)
        text = tokens[first * m : (first + chunks) * m]
        row = np.concatenate([near, text])
        counts = np.arange(len(row)) >= len(near) + (asked + 1 - first) * m
        there = row != PAD
        out, own = np.zeros(window, np.int32), np.zeros(window, bool)
        out[: there.sum()], own[: there.sum()] = row[there], counts[there]
        return {"tokens": out, "counts": own}

    def loss(self, params: dict, batch: dict) -> tuple:
        """Of the tokens after the chunk that looked up."""
        counts = batch["counts"]
        logprobs = LanguageModel.logprobs(self, params, batch["tokens"])
        return -(logprobs * counts).sum(), counts.sum()

    def row_losses(self, params: dict, batch: dict):
        """Of each row, [B]."""
        logprobs = LanguageModel.logprobs(self, params, batch["tokens"])
        return -jnp.where(batch["counts"], logprobs, 0).sum(axis=1)

    def training_flops(self, vocab: int, length: int) -> int:
        """Of one row of the language model."""
        return sizes.forward_flops(self.model, vocab, self._window(length, self.k), 0)
