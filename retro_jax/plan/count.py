"""What a train step needs, counted from shapes: bytes a chip by kind, FLOPs."""

from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, use_abstract_mesh

from retro_jax.config import Experiment
from retro_jax.interop.base import base_shapes
from retro_jax.model import sizes
from retro_jax.model.layers import ROWS
from retro_jax.train import sharding
from retro_jax.train.log import step_flops
from retro_jax.train.step import TrainState, init_state, make_train_step, total_loss


@dataclass(frozen=True)
class Step:
    """A train step as shapes with shardings."""

    state: TrainState
    tokens: jax.ShapeDtypeStruct
    neighbours: jax.ShapeDtypeStruct | None


def shapes(e: Experiment, vocab: int, mesh, retrieval: bool) -> Step:
    """The arguments of a train step on a mesh, which has to be in context."""
    made = lambda base: init_state(e.model, e.train, vocab, retrieval, base)  # noqa: E731
    state = jax.eval_shape(made, base_shapes(e, vocab, retrieval))
    batch, length = e.train.batch, e.train.length
    rows = NamedSharding(mesh, ROWS)
    given = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)  # noqa: E731
    k = e.retrieval.neighbours
    neighbours = given(batch, e.chunks, k, e.model.retrieved) if retrieval else None
    return Step(sharding.shapes_on(mesh, state), given(batch, length), neighbours)


def bytes_of(tree) -> int:
    """Bytes that a chip holds of arrays."""
    shape = lambda x: x.sharding.shard_shape(x.shape) if x.sharding else x.shape  # noqa: E731
    return sum(int(np.prod(shape(x))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def kept(e: Experiment, step: Step) -> int:
    """Bytes a chip that the forward pass of one part of the batch keeps for its gradient, weights
    excepted."""

    def part(x):
        shape = (x.shape[0] // e.train.accumulate, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

    batch = jax.tree.map(part, (step.tokens, step.neighbours))

    def residuals(params, frozen, *batch):
        of_params = lambda params: total_loss(e.model, frozen | params, *batch)  # noqa: E731
        return jax.vjp(of_params, params, has_aux=True)[1]

    held = step.state.params, step.state.frozen
    found = jax.tree.leaves(jax.eval_shape(residuals, *held, *batch))
    weights = Counter((p.shape, p.dtype) for p in jax.tree.leaves(held))
    total = 0
    for leaf in found:
        key = (leaf.shape, leaf.dtype)
        if weights[key]:
            weights[key] -= 1
        else:
            total += bytes_of(leaf)
    return total


def needs(e: Experiment, vocab: int, mesh: AbstractMesh, retrieval: bool = True) -> dict:
    """Bytes a chip by kind, and FLOPs of a step; nothing is compiled.

    Returns:
      parameters, optimizer, batch, gradients, activations (kept from the forward pass to its gradient):
      bytes a chip; gathered: the embedding as it is used, twice; readout: its
      logits; flops: of the model (see `log.step_flops`), recomputed: what the gradient computes again.
    """
    with use_abstract_mesh(mesh):
        step = shapes(e, vocab, mesh, retrieval)
        of_model = step_flops(e, vocab, retrieval)
        part = e.train.batch // e.train.accumulate
        step_fn = make_train_step(e.model, e.train)
        traced = step_fn.trace(step.state, step.tokens, step.neighbours)
        activations = kept(e, step)
    params = bytes_of(step.state.params)
    itemsize = jnp.dtype(e.model.dtype).itemsize
    model = mesh.shape["model"]
    rows = part // (mesh.shape["replica"] * mesh.shape["data"])
    blocks = e.train.length if e.model.remat == "none" else 256
    return {
        "parameters": params + bytes_of(step.state.frozen) + bytes_of(step.state.average),
        "optimizer": bytes_of(step.state.opt_state),
        "batch": bytes_of((step.tokens, step.neighbours)),
        "gradients": params * (2 if e.train.accumulate > 1 else 1),
        "activations": activations,
        "gathered": 2 * vocab * e.model.d * itemsize // model,
        "readout": 3 * rows * blocks * vocab * 4 // model,
        "flops": of_model,
        "recomputed": max(0, sizes.dot_flops(traced.jaxpr) - of_model),
    }
