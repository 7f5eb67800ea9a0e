"""What a train step needs, counted from shapes: bytes a chip by kind, FLOPs."""

import math
from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, use_abstract_mesh

from retro_jax.config import Experiment
from retro_jax.methods.method import Method
from retro_jax.model import sizes
from retro_jax.model.layers import ROWS
from retro_jax.plan import roofline
from retro_jax.train import sharding
from retro_jax.train.log import step_flops
from retro_jax.train.step import TrainState, init_state, make_train_step
from retro_jax.weights.base import base_shapes


@dataclass(frozen=True)
class Step:
    """A train step as shapes with shardings."""

    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]


def shapes(e: Experiment, vocab: int, mesh, method: Method) -> Step:
    """The arguments of a train step on a mesh, which has to be in context."""
    base = base_shapes(e, vocab, method.network)
    state = jax.eval_shape(lambda base: init_state(method, e.train, vocab, base), base)
    rows = NamedSharding(mesh, ROWS)

    def given(x):
        return jax.ShapeDtypeStruct((e.train.batch, *x.shape), x.dtype, sharding=rows)

    record = {
        "tokens": np.zeros(e.train.length, np.int32),
        "documents": np.zeros(e.chunks, np.int32),
        "neighbours": np.zeros(
            (e.chunks, e.retrieval.neighbours, e.model.reading.retrieved), np.int32
        ),
    }
    example = method.example(record, np.random.default_rng(0), math.inf)
    return Step(sharding.shapes_on(mesh, state), {n: given(x) for n, x in example.items()})


def bytes_of(tree) -> int:
    """Bytes that a chip holds of arrays."""

    def shape(x):
        return x.sharding.shard_shape(x.shape) if x.sharding else x.shape

    return sum(int(np.prod(shape(x))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def kept(e: Experiment, step: Step, method: Method) -> int:
    """Bytes a chip that the forward pass of one part of the batch keeps for its gradient, weights
    excepted."""

    def part(x):
        shape = (x.shape[0] // e.train.accumulate, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

    batch = jax.tree.map(part, step.batch)

    def residuals(params, frozen, batch):
        return jax.vjp(lambda p: method.loss(frozen | p, batch), params, has_aux=True)[1]

    held = step.state.params, step.state.frozen
    found = jax.tree.leaves(jax.eval_shape(residuals, *held, batch))
    weights = Counter((p.shape, p.dtype) for p in jax.tree.leaves(held))
    total = 0
    for leaf in found:
        key = (leaf.shape, leaf.dtype)
        if weights[key]:
            weights[key] -= 1
        else:
            total += bytes_of(leaf)
    return total


def needs(e: Experiment, vocab: int, mesh: AbstractMesh, method: Method) -> dict:
    """Bytes a chip by kind, and FLOPs of a step; nothing is compiled.

    Returns:
      parameters, optimizer, batch, gradients, activations (kept from the forward pass to its gradient):
      bytes a chip; gathered: the embedding as it is used, twice; readout: its
      logits; flops: of the model (see `log.step_flops`), recomputed: what the gradient computes again; work: what a
      chip does (`roofline.Work`).
    """
    with use_abstract_mesh(mesh):
        step = shapes(e, vocab, mesh, method)
        of_model = step_flops(method, e.train, vocab)
        part = e.train.batch // e.train.accumulate
        traced = make_train_step(method, e.train).trace(step.state, step.batch)
        activations = kept(e, step, method)
    program = sizes.live(traced.jaxpr.jaxpr)
    work = roofline.work(program, mesh)
    params = bytes_of(step.state.params)
    # The optimizer reads and writes what it changes, and reads the gradients.
    work.bytes += 2 * (params + bytes_of(step.state.opt_state)) + params
    itemsize = jnp.dtype(e.model.dtype).itemsize
    model = mesh.shape["model"]
    rows = part // (mesh.shape["replica"] * mesh.shape["data"])
    blocks = e.train.length if e.model.remat == "none" else 256
    return {
        "parameters": params + bytes_of(step.state.frozen) + bytes_of(step.state.average),
        "optimizer": bytes_of(step.state.opt_state),
        "batch": bytes_of(step.batch),
        "gradients": params * (2 if e.train.accumulate > 1 else 1),
        "activations": activations,
        "gathered": 2 * vocab * e.model.decoder.d * itemsize // model,
        "readout": 3 * rows * blocks * vocab * 4 // model,
        "flops": of_model,
        "recomputed": max(0, sizes.dot_flops(program) - of_model),
        "work": work,
    }
