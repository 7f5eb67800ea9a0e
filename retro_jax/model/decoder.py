"""The network for decoding: each layer's weights by themselves, and how they are stacked again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from retro_jax.config import ModelConfig
from retro_jax.model import functional
from retro_jax.model.retro import Block, Retro, layer_names

# Used as they are, whatever the dtype.
_EXACT = (".scale", ".shift_bias", ".position", ".null_key", ".null_bias", "readout_bias")


class Decoder(NamedTuple):
    """The network with each layer's weights by themselves, in the dtype that they are used in: a step reads
    every weight once, and would copy it first out of a stack."""

    model: Retro  # without its layers
    blocks: tuple[Block, ...]


def decoder(config: ModelConfig, params: dict) -> Decoder:
    """The network whose weights are `params`, for decoding.

    params: left empty. Outside of a program a stack is given up as soon as its layers lie apart, so that memory holds
    no more than one weight twice, if nobody else has them.
    """
    dtype, cast = jnp.dtype(config.dtype), {}
    for name in list(params):
        p = params.pop(name)
        cast[name] = p if name.endswith(_EXACT) else p.astype(dtype)
        del p
    # Names stand for the stacks: what a network is put together of stays until Python looks for circles.
    named = {name: name if name.startswith("stacks.") else p for name, p in cast.items()}
    model = functional.network(config, named)
    blocks = []
    for stack in model.stacks:
        names, structure = jax.tree.flatten(stack)
        apart = [_apart(cast.pop(name)) for name in names]
        for layers in zip(*apart):
            blocks += jax.tree.unflatten(structure, layers)
    model.stacks = None
    return Decoder(model, tuple(blocks))


def _apart(stack: jax.Array) -> list[jax.Array]:
    return [stack[time] for time in range(len(stack))]


def params_of(net: Decoder) -> dict[str, jax.Array]:
    """The weights by name, as `functional.apply` takes them: those of the layers copied into stacks again."""
    params, layers = _named(net.model), {}
    for (prefix, _), block in zip(layer_names(net.model.config), net.blocks, strict=True):
        for name, layer in _named(block).items():
            layers.setdefault(f"{prefix}.{name}", []).append(layer)
    return params | {name: jnp.stack(each) for name, each in layers.items()}


def _named(module: nnx.Module) -> dict[str, jax.Array]:
    flat = nnx.to_flat_state(nnx.split(module)[1])
    return {functional.name_of(path): leaf.get_value() for path, leaf in flat}
