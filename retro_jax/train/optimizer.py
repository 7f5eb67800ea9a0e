"""AdamW, and how the learning rate rises and falls: the paper's way (appendix C.1), or one that can go on."""

import jax.numpy as jnp
import optax

from retro_jax.config import TrainConfig


def schedule(config: TrainConfig) -> optax.Schedule:
    """Learning rate of a step: linear warm-up from 1e-7, then a cosine to `final` of the rate; or the rate
    itself up to `decay_begins`, and a line to `final` of it."""
    warmup = min(config.warmup, config.steps)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=1e-7,
            peak_value=config.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(config.steps, warmup + 1),
            end_value=config.final * config.learning_rate,
        )
    rises = optax.linear_schedule(1e-7, config.learning_rate, max(1, warmup))
    begins = max(decay_begins(config), warmup)
    last = config.final * config.learning_rate
    falls = optax.linear_schedule(config.learning_rate, last, max(1, config.steps - begins), begins)
    return lambda step: jnp.where(step < warmup, rises(step), falls(step))


def decay_begins(config: TrainConfig) -> int:
    """The step from which a constant learning rate falls: up to it the steps of the run do not matter."""
    return config.steps - round(config.decay * config.steps)


def decayed(params: dict) -> dict:
    """Name -> whether weight decay applies: matrices yes; norm scales and attention biases no."""
    return {name: not name.endswith(("scale", "_bias")) for name in params}


def averaged(average: dict, params: dict, decay: float) -> dict:
    """The exponential moving average of the parameters, one step on; empty stays empty."""
    return {name: decay * a + (1 - decay) * params[name] for name, a in average.items()}


def adamw(
    config: TrainConfig, shares: dict[str, float] | None = None
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW.

    shares: of the learning rate, at which parameters learn, and decay, that do not at all of it.
    """

    def shared(updates, params):
        return {n: u * shares[n] if n in shares else u for n, u in updates.items()}

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule(config),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
        optax.stateless(shared) if shares else optax.identity(),
    )
