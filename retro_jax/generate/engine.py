"""The rows that are decoded together on the device: prompts come in, tokens come out, a segment at a time.

    B rows, J tokens that a row can have, K neighbours, R retrieved length, V vocabulary

Everything has a fixed shape, so that a whole generation is a handful of programs: a prompt's pass (one for
each power of two chunks), a row's coming in, a segment of up to SEGMENT tokens, and one step with new
neighbours (one for each power of two rows that read anew). Retrieval happens between their calls, on the
host; rows that wait for it stay where they are while the others go on.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.corpus.tokenizer import BOS, PAD
from retro_jax.generate import sample
from retro_jax.generate.sample import TOP, Sampling
from retro_jax.methods.method import Method, Retrieved
from retro_jax.model.cache import Fresh
from retro_jax.model.layers import ROWS, by_rows
from retro_jax.train import sharding

SEGMENT = 16  # tokens between two looks of the host, at most
GREEDY = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "penalty": 1, "seed": 0}


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


class Engine:
    """B rows on one device.

    Args:
      method, params: the network (methods/method.py): its weights, or what gives them and keeps none, so that memory
        holds them once.
      rows: B. length: J; rounded up to whole chunks. k: K; 0 is the language model alone.
      silent: which tokens are never drawn [V] bool.
    """

    def __init__(
        self,
        method: Method,
        params: dict | Callable[[], dict],
        rows: int,
        length: int,
        k: int,
        silent: np.ndarray,
    ):
        model = method.model
        self.model, self.rows, self.k = model, rows, k
        self._by_chunk = method.by_chunk
        self.length = -(-length // model.reading.chunk) * model.reading.chunk
        sharding.keep_memory()  # without, a step with new neighbours takes half as long again
        self.mesh = sharding.one_device()
        # Leaves and structure apart: an nnx module takes long to flatten at every call.
        with jax.set_mesh(self.mesh):
            placed = _placed(method, params() if callable(params) else dict(params), self.mesh)
            vocab = placed["embedding"].shape[0]
            self._leaves, structure = jax.tree.flatten(method.decoder(placed))
            start = jax.jit(_on(_start, method, structure), static_argnums=(1, 2, 3, 4))
            self._state = start(self._leaves, rows, self.length, k, vocab)

        def bound(function):
            return _on(function, method, structure)

        self._prefill = jax.jit(bound(_prefill), static_argnums=(1, 2))
        self._admit = jax.jit(functools.partial(_admit, method), donate_argnums=0)
        self._step = jax.jit(bound(_step), donate_argnums=1)
        self._segment = jax.jit(bound(_segment), donate_argnums=1)
        self._copy = jax.jit(functools.partial(_copy, method), donate_argnums=0)
        self._params_of = jax.jit(bound(lambda method, net: method.params_of(net)))
        self._sampling = {n: np.full(rows, v, _DTYPES[n]) for n, v in GREEDY.items()}
        self._leader, self._top = np.arange(rows, dtype=np.int32), np.zeros(rows, bool)
        self._silent = silent
        self._ways = None

    def params(self) -> dict[str, jax.Array]:
        """The weights by name, as `Method.scores` takes them: a copy that is made at each call."""
        with jax.set_mesh(self.mesh):
            return self._params_of(self._leaves)

    def state_bytes(self) -> int:
        """What is held of the rows, in bytes."""
        return sum(x.nbytes for x in jax.tree.leaves(self._state))

    def programs(self) -> int:
        """How many programs have been compiled."""
        jitted = (self._prefill, self._admit, self._step, self._segment, self._copy)
        return sum(f._cache_size() for f in jitted)

    def compilations(self) -> list[Callable[[], None]]:
        """What compiles all that any request can need, one call for each shape; rows that hold something lose it."""
        m, still = self.model.reading.chunk, np.zeros(self.rows, np.int32)
        none = Retrieved(*(np.zeros((0, 0)),) * 2)
        sizes = {min(self.length, m << i) for i in range(self.length.bit_length())}
        made = [
            lambda n=n, alone=alone: self.admit(0, np.full(n, BOS, np.int32), none, alone=alone)
            for n in sorted(sizes)
            for alone in ((False, True) if self._by_chunk and self.k else (False,))
        ]
        made.append(lambda: self.advance(still))
        if self.k:
            for n in sorted({min(self.rows, 1 << i) for i in range(self.rows.bit_length() + 1)}):
                near = {row: self.no_neighbours() for row in range(n)}
                made.append(lambda near=near: self.advance(still, near))
        for n in range(1, min(self.k + 1, self.rows)):
            made.append(lambda n=n: self.copy(list(range(n)), 0))
        return made

    def no_neighbours(self) -> Retrieved:
        """Of one look-up: all missing."""
        tokens = np.full((self.k, self.model.reading.retrieved), PAD, np.int32)
        return Retrieved(tokens, np.full(self.k, np.inf, np.float32))

    def set(self, row: int, sampling: dict | None = None, leader: int | None = None, top=False):
        """How a row goes on from now on: as GREEDY, but for what `sampling` has; the tokens those of
        another row; with the most probable tokens reported."""
        for name, value in (GREEDY | (sampling or {})).items():
            self._sampling[name][row] = value
        self._leader[row] = row if leader is None else leader
        self._top[row], self._ways = top, None

    def admit(
        self,
        row: int,
        tokens: np.ndarray,
        neighbours: Retrieved,
        forced: int = -1,
        alone: bool = False,
    ) -> Drawn:
        """Reads a prompt into a row, whatever was there, and draws its first token.

        Args:
          tokens: [n], n <= J, PAD before the first where chunks are to end elsewhere.
          neighbours: of every complete chunk, [n // M, K, R] and [n // M, K].
          forced: the token to go on with instead of the one drawn. alone: no neighbours will be asked for, so that a
            method that reads by its prompt needs no room for them.
        """
        m, n = self.model.reading.chunk, len(tokens)
        chunks = min(self.length // m, 1 << (-(-n // m) - 1).bit_length())
        padded = np.full((1, chunks * m), PAD, np.int32)
        padded[0, :n] = tokens
        near = [np.repeat(x[None, None], chunks, axis=1) for x in self.no_neighbours()]
        if alone and self._by_chunk:
            near = [x[:, :, :0] for x in near]
        elif found := len(neighbours.tokens):
            for filled, x in zip(near, neighbours):
                filled[0, :found] = x
        # The row's own reading of BOS and PAD is no text, and can be drawn no more than any.
        with jax.set_mesh(self.mesh):
            count = np.array([n], np.int32)
            logits, cache = self._prefill(
                self._leaves, self.length, self.k, padded, count, Retrieved(*near)
            )
            self._state, drawn = self._admit(
                self._state, self._now(), cache, logits, np.int32(row), padded, np.int32(forced)
            )
            return _fetch(drawn)

    def advance(self, steps: np.ndarray, fresh: dict[int, Retrieved] | None = None) -> Drawn:
        """Has rows read what they drew and draw on.

        Args:
          steps: [B] how many tokens each row goes on, at most SEGMENT; with `fresh` 0 or 1.
          fresh: the neighbours, [K, R] and [K], of the rows that read anew with their next token.

        Returns:
          What was drawn [max(steps), B]; of a row its first `steps` are.
        """
        steps = np.asarray(steps, np.int32)
        with jax.set_mesh(self.mesh):
            if not fresh:
                n = int(steps.max())
                self._state, drawn = self._segment(
                    self._leaves, self._state, self._now(), steps, np.int32(n)
                )
                return _fetch(drawn, n)
            # As many as a power of two; the last one is named again.
            rows = list(fresh)
            rows += rows[-1:] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
            tokens, distances = (np.stack(x) for x in zip(*(fresh[row] for row in rows)))
            read = Fresh(np.array(rows, np.int32), tokens.astype(np.int32), distances)
            self._state, drawn = self._step(self._leaves, self._state, self._now(), steps > 0, read)
            return _fetch(drawn)

    def copy(self, rows: list[int], source: int):
        """Makes rows what another one is."""
        with jax.set_mesh(self.mesh):
            self._state = self._copy(self._state, np.array(rows, np.int32), np.int32(source))

    def _now(self) -> Ways:
        if self._ways is None:
            made = Ways(Sampling(**self._sampling), self._leader, self._top.any(), self._silent)
            self._ways = jax.tree.map(jnp.array, made)  # a copy: the host's will change
        return self._ways


_DTYPES = dict.fromkeys(GREEDY, np.float32) | {"top_k": np.int32, "seed": np.uint32}


def _fetch(drawn, n: int = 1) -> Drawn:
    return Drawn(*(np.asarray(x)[:n] for x in jax.device_get(drawn)))


def _on(function, method: Method, structure):
    """The function of a method, a network and more, as one of the network's leaves and more."""
    return lambda leaves, *rest: function(method, jax.tree.unflatten(structure, leaves), *rest)


def _placed(method: Method, params: dict, mesh: jax.sharding.Mesh) -> dict:
    """Weights from wherever they come, on the mesh as the network has them; the dict is left empty."""
    like = jax.eval_shape(lambda: method.init(params["embedding"].shape[0], 0))
    where = sharding.shapes_on(mesh, like)
    return {name: jax.device_put(params.pop(name), where[name].sharding) for name in list(params)}


def _start(method: Method, net, rows: int, length: int, k: int, vocab: int) -> State:
    token, seen = jnp.full(rows, PAD, jnp.int32), jnp.zeros((rows, vocab), bool)
    return State(method.start(net, rows, length, k), token, seen)


def _prefill(method: Method, net, length: int, k: int, tokens, count, near):
    cache = method.start(net, 1, length, k)
    return method.prefill(net, cache, *jax.tree.map(by_rows, (tokens, count, near)))


def _admit(method: Method, state: State, ways: Ways, cache, logits, row, tokens, forced):
    moved = method.place(state.cache, row[None], cache, jnp.zeros(1, jnp.int32))
    held = jnp.zeros(state.seen.shape[1], bool).at[tokens[0]].set(True)
    state = State(moved, state.token, state.seen.at[row].set(held))
    logits = jax.sharding.reshard(logits, jax.P())
    every = jnp.zeros((len(state.token), logits.shape[1]), logits.dtype).at[row].set(logits[0])
    alone = jnp.arange(len(state.token)) == row
    state, drawn = _draw(state, ways._replace(leader=jnp.arange(len(alone))), every, alone, forced)
    return state, jax.tree.map(lambda x: x[None], drawn)


def _step(method: Method, net, state: State, ways: Ways, active, fresh: Fresh):
    fresh = jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P(ROWS[0])), fresh)
    state, drawn = _advance(method, net, state, ways, fresh, active)
    return state, jax.tree.map(lambda x: x[None], drawn)


def _segment(method: Method, net, state: State, ways: Ways, steps, n):
    b = len(state.token)
    out = Drawn(
        jnp.zeros((SEGMENT, b), jnp.int32),
        jnp.zeros((SEGMENT, b)),
        jnp.zeros((SEGMENT, b, TOP), jnp.int32),
        jnp.zeros((SEGMENT, b, TOP)),
    )

    def one(i, carry):
        state, drawn = _advance(method, net, carry[0], ways, None, i < steps)
        return state, jax.tree.map(lambda kept, x: kept.at[i].set(x), carry[1], drawn)

    return jax.lax.fori_loop(0, n, one, (state, out))


def _advance(method: Method, net, state: State, ways: Ways, fresh, active):
    """One token: reads the last drawn one, draws the next."""
    token, active_rows = (jax.sharding.reshard(x, ROWS) for x in (state.token, active))
    logits, cache = method.step(net, state.cache, token, fresh, active_rows)
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


def _copy(method: Method, state: State, rows, source):
    again = jnp.broadcast_to(source, rows.shape)

    def put(x):
        return x.at[rows].set(x[again])

    cache = method.place(state.cache, rows, state.cache, again)
    return State(cache, put(state.token), put(state.seen))
