"""What a training run asks of a method (methods/method.py): weights, batches, a loss."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from retro_jax.config import Experiment, ModelConfig


class Trainable(Protocol):
    """The part of a method that is trained; methods/method.py says what each of these is."""

    name: str
    trained_as: str
    model: ModelConfig
    network: bool
    trainer: "Trainable"
    begins: "Trainable | None"
    freezes: bool
    read_from: int
    reading_rate: float

    def trained_with(self, e: Experiment) -> Experiment: ...

    def shapes(self, vocab: int) -> dict[str, tuple[int, ...]]: ...

    def init(self, vocab: int, seed: int, but: frozenset = frozenset()) -> dict[str, jax.Array]: ...

    def added(self, vocab: int) -> set[str]: ...

    def unused(self, batch: dict, vocab: int) -> set[str]: ...

    def warning(self, steps: int) -> str: ...

    def binding(self) -> dict[str, Any]: ...

    def example(
        self, record: Mapping[str, np.ndarray], rng: np.random.Generator, step: float
    ) -> dict: ...

    def loss(self, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]: ...

    def training_flops(self, vocab: int, length: int) -> int: ...

    def row_losses(self, params: dict, batch: dict) -> jax.Array: ...
