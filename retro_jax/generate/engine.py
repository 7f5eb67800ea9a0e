"""The rows that are decoded together on the device: prompts come in, tokens come out, a segment at a time.

    B rows, J tokens that a row can have, K neighbours, R retrieved length, V vocabulary

Everything has a fixed shape, so that a whole generation is a handful of programs: a prompt's pass (one for
each of a few lengths), a row's coming in and going, a segment of up to SEGMENT tokens, and the reading of
new neighbours (one for each power of two rows). Retrieval happens between their calls, on the host; rows that
wait for it stay where they are while the others go on.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.corpus.tokenizer import BOS, PAD
from retro_jax.generate import programs
from retro_jax.generate.programs import Drawn, Ways
from retro_jax.generate.sample import Sampling
from retro_jax.methods.method import Method, Retrieved
from retro_jax.model.cache import Fresh
from retro_jax.train import sharding

GREEDY = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "penalty": 1, "seed": 0}


class Engine:
    """B rows on one device.

    Args:
      method, params: the network (methods/method.py): its weights, or a function that returns them and keeps no
        reference, so that memory holds them once.
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
        self._by_chunk, self.refills = method.by_chunk, method.refills and k > 0
        self.length = -(-length // model.reading.chunk) * model.reading.chunk
        sharding.keep_memory()  # without, reading new neighbours takes half as long again
        self.mesh = sharding.one_device()
        # Leaves and structure apart: an nnx module takes long to flatten at every call.
        with jax.set_mesh(self.mesh):
            placed = _placed(method, params() if callable(params) else dict(params), self.mesh)
            vocab = placed["embedding"].shape[0]
            self._leaves, structure = jax.tree.flatten(method.decoder(placed))
            start = jax.jit(_on(programs.start, method, structure), static_argnums=(1, 2, 3, 4))
            self._state = start(self._leaves, rows, self.length, k, vocab)

        def bound(function):
            return _on(function, method, structure)

        self._prefill = jax.jit(bound(programs.prefill), static_argnums=(1, 2))
        self._admit = jax.jit(functools.partial(programs.admit, method), donate_argnums=0)
        self._free = jax.jit(functools.partial(programs.free, method), donate_argnums=0)
        self._read = jax.jit(bound(programs.read), donate_argnums=1)
        self._segment = jax.jit(bound(programs.segment), donate_argnums=1)
        self._copy = jax.jit(functools.partial(programs.copy, method), donate_argnums=0)
        self._params_of = jax.jit(bound(lambda method, net: method.params_of(net)))
        self._sampling = {n: np.full(rows, v, _DTYPES[n]) for n, v in GREEDY.items()}
        self._leader, self._top = np.arange(rows, dtype=np.int32), np.zeros(rows, bool)
        # Rows that stood still in a step since they last drew a token.
        self._shown = np.zeros(rows, bool)
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
        jitted = (self._prefill, self._admit, self._free, self._read, self._segment, self._copy)
        return sum(f._cache_size() for f in jitted)

    def compilations(self) -> list[Callable[[], None]]:
        """What compiles all that any request can need, one call for each shape, the soonest needed first; rows that
        hold something lose it, and none holds anything afterwards."""
        m = self.model.reading.chunk
        none = Retrieved(*(np.zeros((0, 0)),) * 2)
        sizes = {m * self._read_as(n) for n in range(1, self.length // m + 1)}

        def admit(n: int, alone: bool):
            self.admit(0, np.full(n, BOS, np.int32), none, alone=alone)
            self.free(0)

        made = [lambda: self.advance(np.zeros(self.rows, np.int32))]
        made += [
            functools.partial(admit, n, alone)
            for n in sorted(sizes)
            for alone in ((False, True) if self._by_chunk and self.k else (False,))
        ]
        if self.k:
            for n in sorted({min(self.rows, 1 << i) for i in range(self.rows.bit_length() + 1)}):
                near = {row: self.no_neighbours() for row in range(n)}
                made.append(lambda near=near: self.read(near))
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

    def free(self, row: int):
        """Empties a row: nothing is drawn or reported for it any more, and no step reads its places."""
        self.set(row)
        with jax.set_mesh(self.mesh):
            self._state = self._free(self._state, np.int32(row))

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
        chunks = self._read_as(-(-n // m))
        padded = np.full((1, chunks * m), PAD, np.int32)
        padded[0, :n] = tokens
        near = [np.repeat(x[None, None], chunks, axis=1) for x in self.no_neighbours()]
        if alone and self._by_chunk:
            near = [x[:, :, :0] for x in near]
        elif found := len(neighbours.tokens):
            for filled, x in zip(near, neighbours):
                filled[0, :found] = x
        self._shown[row] = False
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

    def _read_as(self, chunks: int) -> int:
        """As how many chunks a prompt of so many is read: 1, 2, 4, 6, 8, 12, 16, 24 and so on. Each takes a program of
        its own, and from 5 chunks on at most a third is padding."""
        size = 1 << (chunks - 1).bit_length()
        if size > 4 and 4 * chunks <= 3 * size:
            size = 3 * size // 4
        return min(self.length // self.model.reading.chunk, size)

    def advance(self, steps: np.ndarray) -> Drawn:
        """Has rows read what they drew and draw on.

        Args:
          steps: [B] how many tokens each row goes on, at most SEGMENT.

        Returns:
          What was drawn [max(steps), B]; of a row its first `steps` are.
        """
        n = int(steps.max())
        return _fetch(self._go(steps, n), n)

    def _go(self, steps: np.ndarray, n: int) -> Drawn:
        steps = np.asarray(steps, np.int32)
        if n:
            self._shown = steps < n
        with jax.set_mesh(self.mesh):
            given = self._leaves, self._state, self._now(), steps, np.int32(n)
            self._state, drawn = self._segment(*given)
            return drawn

    def show(self, rows: list[int]):
        """Makes one step in which all rows stand still, unless these had one since they last drew a token. `read` needs
        it."""
        if not self._shown[rows].all():
            self._go(np.zeros(self.rows), 1)

    def read(self, fresh: dict[int, Retrieved]):
        """Has rows read new neighbours, [K, R] and [K], from their next token on."""
        # As many as a power of two; the last one is named again.
        rows = list(fresh)
        self.show(rows)
        rows += rows[-1:] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
        tokens, distances = (np.stack(x) for x in zip(*(fresh[row] for row in rows)))
        near = Fresh(np.array(rows, np.int32), tokens.astype(np.int32), distances)
        with jax.set_mesh(self.mesh):
            self._state = self._read(self._leaves, self._state, near)

    def copy(self, rows: list[int], source: int):
        """Makes rows what another one is."""
        self._shown[rows] = self._shown[source]
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
