"""RETRO (Borgeaud et al. 2021, arXiv 2112.04426): chunked cross-attention to what the last chunk retrieved."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from retro_jax.config import Experiment
from retro_jax.config.fields import (
    binding,
    require,
    require_at_least,
    require_not_negative,
    require_share,
    setting,
)
from retro_jax.methods.language_model import LanguageModel
from retro_jax.methods.method import LookUps
from retro_jax.model import formulas, functional
from retro_jax.model.retro import PAD


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.retro.*`."""

    of: ClassVar[str] = "method_settings.retro."
    # What follows is this project's, not the paper's. `own_continuation` at first; from half of
    # `own_continuation_steps` on it falls linearly, to be 0 there.
    own_continuation: float = setting(
        0.0, "share of the neighbours that are replaced by their chunk's own continuation"
    )
    own_continuation_steps: int = setting(
        300,
        "steps, from read_from on, after which none is, but for what is kept; a run should be longer",
    )
    # A long run on text that repeats itself little can forget how to read: a few are kept against that.
    own_continuation_kept: float = setting(
        0.0, "share of the neighbours that is still replaced after that; it falls to 0"
    )
    own_continuation_kept_steps: int = setting(
        300, "steps, from read_from on, after which none is kept either"
    )
    # A decoder that has neighbours from the first step on learns late to copy from its own document, since it
    # can copy from them (docs/quickstart.md).
    read_from: int = setting(
        0,
        "steps of training before neighbours are read: until then it is trained as a language model",
    )
    # A language model learns fastest at a rate at which it does not begin to read (docs/quickstart.md).
    reading_rate: float = setting(
        1.0, "of the learning rate: what encoder and cross-attention learn with"
    )

    def __post_init__(self):
        require_share(self.of, self, "own_continuation", "own_continuation_kept")
        require_not_negative(self.of, self, "reading_rate")
        steps = "own_continuation_steps", "own_continuation_kept_steps"
        require_at_least(1, self.of, self, *steps)
        require_at_least(0, self.of, self, "read_from")
        first, last = self.own_continuation_steps, self.own_continuation_kept_steps
        require(
            not self.own_continuation_kept or last > first, self.of + steps[1], last,
            f"must be above own_continuation_steps ({first:,}), or nothing is kept",
        )  # fmt: skip

    def share(self, step: float) -> float:
        """Of the neighbours, so many steps after `read_from`: constant, then it falls to what is kept, which falls
        to 0."""
        left = 1 - step / self.own_continuation_steps
        kept = 1 - step / self.own_continuation_kept_steps
        first = self.own_continuation * min(1.0, 2 * left)
        return max(0.0, first, self.own_continuation_kept * kept)


class Retro(LanguageModel):
    """At the end of every chunk of M tokens its neighbours are looked up, encoded, and read from then on."""

    name = "retro"
    meaning = "its real neighbours"
    Settings = Settings
    reads, network, follows = True, True, True

    def check(self, e: Experiment):
        """Refuses a `read_from` with which it would never learn to read, or train nothing before."""
        name, first = self.settings.of + "read_from", self.settings.read_from
        if not first:
            return
        steps = e.train.steps
        require(
            first < steps, name, first, f"must be below train.steps = {steps}, or it never reads"
        )
        frozen = e.train.base and e.train.freeze
        require(
            not frozen,
            name,
            first,
            "must be 0 where the base is frozen: until then nothing would be trained",
        )

    @property
    def look_ups(self) -> LookUps:
        """Every chunk is looked up with its own tokens."""
        return LookUps(self.model.reading.chunk, self.model.reading.chunk)

    @property
    def read_from(self) -> int:
        """The settings' own."""
        return self.settings.read_from

    @property
    def reading_rate(self) -> float:
        """The settings' own."""
        return self.settings.reading_rate

    def added(self, vocab: int) -> set[str]:
        """Encoder and cross-attention."""
        return functional.added_by_retrieval(self.model, vocab)

    def formula(self, vocab: int, length: int) -> float:
        """The language model's, and `formulas.reading`."""
        return super().formula(vocab, length) + formulas.reading(self.model, length, self.k)

    def warning(self, steps: int) -> str:
        """If what it reads is mostly its own continuations for too much of the run."""
        s = self.settings
        reads = steps - s.read_from
        if (half := s.share(reads / 2)) < 0.5:
            return ""
        return (
            f"{s.of}own_continuation_steps = {s.own_continuation_steps}: {half:.0%} of the neighbours are still own "
            f"continuations halfway between read_from and the end; {self.name} is hardly trained on real ones; lower "
            f"it to {max(1, reads // 2)}"
        )

    @property
    def notes(self) -> str:
        """Own continuations, if there were any."""
        s = self.settings
        alone = f"For the first {s.read_from} steps it read nothing. " if s.read_from else ""
        if not s.share(0):
            return alone
        kept, first = (
            "",
            f"{'Then for' if alone else 'For the first'} {s.own_continuation_steps} steps",
        )
        if s.own_continuation_kept:
            last = s.read_from + s.own_continuation_kept_steps
            kept = f", and up to {s.own_continuation_kept:.0%} until step {last:,}"
        return (
            f"{alone}{first} up to {s.own_continuation:.0%} of the neighbours were their chunk's own "
            f"continuation{kept}, which is not the paper's."
        )

    def binding(self) -> dict[str, Any]:
        """The whole network, and how reading is taught."""
        names = [f.name for f in fields(Settings)]
        taught = {self.settings.of + n: getattr(self.settings, n) for n in names}
        return binding(self.model, "model.") | taught

    def example(
        self, record: Mapping[str, np.ndarray], rng: np.random.Generator, step: float
    ) -> dict:
        """The tokens [L] and the neighbours [C, K, R] of their chunks, int32; before `read_from` no neighbours."""
        example, step = super().example(record, rng, step), step - self.read_from
        if step < 0:
            return example
        neighbours = record["neighbours"].astype(np.int32)
        share = self.settings.share(step)
        if share > 0:
            add_own_continuations(neighbours, example["tokens"], record["documents"], share, rng)
        return example | {"neighbours": neighbours}

    def unused(self, batch: dict, vocab: int) -> set[str]:
        """What reads, in a batch without neighbours."""
        return set() if "neighbours" in batch else self.added(vocab)

    def measured(self, params: dict, tokens, retrieved):
        """With every cross-attention's statistics; see `functional.statistics`."""
        return functional.measured_logprobs(self.model, params, tokens, retrieved.tokens)


def add_own_continuations(neighbours, tokens, documents, share: float, rng: np.random.Generator):
    """Replaces a share of the neighbours by their chunk's own continuation.

    What it stands for is a neighbour that continues as the chunk does, which natural text gives too
    seldom for a small model to learn reading from. The copy is shifted by up to half a chunk and a
    twentieth of its tokens are replaced, so that only matching by content, and not position, finds the
    next token. This is made here, in training, and never in a shard.

    Args:
      neighbours: [C, K, R], changed in place.
      tokens: [L], the sequence.
      documents: [C], the document of each chunk; a continuation stays in its chunk's document.
    """
    chunks, k, width = neighbours.shape
    m = len(tokens) // chunks
    for c, i in np.argwhere(rng.random((chunks, k)) < share):
        at = c * m + rng.integers(-m // 2, m // 2 + 1) + np.arange(width)
        inside = (at >= 0) & (at < len(tokens))
        at = np.where(inside, at, 0)
        inside &= documents[at // m] == documents[c]
        noise = rng.random(width) < 0.05
        at = np.where(noise, rng.integers(0, len(tokens), width), at)
        neighbours[c, i] = np.where(inside, tokens[at], PAD)
