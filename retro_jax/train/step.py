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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes, and what a checkpoint holds."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def init_state(model: ModelConfig, train: TrainConfig, vocab: int, retrieval: bool) -> TrainState:
    """Step 0, on the mesh in context."""
    params = functional.init(model, vocab, train.seed, retrieval)
    # Adam's moments take shape and sharding of the parameters.
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.adamw(train).init(params))


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
        value, grads = jax.value_and_grad(lambda params: loss(model, params, tokens, neighbours))(
            state.params
        )
        updates, opt_state = update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate(state.step),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)
