"""A training run that is there: whether it is finished, what it was made with, and its weights."""

from pathlib import Path

import jax

from retro_jax.config import Experiment, TrainConfig
from retro_jax.config.fields import binding
from retro_jax.errors import UserError
from retro_jax.model import functional
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.train.checkpoint import Checkpoints
from retro_jax.train.step import TrainState, init_state
from retro_jax.train.trainable import Trainable
from retro_jax.weights import pretrained
from retro_jax.weights.base import base_weights, open_base


def settings_of(e: Experiment, method: Trainable) -> dict:
    """{config field: value} of all that a trained model depends on, or what is scored with it.

    With a constant learning rate the number of steps is none of it: such a run can go on. Nor is how others
    are trained, of a base that stays as it is.
    """
    settings = binding(e.train, "train.")
    if not trains(e, method):
        settings = {n: settings[n] for n in ("train.base", "train.length", "train.seed")}
    settings |= method.binding()
    if e.train.base:  # what it is, not where
        settings["train.base"] = pretrained.identity(Path(e.train.base))
    if e.train.schedule == "constant":
        settings.pop("train.steps", None)
    return settings


def inputs_of(work: WorkDir, method: Trainable) -> list[Path]:
    """The artefacts that a training run reads."""
    begins = [work.trained(method.begins.trained_as)] if method.begins else []
    return [work.prepared("shards/train"), work.prepared("tokenizer"), *begins]


def trains(e: Experiment, method: Trainable) -> bool:
    """Whether there is anything to train; the language model of a frozen base alone is not."""
    frozen = e.train.base and e.train.freeze and not method.network and not method.begins
    return e.train.steps > 0 and not frozen


def state_like(e: Experiment, method: Trainable, vocab: int, base: dict) -> TrainState:
    """The shapes of a state that begins with these weights of a base."""
    return jax.eval_shape(lambda base: init_state(method, e.train, vocab, base), base)


def weights_of_base(e: Experiment, work: WorkDir, method: Trainable, mesh) -> dict:
    """The weights that the method begins with, those of `train.base` or another method's, on the mesh in context."""
    if method.begins:
        return restore_trained(work, method.begins, mesh, best=False)
    opened = open_base(e, work.prepared("tokenizer"))
    return base_weights(opened, e.model, method.network, mesh)


def has_all_steps(train: TrainConfig, counts: dict) -> bool:
    """Whether a finished run, with these counts in its manifest, has the steps that are asked for.

    Raises:
      UserError: it has more.
    """
    if counts["steps"] > train.steps > 0:
        raise UserError(
            f"config field train.steps = {train.steps}: the run that is there has {counts['steps']}; a "
            "finished run can be given more steps, not fewer"
        )
    return counts["steps"] == train.steps or train.steps == 0


def check_trained(work: WorkDir, method: Trainable) -> Path:
    """The directory of a finished training run.

    Raises:
      UserError: it is missing, unfinished, or of another config.
    """
    method = method.trainer
    directory, e = work.trained(method.trained_as), method.trained_with(work.experiment)
    inputs = inputs_of(work, method)
    stage = "train"
    if method.trained_as not in e.methods:
        stage = f"compare {work.root} --methods={method.name}"
        if not directory.exists():
            train = f", or train it: `retro {stage}`" if e.train.steps else ""
            raise UserError(
                f"{method.trained_as} is not trained here, and the experiment's methods are {', '.join(e.methods)}: "
                f"choose another one (--method=rag reads with the language model){train}"
            )
    counts = artefact.require(directory, stage, settings_of(e, method), inputs)["counts"]
    if not counts.get("complete"):
        raise UserError(f"{directory}: training has not finished; run `retro train` to continue it")
    if counts["steps"] != e.train.steps and trains(e, method):
        raise UserError(
            f"{directory} has {counts['steps']} steps, and train.steps is {e.train.steps}: run `retro "
            "train` to give it the others, or give the field that it was trained with"
        )
    return directory


def restore_trained(
    work: WorkDir, method: Trainable, mesh: jax.sharding.Mesh, best: bool | None = None
) -> dict:
    """The parameters of a finished training run, on `mesh` (which must be in context): those of its
    last checkpoint, or if `best` of that whose held-out loss was lowest; by default as evaluate.checkpoint says."""
    method = method.trainer
    e, directory = method.trained_with(work.experiment), check_trained(work, method)
    given = weights_of_base(e, work, method, mesh)
    vocab = Prepared(work).tokenizer.vocab
    if not trains(e, method):
        return method.init(vocab, e.train.seed, frozenset(given)) | given
    checkpoints = Checkpoints(directory / "checkpoints")
    step = checkpoints.latest()
    best = e.evaluate.checkpoint == "best" if best is None else best
    if best and (found := checkpoints.best()):
        step = found[0]
    if step is None:
        raise UserError(
            f"{directory}/checkpoints holds no checkpoint: delete {directory} and run `retro train`"
        )
    state = checkpoints.restore(step, state_like(e, method, vocab, given), mesh, given)
    checkpoints.close()
    return state.weights()


def parameters(method: Trainable, vocab: int) -> int:
    """How many parameters a method's network has."""
    return functional.count(method.shapes(vocab))
