"""The programs of the rows that are decoded together: what is compiled, as functions of their state.

B rows, J tokens that a row can have, K neighbours, R retrieved length, S tokens of a segment, V vocabulary
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.corpus.tokenizer import PAD
from retro_jax.generate import sample
from retro_jax.generate.sample import TOP, Sampling
from retro_jax.methods.method import Method
from retro_jax.model.cache import Fresh
from retro_jax.model.layers import ROWS, by_rows

SEGMENT = 16  # tokens between two looks of the host, at most


class State(NamedTuple):
    """What the rows are."""

    cache: Any  # of the method; has count and begin, [B] each
    token: jax.Array  # [B] drawn, and not read yet
    seen: jax.Array  # [B, V] which tokens a row holds


class Ways(NamedTuple):
    """How the rows go on."""

    sampling: Sampling
    leader: jax.Array  # [B] which row's token a row takes: its own, unless it is compared with it
    top: jax.Array  # [] whether anyone wants the most probable tokens
    silent: jax.Array  # [V] which tokens are never drawn


class Drawn(NamedTuple):
    """Tokens that were drawn, the first axis those of a segment [S], the second the rows [B]."""

    token: np.ndarray
    logprob: np.ndarray  # nats, of the model itself
    top: np.ndarray  # [S, B, TOP] the most probable tokens, if anyone wanted them
    top_logprob: np.ndarray


def start(method: Method, net, rows: int, length: int, k: int, vocab: int) -> State:
    """Rows that hold nothing; length: J."""
    token, seen = jnp.full(rows, PAD, jnp.int32), jnp.zeros((rows, vocab), bool)
    return State(method.start(net, rows, length, k), token, seen)


def prefill(method: Method, net, length: int, k: int, tokens, count, near):
    """One row that has read a prompt [1, L]: logits [1, V] of the token after it, and its cache."""
    cache = method.start(net, 1, length, k)
    return method.prefill(net, cache, *jax.tree.map(by_rows, (tokens, count, near)))


def admit(method: Method, state: State, ways: Ways, cache, logits, row, tokens, forced):
    """The rows with one replaced by what `prefill` gave, and its first token: `forced`, unless that is -1."""
    moved = method.place(state.cache, row[None], cache, jnp.zeros(1, jnp.int32))
    held = jnp.zeros(state.seen.shape[1], bool).at[tokens[0]].set(True)
    state = State(moved, state.token, state.seen.at[row].set(held))
    logits = jax.sharding.reshard(logits, jax.P())
    every = jnp.zeros((len(state.token), logits.shape[1]), logits.dtype).at[row].set(logits[0])
    alone = jnp.arange(len(state.token)) == row
    state, drawn = _draw(state, ways._replace(leader=jnp.arange(len(alone))), every, alone, forced)
    return state, jax.tree.map(lambda x: x[None], drawn)


def read(method: Method, net, state: State, fresh: Fresh) -> State:
    """The rows with some of them reading new neighbours from their next token on."""
    fresh = jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P(ROWS[0])), fresh)
    return state._replace(cache=method.read(net, state.cache, fresh))


def free(method: Method, state: State, row) -> State:
    """The rows with one that holds nothing any more."""
    return state._replace(cache=method.empty(state.cache, row[None]))


def segment(method: Method, net, state: State, ways: Ways, steps, n):
    """The next tokens: of each row `steps` [B], at most n and SEGMENT. A row that takes fewer than n stands still
    afterwards: it is given the token that it drew last, which stays unread, and `read` can follow."""
    b = len(state.token)
    out = Drawn(
        jnp.zeros((SEGMENT, b), jnp.int32),
        jnp.zeros((SEGMENT, b)),
        jnp.zeros((SEGMENT, b, TOP), jnp.int32),
        jnp.zeros((SEGMENT, b, TOP)),
    )

    def one(i, carry):
        state, drawn = _advance(method, net, carry[0], ways, i < steps)
        return state, jax.tree.map(lambda kept, x: kept.at[i].set(x), carry[1], drawn)

    return jax.lax.fori_loop(0, n, one, (state, out))


def copy(method: Method, state: State, rows, source):
    """The rows with some of them made what another one is."""
    again = jnp.broadcast_to(source, rows.shape)

    def put(x):
        return x.at[rows].set(x[again])

    cache = method.place(state.cache, rows, state.cache, again)
    return State(cache, put(state.token), put(state.seen))


def _advance(method: Method, net, state: State, ways: Ways, active):
    """One token: reads the last drawn one, draws the next."""
    token, active_rows = (jax.sharding.reshard(x, ROWS) for x in (state.token, active))
    logits, cache = method.step(net, state.cache, token, active_rows)
    logits = jax.sharding.reshard(logits, jax.P())
    return _draw(state._replace(cache=cache), ways, logits, active)


def _draw(state: State, ways: Ways, logits, active, forced=None):
    """Draws from logits [B, V] where `active`."""
    count = jax.sharding.reshard(state.cache.count - state.cache.begin, jax.P())
    drawn = sample.sample(logits, ways.sampling, state.seen, count, ways.silent)[ways.leader]
    if forced is not None:
        drawn = jnp.where(forced >= 0, forced, drawn)
    token = jnp.where(active, drawn, state.token)
    seen = state.seen.at[jnp.arange(len(token)), token].set(True)
    none = jnp.zeros((len(token), TOP), jnp.int32), jnp.zeros((len(token), TOP))
    top = jax.lax.cond(ways.top, lambda: sample.most_probable(logits), lambda: none)
    return State(state.cache, token, seen), Drawn(token, sample.logprob_of(logits, token), *top)
