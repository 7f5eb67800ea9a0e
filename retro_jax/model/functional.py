"""A model's weights as a flat dict of arrays, {"layers.5.cca.attention.query": ...}.

The flat dict is what is trained, saved and counted; `apply` puts it back into the network.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, get_abstract_mesh, use_abstract_mesh

from retro_jax.config import ModelConfig
from retro_jax.model.attention import RetroParam
from retro_jax.model.retro import Retro


@functools.lru_cache(maxsize=8)
def _structure(config: ModelConfig, vocab: int, retrieval: bool):
    """The network's graph and, by name, its parameters with shapes for values."""
    # Shapes are the same on every mesh; without one in context, a mesh of one will do.
    mesh = get_abstract_mesh()
    if mesh.empty:
        mesh = AbstractMesh((1, 1), ("data", "model"), (AxisType.Explicit,) * 2)
    with use_abstract_mesh(mesh):
        model = nnx.eval_shape(lambda: Retro(config, vocab, jax.random.key(0), retrieval))
    graph, state = nnx.split(model)
    return graph, {".".join(map(str, path)): (path, leaf) for path, leaf in state.flat_state()}


def init(config: ModelConfig, vocab: int, seed: int, retrieval: bool = True) -> dict:
    """Fresh weights, sharded over the mesh in context; the same on every mesh."""

    @jax.jit
    def make(key):
        state = nnx.split(Retro(config, vocab, key, retrieval))[1]
        return {".".join(map(str, path)): leaf[...] for path, leaf in state.flat_state()}

    return make(jax.random.key(seed))


def apply(config: ModelConfig, params: dict, tokens, neighbours=None) -> jax.Array:
    """Logits [B, L, V] of the model whose weights are `params`; see `Retro.__call__`."""
    vocab = params["embedding"].shape[0]
    retrieval = any(name.startswith("encoder.") for name in params)
    graph, names = _structure(config, vocab, retrieval)
    state = nnx.from_flat_state(
        {path: leaf.replace(params[name]) for name, (path, leaf) in names.items()}
    )
    return nnx.merge(graph, state)(tokens, neighbours)


def token_logprobs(config: ModelConfig, params: dict, tokens, neighbours=None) -> jax.Array:
    """log p(token t | earlier tokens, neighbours), nats: tokens [B, L] -> [B, L] float32.

    Entry 0, which nothing precedes, is 0. neighbours: [B, C, K, R] or None (see `Retro`). Every
    training loss, evaluation and comparison is computed from this.
    """
    logits = apply(config, params, tokens, neighbours)[:, :-1]
    targets = tokens[:, 1:, None] == jnp.arange(logits.shape[-1])
    # Not take_along_axis: the vocabulary may be sharded.
    target = jnp.where(targets, logits, 0).sum(-1)
    logprobs = target - jax.nn.logsumexp(logits, axis=-1)
    return jnp.pad(logprobs, ((0, 0), (1, 0)))


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
