"""Training of whatever methods need."""

from collections.abc import Iterable

from retro_jax.methods.method import Method, methods_of, to_train
from retro_jax.store.workdir import WorkDir
from retro_jax.train.loop import train


def train_all(work: WorkDir, methods: Iterable[Method] | None = None, profile: int = 0):
    """Trains what methods need; by default every method of the experiment that has weights of its own.

    profile: steps of each that are traced (train/profile.py).
    """
    e = work.experiment
    if methods is None:
        methods = [m for m in methods_of(e) if m.trained]
    for method in to_train(e, methods):
        train(work, method, profile)
