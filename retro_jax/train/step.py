"""One step of training: TrainState, loss, train_step."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from retro_jax.config import ModelConfig, TrainConfig
from retro_jax.model import functional
from retro_jax.model.retro import PAD
from retro_jax.train import optimizer

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

    def weights(self) -> dict:
        """All weights of the network."""
        return self.frozen | self.params


def init_state(
    model: ModelConfig, train: TrainConfig, vocab: int, retrieval: bool, base: dict | None = None
) -> TrainState:
    """Step 0, on the mesh in context.

    base: weights by name, on the mesh, that take the place of fresh ones and stay as they are
    (RETROfit: all those of the language model).
    """
    frozen = dict(base or {})
    expected = set(functional.shapes(model, vocab, retrieval=False))
    if base is not None and set(base) != expected:
        raise ValueError(f"base has other weights than the model: {sorted(set(base) ^ expected)}")
    fresh = functional.init(model, vocab, train.seed, retrieval)
    params = {name: p for name, p in fresh.items() if name not in frozen}
    # Adam's moments take shape and sharding of the parameters.
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.adamw(train).init(params), frozen)


def loss(model: ModelConfig, params: dict, tokens, neighbours=None) -> jax.Array:
    """Mean negative log-probability (nats) of the tokens that are not padding."""
    weights = (tokens != PAD).at[:, 0].set(False)
    logprobs = functional.token_logprobs(model, params, tokens, neighbours)
    return -jnp.sum(logprobs * weights) / jnp.maximum(weights.sum(), 1)


def make_train_step(model: ModelConfig, train: TrainConfig) -> Callable:
    """The jitted step: (state, tokens [B, L], neighbours [B, C, K, R] | None) -> (state, metrics).

    The state is donated. Metrics: loss (nats a token), grad_norm (before clipping), learning_rate.
    """
    update = optimizer.adamw(train).update
    rate = optimizer.schedule(train)

    def train_step(state: TrainState, tokens, neighbours):
        of_params = lambda params: loss(model, state.frozen | params, tokens, neighbours)  # noqa: E731
        value, grads = jax.value_and_grad(of_params)(state.params)
        updates, opt_state = update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate(state.step),
        }
        return TrainState(state.step + 1, params, opt_state, state.frozen), metrics

    return jax.jit(
        train_step, donate_argnums=0, compiler_options=COMPILER.get(jax.default_backend())
    )
