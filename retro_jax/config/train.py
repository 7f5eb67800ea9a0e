"""Optimisation (retro_jax/train)."""

from dataclasses import dataclass

from retro_jax.config.fields import (
    require,
    require_at_least,
    require_not_negative,
    require_one_of,
    require_share,
    setting,
)


@dataclass(frozen=True)
class TrainConfig:
    """The fields `train.*` of an experiment."""

    length: int = setting(2048, "tokens of a sequence, a multiple of the chunk")
    batch: int = setting(256, "sequences of a step")
    accumulate: int = setting(
        1, "parts that a batch is computed in, one after the other, to save memory", free=True
    )
    steps: int = setting(1000, "steps of the run")
    learning_rate: float = setting(2e-4, "the highest learning rate")
    warmup: int = setting(750, "steps in which the learning rate rises from 1e-7")
    schedule: str = setting(
        "cosine",
        "cosine (the paper's) | constant, then a linear decay: such a run can be given more steps",
    )
    decay: float = setting(
        0.2, "share of the run in which a constant learning rate falls at its end"
    )
    final: float = setting(0.1, "share of the learning rate at the end of the run")
    b1: float = setting(0.9, "Adam's decay of the mean of gradients")
    b2: float = setting(0.95, "Adam's decay of the mean of squared gradients")
    weight_decay: float = setting(0.1, "AdamW's, of matrices only")
    clip: float = setting(1.0, "bound of the gradient's global norm")
    ema: float = setting(
        0.0, "decay of an average of the parameters, which is then evaluated; 0: none"
    )
    nonfinite: str = setting(
        "stop", "stop | skip: a step whose loss or gradient is not finite", free=True
    )
    # A directory with weights to begin with (retro_jax/weights): a decoder, to which retrieval is
    # added (RETROfit), or a whole RETRO. With steps = 0 it is evaluated, and generates, as it is.
    base: str = setting("", "a directory with weights to begin with; empty: fresh ones")
    freeze: bool = setting(True, "the language model of a base stays as it is, bit for bit")
    base_rate: float = setting(
        0.1, "of the learning rate: what a base's language model learns with that is not frozen"
    )
    seed: int = setting(0, "of the weights and of the order of the data")
    checkpoint_every: int = setting(200, "steps between checkpoints", free=True)
    keep: int = setting(2, "the newest checkpoints that stay, beside the best", free=True)
    validate: int = setting(
        2, "batches of held-out sequences that are scored at every checkpoint", free=True
    )
    log_every: int = setting(20, "steps between lines of the log", free=True)
    tensorboard: bool = setting(
        False, "also write events for it (pip install 'retro_jax[tensorboard]')", free=True
    )
    wandb: str = setting(
        "",
        "a project of Weights & Biases that is also told (pip install 'retro_jax[wandb]')",
        free=True,
    )

    def __post_init__(self):
        require_at_least(
            1, "train.", self, "batch", "accumulate", "keep", "checkpoint_every", "log_every"
        )
        require_one_of("train.nonfinite", self.nonfinite, ("stop", "skip"))
        require_share("train.", self, "final", "decay")
        require_one_of("train.schedule", self.schedule, ("cosine", "constant"))
        require_not_negative(
            "train.", self, "learning_rate", "warmup", "weight_decay", "base_rate", "validate"
        )
        for name in ("b1", "b2", "ema"):
            value = getattr(self, name)
            require(0 <= value < 1, f"train.{name}", value, "must be at least 0 and below 1")
        require(
            self.batch % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"must divide train.batch = {self.batch}",
        )
        require(self.clip > 0, "train.clip", self.clip, "must be positive")
        least = 0 if self.base else 1
        require(self.steps >= least, "train.steps", self.steps, f"must be at least {least}")
