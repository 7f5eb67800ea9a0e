"""REPLUG (Shi et al. 2023, arXiv 2301.12652, section 3.2): a stream of the language model for each neighbour, whose
probabilities are mixed, token by token:

    p(x) = sum over neighbours d of softmax(score(d) / temperature) p(x | d, text)
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from retro_jax.config.fields import require, require_one_of, setting
from retro_jax.methods.in_context import InContext
from retro_jax.methods.prompted import BUDGETS, budget_setting
from retro_jax.model.retro import PAD

_NONE = -1e30  # the logarithm of a weight of 0
_TEMPERATURES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.replug.*`."""

    of: ClassVar[str] = "method_settings.replug."
    budget: str = budget_setting()
    temperature: float = setting(
        10.0, "of the weights; a score is minus the distance: of BM25 the score itself"
    )

    def __post_init__(self):
        require_one_of(f"{self.of}budget", self.budget, BUDGETS)
        require(self.temperature > 0, f"{self.of}temperature", self.temperature, "must be above 0")


class Replug(InContext):
    """Each neighbour before the text by itself; new ones at every chunk."""

    name = "replug"
    meaning = "each of its real neighbours, in a prompt of its own"
    Settings = Settings
    needs = "logits"

    def streams(self, k: int) -> int:
        """One a neighbour."""
        return max(k, 1)

    def choices(self) -> list[Settings]:
        """Its own temperature first; then from nearly one neighbour to nearly all the same."""
        tried = [dataclasses.replace(self.settings, temperature=t) for t in _TEMPERATURES]
        return [self.settings, *tried]

    def weigh(self, retrieved):
        """log softmax(-distance / temperature) over the neighbours that there are, in the order of the streams; of
        those without a distance all the same, and where there is none the whole weight is the first stream's, which
        is the language model alone."""
        there = (retrieved.tokens != PAD).any(axis=-1)
        known = jnp.isfinite(retrieved.distances)
        score = jnp.where(known, -retrieved.distances / self.settings.temperature, 0)
        first = jnp.arange(there.shape[-1]) == 0
        score = jnp.where(there, score, _NONE)
        score = jnp.where(there.any(axis=-1, keepdims=True), score, jnp.where(first, 0.0, _NONE))
        return jax.nn.log_softmax(score)[..., ::-1]
