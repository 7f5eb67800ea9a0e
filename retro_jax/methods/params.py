"""The weights of a checkpoint, for a notebook."""

from pathlib import Path

import jax

from retro_jax.corpus import gguf
from retro_jax.methods.method import method_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.store.workdir import WorkDir
from retro_jax.train import sharding
from retro_jax.train.restore import restore_trained


def load_params(work: WorkDir | Path | str, method: str = "retro") -> dict[str, jax.Array]:
    """The trained weights of a working directory by name, on one device (model/functional.py says what they are for).

    Args:
      work: the directory. method: a name of METHODS.

    Raises:
      UserError: something is missing, or was made with another config.
    """
    work, mesh = WorkDir.of(work), sharding.one_device()
    check_prepared(work, only_live=True)
    with jax.set_mesh(mesh):
        params = restore_trained(work, method_of(work.experiment, method), mesh)
    gguf.forget()
    return params
