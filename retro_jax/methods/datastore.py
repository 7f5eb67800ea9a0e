"""A datastore of the language model's own states: an index of keys, and the token after each.

A key is what the last feed-forward reads of a token of the database, in one pass over the database in sequences of
train.length.

    B sequences, L tokens, D width, N keys
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.methods.method import Method
from retro_jax.model import decoder
from retro_jax.model.layers import by_rows, gather
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

_RECENT = 8  # searches that are remembered
_COMPARED = 2**24  # distances that are held at a time
_FLAT, _SHARD = 20_000, 4_000_000  # keys that are compared one by one; keys of an index


def read(net: decoder.Decoder, tokens):
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


class Known(NamedTuple):
    """A datastore that was searched already."""

    found: tuple

    def search(self, queries, k: int):
        """What was found."""
        return self.found


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

    def __len__(
        self,
    ) -> int:  # so that an empty one is false, and its method the language model alone
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
        return tuple(by_rows(x) for x in found)

    @classmethod
    def of(cls, work: WorkDir, method: Method, k: int, tokens: int = 0) -> "Store":
        """The datastore of a working directory, made if it is not there.

        Args:
          k: states that are asked for. tokens: of the database, whose states are kept; 0: of all.

        Raises:
          UserError: the language model is not trained.
        """
        e, out = work.experiment, work.datastore(method.name)
        trained = check_trained(work, method)
        chunks = work.prepared(f"chunks/{recipe.database_split(e)}")
        settings = {"train.length": e.train.length, "evaluate.checkpoint": e.evaluate.checkpoint}
        # The index is tuned for k.
        settings |= {
            f"method_settings.{method.name}.{n}": v for n, v in (("k", k), ("tokens", tokens))
        }
        with work.lock("datastore"):
            made = functools.partial(_make, work, method, k, tokens)
            artefact.renew(out, settings, [trained, chunks], made)
        index = out / "index"
        index = ShardedIndex(index) if index.exists() else Flat(np.load(out / "keys.npy"))
        return cls(index, np.load(out / "values.npy"))


def _make(work: WorkDir, method: Method, k: int, tokens: int, out: Path) -> dict:
    """Writes values, and keys or an index of them, which has its own."""
    e = work.experiment
    prepared = Prepared(work)
    table, count = prepared.database, 0
    room = len(table) * table.chunk
    share = min(1.0, tokens / room) if tokens else 1.0
    aside, values = out / "all.npy", np.zeros(room, np.int32)
    keys = np.lib.format.open_memmap(aside, "w+", np.float16, (room, method.model.decoder.d))
    mesh = sharding.make_mesh(e.mesh)
    with (
        jax.set_mesh(mesh),
        progress.bar("states of the database", int(share * len(table))) as advance,
    ):
        params = restore_trained(work, method, mesh)
        forward = jax.jit(lambda p, t: read(decoder.decoder(method.model, p), t)[0])
        for ids, documents in _sequences(e, table, share):
            given = sharding.shard_batch(mesh, {"x": ids})["x"]
            fed = np.asarray(forward(params, given))
            here = (ids != PAD) & (documents >= 0)
            keep = here[:, :-1] & here[:, 1:] & (documents[:, :-1] == documents[:, 1:])
            n = int(keep.sum())
            keys[count : count + n] = fed[:, :-1][keep]
            values[count : count + n] = ids[:, 1:][keep]
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
            recall = division.build(keys[:count], out / "index", r, Given(k))["recall"]
    aside.unlink()
    return {"states": count, "recall": recall}


def _sequences(e: Experiment, table, share: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of the tokens of a chunk table [B, L], and the document of each, -1 for what fills up.

    share: of its sequences those at even distances.
    """
    size, chunks = e.evaluate.batch, e.chunks
    every = enumerate(sequences.cuts(table, "train", chunks, chunks))
    cuts = (rows for i, (rows, _) in every if not i or int(i * share) > int((i - 1) * share))
    while batch := list(itertools.islice(cuts, size)):
        rows = np.full((size, chunks), -1)
        rows[: len(batch)] = batch
        tokens = table.rows(rows.reshape(-1)).reshape(size, -1).astype(np.int32)
        documents = np.where(rows < 0, -1, np.asarray(table.document)[np.maximum(rows, 0)])
        yield (
            np.where(documents.repeat(table.chunk, 1) < 0, PAD, tokens),
            documents.repeat(table.chunk, axis=1),
        )
