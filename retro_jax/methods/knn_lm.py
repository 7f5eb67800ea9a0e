"""kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172): what followed where the language model was in a similar state.

    p(y) = (1 - weight) p_LM(y) + weight q(y)
    q(y) = sum over the k nearest (key, value) of 1[value = y] softmax(-distance / temperature)

A key is what the last feed-forward reads of a token of the database, its value the token after it; a distance is
squared L2. The datastore is made of one pass over the database in sequences of train.length, once the language
model is trained. Documents that are held out are never in the database; a document of the database that is scored
would find itself.
"""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.config.fields import require, require_at_least, require_share, setting
from retro_jax.methods.language_model import LanguageModel
from retro_jax.model import decode
from retro_jax.model.layers import ROWS, gather
from retro_jax.model.retro import PAD
from retro_jax.pipeline import recipe, sequences
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval import division
from retro_jax.retrieval.index import Found, Given, nothing
from retro_jax.retrieval.indexes.scann import library
from retro_jax.retrieval.sharded import ShardedIndex
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.train import sharding
from retro_jax.train.restore import check_trained, restore_trained

_OF = "method_settings.knn_lm."
_NONE = -1e30  # the logarithm of a weight of 0
_BLOCK = 256  # tokens whose logits are held at a time
_RECENT = 8  # searches that are remembered: one for each device that scores at the same time
_COMPARED = 2**24  # distances that are held at a time
_FLAT, _SHARD = 20_000, 4_000_000  # keys that are compared one by one; keys of an index


class _Known(NamedTuple):
    """A datastore that was searched already."""

    found: tuple

    def search(self, queries, k: int):
        """What was found."""
        return self.found


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.knn_lm.*`."""

    k: int = setting(256, "nearest states of the database that count for a token")
    weight: float = setting(0.1, "lambda, of what they say; the rest is the language model's")
    temperature: float = setting(10.0, "of their weights: softmax(-distance / temperature)")

    def __post_init__(self):
        require_at_least(1, _OF, self, "k")
        require_share(_OF, self, "weight")
        require(self.temperature > 0, f"{_OF}temperature", self.temperature, "must be above 0")


class KnnLm(LanguageModel):
    """The language model, mixed with what followed the nearest states of the database, anew at every token.

    Before `prepare` has opened its datastore it is the language model alone.
    """

    name = "knn_lm"
    meaning = "what followed the nearest of the language model's own states in the database"
    Settings = Settings
    weights_of = "language_model"
    _store = None

    @property
    def random(self) -> "KnnLm":
        """The same with the values of the datastore permuted."""
        other = copy.copy(self)
        other._store = self._store and self._store.permuted()
        return other

    def prepare(self, work: WorkDir):
        """Makes the datastore, and opens it."""
        self._store = self._store or Store.of(work, self)

    def choices(self) -> list[Settings]:
        """Its own settings first; k, weight and temperature around what the paper's authors and others found."""
        fewer = [k for k in (8, 32, 128) if k < self.settings.k]
        grid = itertools.product((*fewer, self.settings.k), _WEIGHTS, _TEMPERATURES)
        return [self.settings, *(Settings(*values) for values in grid)]

    # Scoring.

    def jitted(self, name: str, **fixed) -> Callable:
        """Two programs, with the search between them: a program of several devices on a CPU whose callbacks search may
        wait for itself for ever."""
        if not self._store:
            return super().jitted(name, **fixed)
        states = jax.jit(lambda p, t: read(decode.decoder(self.model, p), t)[0][:, :-1])

        def of_found(params, tokens, found):
            other = copy.copy(self)
            other._store = _Known(found)
            return getattr(other, name)(params, tokens, None, **fixed)

        program = jax.jit(of_found)

        def score(params, tokens, retrieved=None):
            found = self._store.find(np.asarray(states(params, tokens)), self.settings.k)
            where = getattr(tokens, "sharding", None)
            return program(params, tokens, jax.device_put(found, where) if where else found)

        return score

    def logprobs(self, params: dict, tokens, retrieved=None):
        """log p of each token [B, L]."""
        if not self._store:
            return super().logprobs(params, tokens)
        return self._tried(params, tokens, [self.settings])[..., 0]

    def tried(self, params: dict, tokens, retrieved=None):
        """log p of each token under each of `choices` [B, L, A]."""
        return self._tried(params, tokens, self.choices())

    def _tried(self, params: dict, tokens, choices: list[Settings]):
        fed, h, model = read(decode.decoder(self.model, params), tokens)
        values, distances = self._store.search(fed[:, :-1], self.settings.k)
        targets = tokens[:, 1:]

        def of(h, targets):
            return model.logit_of(h, targets) - jax.nn.logsumexp(model.logits(h), axis=-1)

        own = _blocks(of, h[:, :-1], targets)
        same = values == targets[..., None]

        def near(k: int, temperature: float):
            weights = _weights(distances, k, temperature)
            return jax.nn.logsumexp(jnp.where(same, weights, _NONE), axis=-1)

        known = functools.cache(near)
        mixed = [_mixed(own, known(c.k, c.temperature), distances, c.weight) for c in choices]
        return jnp.pad(jnp.stack(mixed, axis=-1), ((0, 0), (1, 0), (0, 0)))

    def scores(self, params: dict, tokens, retrieved=None, never: tuple[int, ...] = ()):
        """And whether each is the most probable one."""
        if not self._store:
            return super().scores(params, tokens, None, never)
        fed, h, model = read(decode.decoder(self.model, params), tokens)
        found = self._store.search(fed[:, :-1], self.settings.k)

        def of(h, values, distances, targets):
            mixed = self._mixture(model.logits(h), values, distances)
            ids = jnp.arange(mixed.shape[-1])
            rivals = jnp.where(jnp.isin(ids, jnp.array(never, int)), -jnp.inf, mixed)
            return _at(mixed, targets), rivals.argmax(axis=-1) == targets

        out = _blocks(of, h[:, :-1], *found, tokens[:, 1:])
        return tuple(jnp.pad(x, ((0, 0), (1, 0))) for x in out)

    def _mixture(self, logits, values, distances):
        """log of the mixture [..., V], of logits [..., V] and what was found [..., k]."""
        s, vocab = self.settings, logits.shape[-1]
        logits = _by_rows(logits)
        weights = jnp.exp(_weights(distances, s.k, s.temperature))

        def add(values, weights):
            return jnp.zeros(vocab).at[values].add(weights)

        for _ in range(values.ndim - 1):
            add = jax.vmap(add)
        near = jnp.log(jnp.maximum(add(values, weights), jnp.exp(-80.0)))
        return _mixed(jax.nn.log_softmax(logits), near, distances[..., None, :], s.weight)

    # Generation.

    def prefill(self, net, state, tokens, count, retrieved):
        """See `decode.prefill`; the logits are the mixture's logarithms."""
        logits, state = super().prefill(net, state, tokens, count, retrieved)
        return self._looked_up(logits, state), state

    def step(self, net, state, tokens, fresh=None, active=None):
        """See `decode.step`; the logits are the mixture's logarithms."""
        logits, state = super().step(net, state, tokens, fresh, active)
        return self._looked_up(logits, state), state

    def _looked_up(self, logits, state):
        if not self._store:
            return logits
        return self._mixture(logits, *self._store.search(state.fed, self.settings.k))


_WEIGHTS, _TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4), (1.0, 3.0, 10.0, 30.0, 100.0)


def read(net: decode.Decoder, tokens):
    """The language model's pass over sequences [B, L]: what its last feed-forward reads [B, L, D] float32, what its
    readout reads [B, L, D], and the network."""
    model = net.model
    c, dtype = model.config.decoder, jnp.dtype(model.config.dtype)
    h, real = model.embed(gather(model.embedding, dtype), tokens), tokens != PAD
    if c.positions == "learned":
        h = h + gather(model.positions, dtype)[: tokens.shape[1]]
    for block in net.blocks:
        before = h
        h = block.attended(h, real, None, False)[0]
        fed = block.fed(before, h)
        h = h + block.feed_forward(fed)
    return fed.astype(jnp.float32), model.norm(h), model


def _weights(distances, k: int, temperature: float):
    """log softmax(-distance / temperature) of the first k [..., k]; of what was not found a weight of 0."""
    counts = jnp.isfinite(distances) & (jnp.arange(distances.shape[-1]) < k)
    score = jnp.where(counts, -distances / temperature, _NONE)
    return jnp.where(counts, jax.nn.log_softmax(score), _NONE)


def _mixed(own, near, distances, weight: float):
    """log((1 - weight) p + weight q), of log p and log q; p alone where nothing was found."""
    both = jnp.logaddexp(jnp.log1p(-weight) + own, jnp.log(jnp.maximum(weight, 1e-30)) + near)
    return jnp.where(jnp.isfinite(distances).any(axis=-1), both, own)


def _at(logp, targets):
    return jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]


def _by_rows(x):
    """Over the mesh by its first axis alone."""
    return jax.sharding.reshard(x, jax.P(ROWS[0], *(None,) * (x.ndim - 1)))


def _blocks(function, *arrays):
    """`function` of blocks of the second axis, so that no [B, L, V] array exists."""
    size = arrays[0].shape[1]
    made = [function(*(x[:, i : i + _BLOCK] for x in arrays)) for i in range(0, size, _BLOCK)]
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *made)


class Flat:
    """Exact search of few keys [N, D] without JAX, which a callback of a JAX program must not call: on a CPU both would
    wait for the same threads."""

    def __init__(self, keys: np.ndarray):
        self._keys = keys.astype(np.float32)
        self._norms = (self._keys**2).sum(axis=1)

    def search(self, queries: np.ndarray, k: int) -> Found:
        """See `Index.search`."""
        ids, distances = nothing(len(queries), k)
        found = min(k, len(self._keys))
        block = max(1, _COMPARED // max(1, len(self._keys)))
        for at in (slice(i, i + block) for i in range(0, len(queries) * bool(found), block)):
            near = self._norms - 2 * queries[at] @ self._keys.T
            best = np.argpartition(near, found - 1, axis=1)[:, :found]
            exact = ((queries[at][:, None] - self._keys[best]) ** 2).sum(axis=-1)
            order = np.argsort(exact, axis=1, kind="stable")
            ids[at, :found] = np.take_along_axis(best, order, axis=1)
            distances[at, :found] = np.take_along_axis(exact, order, axis=1)
        return ids, distances


class Store:
    """The datastore: an index of keys, and the token after each.

    Args:
      index: of the keys [N, D]. values: [N] int32.
    """

    def __init__(self, index: Flat | ShardedIndex, values: np.ndarray):
        self._index, self._values = index, values
        self._recent: dict[tuple, Found] = {}  # the last searches: random values ask the same again

    def __len__(self) -> int:
        return len(self._values)

    def permuted(self) -> "Store":
        """The same keys, each with the value of another."""
        other = Store(self._index, np.random.default_rng(0).permutation(self._values))
        other._recent = self._recent
        return other

    def find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest: queries [..., D] -> values [..., k] int32 and distances [..., k] float32, PAD and +inf where
        there are fewer."""
        flat = np.ascontiguousarray(queries, np.float32).reshape(-1, queries.shape[-1])
        ids, distances = self._search(flat, k)
        values = np.where(ids < 0, PAD, self._values[np.maximum(ids, 0)]).astype(np.int32)
        lead = (*queries.shape[:-1], k)
        return values.reshape(lead), distances.reshape(lead)

    def _search(self, queries: np.ndarray, k: int) -> Found:
        key = k, queries.shape, queries.tobytes()
        found = self._recent.get(key)
        if found is None:
            for old in list(self._recent)[:-_RECENT]:
                self._recent.pop(old, None)
            found = self._recent[key] = self._index.search(queries, k)
        return found

    def search(self, queries, k: int):
        """As `find`, inside a program of one device, as generation is: queries [B, ..., D]."""
        if jax.typeof(queries).sharding.mesh.size > 1:
            raise ValueError("a datastore is searched in programs of one device; use `jitted`")
        lead = (*queries.shape[:-1], k)
        kinds = jax.ShapeDtypeStruct(lead, jnp.int32), jax.ShapeDtypeStruct(lead, jnp.float32)
        found = jax.pure_callback(lambda q: self.find(np.asarray(q), k), kinds, queries)
        return tuple(_by_rows(x) for x in found)

    @classmethod
    def of(cls, work: WorkDir, method: KnnLm) -> "Store":
        """The datastore of a working directory, made if it is not there.

        Raises:
          UserError: the language model is not trained.
        """
        e, out = work.experiment, work.datastore(method.name)
        trained = check_trained(work, method)
        chunks = work.prepared(f"chunks/{recipe.database_split(e)}")
        settings = {"train.length": e.train.length, "evaluate.checkpoint": e.evaluate.checkpoint}
        settings[f"{_OF}k"] = method.settings.k  # for which the index is tuned
        with work.lock("datastore"):
            made = functools.partial(_make, work, method)
            artefact.renew(out, settings, [trained, chunks], made)
        index = out / "index"
        index = ShardedIndex(index) if index.exists() else Flat(np.load(out / "keys.npy"))
        return cls(index, np.load(out / "values.npy"))


def _make(work: WorkDir, method: KnnLm, out: Path) -> dict:
    """Writes values, and keys or an index of them, which has its own."""
    e = work.experiment
    prepared = Prepared(work)
    table, count = prepared.database, 0
    room = len(table) * table.chunk
    aside, values = out / "all.npy", np.zeros(room, np.int32)
    keys = np.lib.format.open_memmap(aside, "w+", np.float16, (room, method.model.decoder.d))
    mesh = sharding.make_mesh(e.mesh)
    with jax.set_mesh(mesh), progress.bar("states of the database", len(table)) as advance:
        params = restore_trained(work, method, mesh)
        forward = jax.jit(lambda p, t: read(decode.decoder(method.model, p), t)[0])
        for tokens, documents in _sequences(e, table):
            given = sharding.shard_batch(mesh, {"x": tokens})["x"]
            fed = np.asarray(forward(params, given))
            here = (tokens != PAD) & (documents >= 0)
            keep = here[:, :-1] & here[:, 1:] & (documents[:, :-1] == documents[:, 1:])
            n = int(keep.sum())
            keys[count : count + n] = fed[:, :-1][keep]
            values[count : count + n] = tokens[:, 1:][keep]
            count += n
            advance(int((documents >= 0).sum()) // table.chunk)
    np.save(out / "values.npy", values[:count])
    recall = 1.0
    if count < _FLAT or library() is None:
        np.save(out / "keys.npy", keys[:count])
    else:
        (out / "index").mkdir(exist_ok=True)
        r = dataclasses.replace(e.retrieval, index="scann", index_shard=_SHARD, settings={})
        with progress.bar("index of states", None):
            recall = division.build(keys[:count], out / "index", r, Given(method.settings.k))[
                "recall"
            ]
    aside.unlink()
    return {"states": count, "recall": recall}


def _sequences(e: Experiment, table) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of all tokens of a chunk table [B, L], and the document of each, -1 for what fills up."""
    size, chunks = e.evaluate.batch, e.chunks
    cuts = (rows for rows, _ in sequences.cuts(table, "train", chunks, chunks))
    while batch := list(itertools.islice(cuts, size)):
        rows = np.full((size, chunks), -1)
        rows[: len(batch)] = batch
        tokens = table.rows(rows.reshape(-1)).reshape(size, -1).astype(np.int32)
        documents = np.where(rows < 0, -1, np.asarray(table.document)[np.maximum(rows, 0)])
        yield (
            np.where(documents.repeat(table.chunk, 1) < 0, PAD, tokens),
            documents.repeat(table.chunk, axis=1),
        )
