"""In-context retrieval (Ram et al. 2023, arXiv 2302.00083): the neighbours stand before the text, and a language
model that was never trained to reads them."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from retro_jax.config.fields import require_one_of
from retro_jax.methods.in_context import InContext
from retro_jax.methods.prompted import BUDGETS, budget_setting


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.rag.*`."""

    of: ClassVar[str] = "method_settings.rag."
    budget: str = budget_setting()

    def __post_init__(self):
        require_one_of(f"{self.of}budget", self.budget, BUDGETS)


class Rag(InContext):
    """All neighbours of a chunk before the text, the nearest last; new ones at every chunk."""

    name = "rag"
    meaning = "its real neighbours, in the prompt of the language model"
    Settings = Settings
    needs = "none"

    def streams(self, k: int) -> int:
        """One."""
        return 1

    def weigh(self, retrieved):
        """One stream, whose weight is 1."""
        return jnp.zeros_like(retrieved.distances[..., :1])
