"""Checkpoints of a TrainState with orbax: written aside, complete or absent, restored on any mesh."""

import contextlib
import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from retro_jax.errors import UserError
from retro_jax.train.step import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file that it writes


class Checkpoints:
    """The checkpoints of one training run, the newest two of them kept."""

    def __init__(self, directory: Path):
        self._directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        with self._writing():
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int):
        """Starts to write a checkpoint; `close` (or the next save) waits for it.

        Raises:
          UserError: it, or the one before it, cannot be written.
        """
        with self._writing():
            if step != self.latest():
                self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore(self, step: int, like: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
        """The state of a step, laid on `mesh` as `like` (from `jax.eval_shape`) says.

        Raises:
          UserError: the checkpoint is damaged or of another model.
        """

        def on_mesh(x):
            spec = x.sharding.spec if x.sharding else P()  # a scalar has none
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        target = jax.tree.map(on_mesh, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"{self._directory}/{step}: the checkpoint cannot be read "
                f"({str(error).splitlines()[0]}); delete it to go on from the one before"
            ) from error

    def close(self):
        """Waits for writes that are under way."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self._directory}: a checkpoint cannot be written "
                f"({' '.join(str(error).split())[:300]}); make room, and run the same command again"
            ) from error
