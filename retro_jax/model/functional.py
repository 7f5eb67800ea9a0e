"""A model's weights as a flat dict of arrays, {"stacks.1.0.cca.attention.query": ...}.

The flat dict is what is trained, saved and counted; `apply` puts it back into the network. Layers of
equal build are stacked: `retro.layer_names` says where each layer's weights are.
"""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, get_abstract_mesh, use_abstract_mesh

from retro_jax.config import ModelConfig
from retro_jax.model.init import draw
from retro_jax.model.layers import AXES, RetroParam
from retro_jax.model.retro import Retro

_READOUT_BLOCK = 256  # tokens


def _one_device() -> Mesh:
    """For whoever calls without a mesh in context, in a notebook say."""
    return jax.make_mesh((1, 1, 1), AXES, devices=jax.local_devices()[:1])


@jax.custom_vjp
def _used(params: dict) -> dict:
    """The same weights; the gradients of those that a function does not use are zeros made here, where there is
    a mesh, and not by who asks for the gradients."""
    return params


_used.defvjp(lambda params: (params, None), lambda _, gradients: (gradients,))


def _check_ids(params: dict, tokens):
    """Raises ValueError for numbers that are no tokens, where they can be looked at; JAX reads other rows."""
    vocab = params["embedding"].shape[0]
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens of shape {tokens.shape}, {tokens.dtype}: must be [B, L], of integers"
        )
    if (
        isinstance(tokens, np.ndarray)
        and tokens.size
        and not 0 <= tokens.min() <= tokens.max() < vocab
    ):
        raise ValueError(
            f"tokens from {tokens.min()} to {tokens.max()}: must be ids from 0 to {vocab - 1}"
        )


def without_mesh(function):
    """A function (config, params, tokens, ...) that may also be called where no mesh is in context: it is then compiled
    for the device that its params are on, inside other transformations too."""

    @functools.lru_cache(maxsize=64)
    def compiled(config, fixed: tuple):
        def run(params, *arrays):
            mesh = jax.typeof(params["embedding"]).sharding.mesh
            with use_abstract_mesh(_one_device().abstract_mesh if mesh.empty else mesh):
                return function(config, _used(params), *arrays, **dict(fixed))

        return jax.jit(run)

    @functools.wraps(function)
    def called(config, params, tokens, neighbours=None, *rest, **fixed):
        _check_ids(params, tokens)
        if not get_abstract_mesh().empty:
            return function(config, params, tokens, neighbours, *rest, **fixed)
        names = list(inspect.signature(function).parameters)[4:]
        return compiled(config, tuple(fixed.items()) + tuple(zip(names, rest)))(
            params, tokens, neighbours
        )

    return called


@functools.lru_cache(maxsize=8)
def _structure(config: ModelConfig, vocab: int, retrieval: bool):
    """The network's graph and, by name, its parameters with shapes for values."""
    # Shapes are the same on every mesh; without one in context, a mesh of one will do.
    mesh = get_abstract_mesh()
    if mesh.empty:
        mesh = AbstractMesh((1, 1, 1), AXES, (AxisType.Explicit,) * 3)
    with use_abstract_mesh(mesh):
        model = nnx.eval_shape(lambda: Retro(config, vocab, retrieval))
    graph, state = nnx.split(model)
    return graph, {name_of(path): (path, leaf) for path, leaf in nnx.to_flat_state(state)}


def name_of(path: tuple) -> str:
    """The name of the weight at a path of the network."""
    return ".".join(map(str, path))


def init(
    config: ModelConfig, vocab: int, seed: int, retrieval: bool = True, but: frozenset = frozenset()
) -> dict:
    """Fresh weights, sharded over the mesh in context, or on one device without one; the same on every mesh.

    but: names of those that are not wanted.
    """
    if get_abstract_mesh().empty:
        with jax.set_mesh(_one_device()):
            return init(config, vocab, seed, retrieval, but)

    @jax.jit
    def make(key):
        state = nnx.split(Retro(config, vocab, retrieval))[1]
        leaves = {name_of(path): leaf for path, leaf in nnx.to_flat_state(state)}
        return draw({name: leaf for name, leaf in leaves.items() if name not in but}, key)

    return make(jax.random.key(seed))


def network(config: ModelConfig, params: dict) -> Retro:
    """The network whose weights are `params`."""
    vocab = params["embedding"].shape[0]
    retrieval = any(name.startswith("encoder.") for name in params)
    graph, names = _structure(config, vocab, retrieval)
    state = nnx.from_flat_state(
        {path: leaf.replace(params[name]) for name, (path, leaf) in names.items()}
    )
    return nnx.merge(graph, state)


@without_mesh
def apply(config: ModelConfig, params: dict, tokens, neighbours=None) -> jax.Array:
    """Logits [B, L, V] float32 of the model whose weights are `params`.

    Row t predicts token t + 1. tokens: [B, L]; neighbours: [B, C, K, R] or None; see `Retro`.
    """
    model = network(config, params)
    return model.logits(model(tokens, neighbours)[0])


@without_mesh
def statistics(
    config: ModelConfig, params: dict, tokens, neighbours, kind: str = "attention"
) -> dict[str, jax.Array]:
    """What every CCA layer did, first axis P: ratio [P, B, L] and mass [P, B, L, K, 2].

    See `cross.statistics_of`. P runs over `config.reading.cca_layers`. kind: see `attend.attend`.
    """
    return network(config, params)(tokens, neighbours, statistics=kind)[1]


@without_mesh
def token_logprobs(config: ModelConfig, params: dict, tokens, neighbours=None) -> jax.Array:
    """log p(token t | earlier tokens, neighbours), nats: tokens [B, L] -> [B, L] float32.

    Entry 0, which nothing precedes, is 0. neighbours: [B, C, K, R] or None (see `Retro`). Every
    training loss, evaluation and comparison is computed from this.

    Unless `remat` is none, the readout goes by blocks of tokens whose logits are computed again for
    the gradient, so that no [B, L, V] array exists.
    """
    model = network(config, params)
    return _of_targets(config, model, model(tokens, neighbours)[0], tokens)


@without_mesh
def measured_logprobs(config: ModelConfig, params: dict, tokens, neighbours):
    """What `token_logprobs` gives, and `statistics`, of one pass."""
    model = network(config, params)
    h, found = model(tokens, neighbours, statistics="attention")
    return _of_targets(config, model, h, tokens), found


def _of_targets(config: ModelConfig, model: Retro, h, tokens) -> jax.Array:
    h = h[:, :-1]
    # Not the target's logit out of all logits: a [B, L, V] comparison costs more than this product.
    target = model.logit_of(h, tokens[:, 1:])

    def normaliser(h):
        return jax.nn.logsumexp(model.logits(h), axis=-1)

    length, block = h.shape[1], _READOUT_BLOCK
    if config.remat == "none" or length <= block:
        total = normaliser(h)
    else:
        h = jnp.pad(h, ((0, 0), (0, -length % block), (0, 0)))
        blocks = jnp.moveaxis(h.reshape(h.shape[0], -1, block, h.shape[-1]), 1, 0)
        total = jnp.moveaxis(jax.lax.map(jax.checkpoint(normaliser), blocks), 0, 1)
        total = total.reshape(total.shape[0], -1)[:, :length]
    return jnp.pad(target - total, ((0, 0), (1, 0)))


class Scores(NamedTuple):
    """What is said of the tokens of texts; entry 0, which nothing predicts, is 0.

    Attributes:
      logprobs: log p of each, nats [B, L] float32. best: the most probable token instead of it [B, L] int32, and top:
        that one's log p [B, L] float32.
    """

    logprobs: jax.Array
    best: jax.Array
    top: jax.Array


@without_mesh
def token_scores(
    config: ModelConfig, params: dict, tokens, neighbours=None, never: tuple[int, ...] = ()
) -> Scores:
    """What `token_logprobs` gives, and the most probable tokens.

    never: tokens that are no rival, because nobody draws them. By blocks of tokens, so that no [B, L, V] array exists.
    """
    model, block = network(config, params), _READOUT_BLOCK
    h, targets = model(tokens, neighbours)[0][:, :-1], tokens[:, 1:]
    size = h.shape[1]

    def scores(begin):
        part, target = (x[:, begin : begin + block] for x in (h, targets))
        logits = model.logits(part)
        ids = jnp.arange(logits.shape[-1])
        rivals = jnp.where(jnp.isin(ids, jnp.array(never, int)), -jnp.inf, logits)
        tops = rivals == rivals.max(axis=-1, keepdims=True)
        best = jnp.where(tops, ids, len(ids)).min(axis=-1)
        total = jax.nn.logsumexp(logits, axis=-1)
        return model.logit_of(part, target) - total, best, rivals.max(axis=-1) - total

    every = zip(*(scores(begin) for begin in range(0, size, block)))
    return Scores(*(jnp.pad(jnp.concatenate(x, axis=1), ((0, 0), (1, 0))) for x in every))


def shapes(config: ModelConfig, vocab: int, retrieval: bool = True) -> dict:
    """Name -> shape of every weight, read off the network itself; nothing is allocated."""
    _, names = _structure(config, vocab, retrieval)
    return {name: leaf.shape for name, (_, leaf) in names.items()}


def added_by_retrieval(config: ModelConfig, vocab: int) -> set[str]:
    """Names of the weights that retrieval adds to the language model."""
    _, names = _structure(config, vocab, True)
    return {name for name, (_, leaf) in names.items() if isinstance(leaf, RetroParam)}


def count(shapes: dict) -> int:
    """Parameters in a dict of shapes."""
    return sum(int(np.prod(shape)) for shape in shapes.values())
