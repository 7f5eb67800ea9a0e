"""Where a training run's log is also told: TensorBoard, Weights & Biases.

A board has `add(row)`, a row being what metrics.jsonl gets, and `close()`.
"""

import os
import secrets
from pathlib import Path

from retro_jax.config import TrainConfig
from retro_jax.errors import UserError
from retro_jax.store import files


def boards(train: TrainConfig, directory: Path, start: int) -> list:
    """Those that a config asks for.

    Args:
      directory: of the training run. start: the step before the first one that is reported.

    Raises:
      UserError: the library of one is not installed.
    """
    made = [TensorBoard(directory, start)] if train.tensorboard else []
    return made + ([WeightsAndBiases(train, directory)] if train.wandb else [])


class TensorBoard:
    """Events in DIRECTORY/tensorboard."""

    def __init__(self, directory: Path, start: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise _missing("train.tensorboard", "tensorboard", "False") from error
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)

    def add(self, row: dict):
        """See above."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def close(self):
        """See above."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a project; one that is continued stays the same run there.

    Its library says where it is sent: WANDB_MODE=offline keeps it in DIRECTORY/wandb, for `wandb sync`.
    """

    def __init__(self, train: TrainConfig, directory: Path):
        try:
            import wandb
        except ImportError as error:
            raise _missing("train.wandb", "wandb", "''") from error
        name, kept = "-".join(directory.parts[-3::2]), directory / "wandb-id"
        if not kept.exists():
            files.write(kept, secrets.token_hex(4))
        os.environ.setdefault("WANDB_SILENT", "true")  # its own lines, between ours
        self._run = wandb.init(
            project=train.wandb, name=name, id=kept.read_text(), resume="allow", dir=str(directory),
            config={"train": vars(train)}, save_code=False,
        )  # fmt: skip

    def add(self, row: dict):
        """See above."""
        self._run.log({n: v for n, v in row.items() if n != "step"}, step=row["step"])

    def close(self):
        """See above."""
        self._run.finish()


def _missing(field: str, extra: str, off: str) -> UserError:
    return UserError(f"config field {field}: pip install 'retro_jax[{extra}]', or set it to {off}")
