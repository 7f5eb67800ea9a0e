"""A small encoder of chunks to vectors, which can be trained: what a retriever of our own searches with.

    n chunks of M tokens, V rows of the token table, D its width, E numbers of a vector

A token's weight is learned (what says nothing gets little); the weighted mean of the tokens goes through one hidden
layer:

    v = normalise(x + W2 gelu(W1 x)),  x = W0 sum over tokens of softmax(weight) table[token]
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from retro_jax import progress
from retro_jax.model.retro import PAD

MOST = 1_000_000  # parameters
_WIDTH, _BLOCK = 128, 4096


def init(vocab: int, out: int, seed: int = 0) -> dict[str, jax.Array]:
    """Fresh parameters, at most MOST; of a larger vocabulary tokens share rows of the table."""
    hidden, d = 2 * out, _WIDTH
    rest = d * out + 2 * out * hidden
    rows = min(vocab, (MOST - rest) // (d + 1))
    keys = jax.random.split(jax.random.key(seed), 4)

    def drawn(key, *shape):
        return jax.random.normal(key, shape) / math.sqrt(shape[0])

    return {
        "table": jax.random.normal(keys[0], (rows, d)) / math.sqrt(d),
        "weight": jnp.zeros(rows),
        "into": drawn(keys[1], d, out),
        "up": drawn(keys[2], out, hidden),
        "down": 0.1 * drawn(keys[3], hidden, out),
    }


def encode(params: dict, tokens):
    """Vectors of length 1 [..., E], of chunks [..., M]."""
    row = tokens % params["table"].shape[0]
    weights = jnp.where(tokens != PAD, params["weight"][row], -1e9)
    weights = jax.nn.softmax(weights, axis=-1)
    x = jnp.einsum("...m,...md->...d", weights, params["table"][row]) @ params["into"]
    x = x + jax.nn.gelu(x @ params["up"]) @ params["down"]
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def encode_all(params: dict, tokens: np.ndarray) -> np.ndarray:
    """Of many chunks [N, M], on the host [N, E] float32."""
    run, out = jax.jit(encode), []
    with progress.bar("encoding chunks", len(tokens)) as advance:
        for begin in range(0, len(tokens), _BLOCK):
            part = np.zeros((_BLOCK, tokens.shape[1]), np.int32)
            given = np.asarray(tokens[begin : begin + _BLOCK])
            part[: len(given)] = given
            out.append(np.asarray(run(params, part))[: len(given)])
            advance(len(given))
    return np.concatenate(out)


def imitate(params: dict, tokens: np.ndarray, vectors: np.ndarray, steps: int, seed: int = 0):
    """Parameters by which chunks [N, M] are as near to each other as by others' vectors [N, X]: to begin with.

    These are normalised, and projected at random to as many numbers as there are here, which keeps products nearly as
    they are (Johnson and Lindenstrauss 1984).
    """
    optimizer, rng = optax.adam(3e-3), np.random.default_rng(seed)
    state, out = optimizer.init(params), params["into"].shape[1]
    project = rng.standard_normal((vectors.shape[1], out)).astype(np.float32)

    def loss(params, tokens, vectors):
        return -(encode(params, tokens) * vectors).sum(axis=-1).mean()

    @jax.jit
    def step(params, state, tokens, vectors):
        value, grads = jax.value_and_grad(loss)(params, tokens, vectors)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    with progress.bar("an encoder like the retriever", steps) as advance:
        for _ in range(steps):
            rows = np.sort(rng.integers(0, len(tokens), 512))
            like = np.asarray(vectors[rows], np.float32) @ project
            like /= np.maximum(np.linalg.norm(like, axis=-1, keepdims=True), 1e-9)
            params, state, _ = step(params, state, np.asarray(tokens[rows], np.int32), like)
            advance(1)
    return params
