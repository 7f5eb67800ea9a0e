"""Held-out evaluation (retro_jax/evaluate)."""

from dataclasses import dataclass

from retro_jax.config.fields import require_at_least, require_one_of, require_share, setting


@dataclass(frozen=True)
class EvaluateConfig:
    """The fields `evaluate.*` of an experiment."""

    stride: int = setting(
        1024, "tokens between windows of train.length; a multiple of the chunk, below train.length"
    )
    batch: int = setting(16, "windows of a batch", free=True)
    checkpoint: str = setting("last", "last | best (by train.validate): what is evaluated")
    conditions: tuple[str, ...] = setting(
        (),
        "what the network reads in place of its neighbours (evaluate/condition.py); (): all there is",
    )
    generated: int = setting(32, "documents whose beginning is continued, to see what is copied")
    filter_overlap: float = setting(
        0.125, "the loss is also reported on chunks that share less than this with what they read"
    )

    def __post_init__(self):
        require_at_least(1, "evaluate.", self, "batch")
        require_one_of("evaluate.checkpoint", self.checkpoint, ("last", "best"))
        require_share("evaluate.", self, "filter_overlap")
