"""One step of training: the state, and the train step that changes it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from retro_jax.config import TrainConfig
from retro_jax.model.layers import ROWS
from retro_jax.train import optimizer
from retro_jax.train.trainable import Trainable

# What a gradient computes again stands behind a barrier. XLA's compiler for CPUs removes the barriers
# before it merges equal computations and orders them, and so keeps what was to be computed again: a
# quickstart's step takes a third more memory and a sixth more time.
COMPILER = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes, and what a checkpoint holds.

    What is frozen is no part of what the optimizer, its clipping or its decay ever see.
    """

    step: jax.Array
    params: dict  # trained
    opt_state: optax.OptState
    frozen: dict  # the other weights, of a base model that stays as it is
    average: dict  # of params over the steps, with train.ema; else empty
    skipped: jax.Array  # steps whose loss or gradient was not finite, and which changed nothing

    def weights(self) -> dict:
        """All weights of the network, as it is evaluated: averaged, if there is an average."""
        return self.frozen | (self.average or self.params)


def init_state(
    method: Trainable, train: TrainConfig, vocab: int, base: dict | None = None
) -> TrainState:
    """Step 0, on the mesh in context.

    base: weights by name, on the mesh, that take the place of fresh ones: all those of the language model,
      or of the whole. With train.freeze the language model's stay as they are (RETROfit), in their dtype; of a
      method that begins with another one's weights, if it says so.
    """
    base, whole = base or {}, set(method.shapes(vocab))
    language = whole - method.added(vocab)
    if base and set(base) not in (language, whole):
        raise ValueError(f"base has other weights than the model: {sorted(set(base) ^ whole)}")
    # A readout's bias says which tokens there are: nothing to learn.
    freeze = method.freezes if method.begins else train.freeze
    stay = language if freeze else {"readout_bias"}
    frozen = {name: p for name, p in base.items() if name in stay}
    # (Donated: copies where the dtype is the same.)
    given = {n: jnp.array(p, jnp.float32) for n, p in base.items() if n not in frozen}
    params = method.init(vocab, train.seed, but=frozenset(base)) | given
    # Adam's moments take shape and sharding of the parameters.
    opt_state = optimizer.adamw(train).init(params)
    average = jax.tree.map(jnp.copy, params) if train.ema else {}

    def zero():  # donated: two arrays, not one twice
        return jnp.zeros((), jnp.int32)

    return TrainState(zero(), params, opt_state, frozen, average, zero())


def make_train_step(method: Trainable, train: TrainConfig) -> Callable:
    """The jitted step: (state, batch) -> (state, metrics). A batch is a dict of arrays [B, ...].

    The state is donated. With train.accumulate = A, gradients of A parts of the batch are added up, one
    after the other: the same step in the memory of a part. Where the loss or the norm of the gradient
    is not finite, the step changes nothing but counts; with train.nonfinite = stop, neither does any
    step after it, so that the state stays the one that the failing step had.

    Metrics: loss (nats a token), grad_norm (before clipping), learning_rate, skipped (steps so far).
    """
    rate = optimizer.schedule(train)

    def train_step(state: TrainState, batch: dict):
        value, grads = gradients(method, train, state, batch)
        norm = optax.tree.norm(grads)
        update = optimizer.adamw(train, shares(method, train, state)).update
        updates, opt_state = update(grads, state.opt_state, state.params)
        # Decay alone would shrink, before it is used, what an attention to neighbours begins with.
        for name in method.unused(batch, state.weights()["embedding"].shape[0]):
            updates[name] = jnp.zeros_like(updates[name])
        params = optax.apply_updates(state.params, updates)
        average = optimizer.averaged(state.average, params, train.ema)
        fine = jnp.isfinite(value) & jnp.isfinite(norm)
        skipped = state.skipped + ~fine
        if train.nonfinite == "stop":
            fine &= state.skipped == 0
        new, old = (params, opt_state, average), (state.params, state.opt_state, state.average)
        params, opt_state, average = jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)
        metrics = {
            "loss": value,
            "grad_norm": norm,
            "learning_rate": rate(state.step - state.skipped),  # which the optimizer does not count
            "skipped": skipped,
        }
        step = state.step + 1
        return TrainState(step, params, opt_state, state.frozen, average, skipped), metrics

    mesh = jax.sharding.get_mesh()  # its devices may be only compiled for (plan/)
    platform = jax.default_backend() if mesh.empty else mesh.devices.flat[0].platform
    return jax.jit(train_step, donate_argnums=0, compiler_options=COMPILER.get(platform))


def shares(method: Trainable, train: TrainConfig, state: TrainState) -> dict[str, float]:
    """Of the learning rate, where it is not all of it: that of what retrieval adds, and of a base's language model."""
    vocab = (state.frozen | state.params)["embedding"].shape[0]
    added = method.added(vocab)
    own = {True: method.reading_rate, False: train.base_rate if train.base else 1.0}
    return {n: own[n in added] for n in state.params if own[n in added] != 1}


def gradients(method: Trainable, train: TrainConfig, state: TrainState, batch: dict):
    """The loss of a batch (nats a token) and its gradient, computed in train.accumulate parts."""

    def of_params(params, batch):
        return method.loss(state.frozen | params, batch)

    grad = jax.value_and_grad(of_params, has_aux=True)
    (total, count), grads = _accumulated(grad, state.params, batch, train.accumulate)
    count = jnp.maximum(count, 1)
    return total / count, jax.tree.map(lambda g: g / count, grads)


def _accumulated(grad: Callable, params: dict, batch: dict, parts: int):
    """((total, count), gradients) of a batch, summed over its `parts`."""
    if parts == 1:
        return grad(params, batch)

    def split(x):  # [B, ...] -> [parts, B / parts, ...]; each device cuts the rows that it has
        shape = (x.shape[0] // parts, parts, *x.shape[1:])
        return jnp.moveaxis(jnp.reshape(x, shape, out_sharding=ROWS), 1, 0)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, grad(params, part)), None

    zeros = (jnp.zeros(()), jnp.zeros((), jnp.int32)), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, jax.tree.map(split, batch))[0]
