"""REPLUG-LSR whole (Shi et al. 2023, arXiv 2301.12652, section 4): an encoder of queries and documents is trained, and
the index is made again while it is.

The encoder (dual_encoder.py) begins as an imitation of the retriever that was prepared. A round looks the candidates of
training chunks up, asks the language model how probable each makes what follows, trains, and makes the index again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import optax

from retro_jax import progress
from retro_jax.config import RetrievalConfig
from retro_jax.config.fields import require_at_least, setting
from retro_jax.config.filters import Where
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.databases.database import PREPARED, Databases
from retro_jax.databases.retriever import Neighbours, Retriever
from retro_jax.errors import UserError
from retro_jax.methods import dual_encoder, query_map, replug, replug_lsr
from retro_jax.methods.retriever_losses import lsr
from retro_jax.methods.trained_queries import require_examples, trained
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import database_split
from retro_jax.retrieval import division
from retro_jax.retrieval.index import INDEXES, Found, Given
from retro_jax.retrieval.neighbours import find
from retro_jax.retrieval.ranking import Queries
from retro_jax.retrieval.sharded import ShardedIndex
from retro_jax.store import files
from retro_jax.store.workdir import WorkDir
from retro_jax.train import sharding
from retro_jax.train.restore import restore_trained

_OF = "method_settings.replug_lsr_full."
_MORE = 16  # neighbours that are looked for beyond k, because documents may have been deleted
_ITS_OWN = "replug_lsr_full searches an index of its own, of what was prepared;"
_BATCH, _LOOK = 64, 10  # training chunks of a step; steps between looks at what is not trained on


@dataclass(frozen=True)
class Settings(replug_lsr.Settings):
    """The fields `method_settings.replug_lsr_full.*`."""

    of: ClassVar[str] = _OF
    gamma: float = setting(0.1, "temperature of the retriever, whose scores are cosines")
    rounds: int = setting(
        3, "times that candidates are looked up; before each the index is made anew"
    )
    imitates: int = setting(600, "steps in which the encoder becomes like the prepared retriever")
    dim: int = setting(256, "numbers of a vector")

    def __post_init__(self):
        super().__post_init__()
        require_at_least(1, _OF, self, "rounds", "dim")
        require_at_least(0, _OF, self, "imitates")


class ReplugLsrFull(replug.Replug):
    """REPLUG with an encoder and an index of its own."""

    name = "replug_lsr_full"
    meaning = "each of the neighbours of a retriever of its own, in a prompt of its own"
    Settings = Settings
    retrieves, variant_of, follows = True, "replug_lsr", False
    _opened: tuple[dict, ShardedIndex] | None = None

    def prepare(self, work: WorkDir):
        """Trains encoder and index, and opens them."""
        if self._opened is None:
            out = trained(work, self, self._make)
            with np.load(out / "encoder.npz") as file:
                self._opened = dict(file), ShardedIndex(out / "index")

    def neighbours(self, work: WorkDir, queries: Queries, table: ChunkTable) -> Found:
        """What the chunks' own vectors find."""
        params, index = self._opened
        return index.search(dual_encoder.encode_all(params, table.tokens), self.k)

    def retriever(self, work: WorkDir) -> Retriever:
        """Searches the index of its own, which has what was prepared, but for what was deleted, and nothing that was
        added."""
        return _Own(Databases(Prepared(work)), self.k, *self._opened)

    def _make(self, work: WorkDir, out: Path) -> dict:
        s, e, prepared = self.settings, work.experiment, Prepared(work)
        table, database = prepared.table("train"), prepared.database
        rows, own, owners = query_map.asking(table, database, s.chunks)
        mesh, losses = sharding.make_mesh(e.mesh), []
        params = self._first(prepared, database)
        for round_ in range(s.rounds):
            vectors = dual_encoder.encode_all(params, database.tokens)
            index = self._index(vectors, out / f"index{round_}")
            queries = dual_encoder.encode_all(params, table.rows(rows))
            ids, _ = find(index, queries, own, owners, s.candidates)
            full = (ids >= 0).all(axis=1)
            require_examples(s, full.sum())
            given = _examples(table, database, rows[full], ids[full])
            with jax.set_mesh(mesh):
                weights = restore_trained(work, self, mesh)
                logp = replug_lsr.said(self.model, given, weights, mesh, e.evaluate.batch)
            params, found = self._train(params, given, database.rows(ids[full]), logp, round_)
            losses.append(found)
            files.remove_directory(out / f"index{round_}")
        vectors = dual_encoder.encode_all(params, database.tokens)
        self._index(vectors, out / "index")
        np.savez(out / "encoder.npz", **{n: np.asarray(p) for n, p in params.items()})
        return {
            "chunks": int(full.sum()),
            "loss": losses,
            "parameters": sum(p.size for p in params.values()),
        }

    def _first(self, prepared: Prepared, database: ChunkTable) -> dict:
        """An encoder that does what the prepared retriever does, or a fresh one where that has no vectors."""
        s = self.settings
        params = dual_encoder.init(prepared.tokenizer.vocab, s.dim)
        if INDEXES[prepared.experiment.retrieval.index].takes == "words":
            return params
        vectors = prepared.searched(database_split(prepared.experiment))
        return dual_encoder.imitate(params, database.tokens, vectors, s.imitates)

    def _index(self, vectors: np.ndarray, out: Path) -> ShardedIndex:
        files.remove_directory(out)  # of a run that was stopped
        out.mkdir()
        r = RetrievalConfig(neighbours=self.settings.candidates, index="auto", rerank="none")
        with progress.bar("index of the encoder", None):
            division.build(vectors, out, r, Given(self.settings.candidates))
        return ShardedIndex(out)

    def _train(self, params: dict, given: query_map.Examples, documents, logp, seed: int):
        """A round. Every fourth document is not trained on; the parameters are those with the least loss there, maybe
        those before it. Returns them, and that loss before and after."""
        s, rng = self.settings, np.random.default_rng(seed)
        optimizer = optax.adam(s.rate)
        state, texts = optimizer.init(params), given.texts.astype(np.int32)
        documents, apart = documents.astype(np.int32), query_map.apart(given.documents)

        def loss(params, texts, documents, logp):
            queries = dual_encoder.encode(params, texts)
            near = dual_encoder.encode(params, documents)
            return lsr((queries[:, None] * near).sum(axis=-1) / s.gamma, logp, s.beta)

        @jax.jit
        def step(params, state, *given):
            grads = jax.grad(loss)(params, *given)
            updates, state = optimizer.update(grads, state)
            return optax.apply_updates(params, updates), state

        def now(params) -> float:
            return float(loss(params, texts[apart], documents[apart], logp[apart]))

        own = np.flatnonzero(~apart) if not apart.all() else np.arange(len(apart))
        first = now(params)
        best = first, params
        with progress.bar(f"training the retriever, round {seed + 1}", s.steps) as advance:
            for i in range(s.steps):
                rows = rng.choice(own, min(_BATCH, len(own)), replace=False)
                params, state = step(params, state, texts[rows], documents[rows], logp[rows])
                if i % _LOOK == _LOOK - 1 or i == s.steps - 1:
                    best = min(best, (now(params), params), key=lambda x: x[0])
                advance(1)
        return best[1], [first, best[0]]


class _Own(Retriever):
    """Live retrieval with an encoder and an index of its own."""

    filters = False

    def __init__(self, databases: Databases, k: int, params: dict, index: ShardedIndex):
        super().__init__(databases, k)
        self._params, self._index, self._encode = params, index, jax.jit(dual_encoder.encode)

    def retrieve(
        self, chunks: np.ndarray, k: int | None = None, where: Where | None = None,
        databases: Sequence[str] = (PREPARED,),
    ) -> Neighbours:  # fmt: skip
        """See `Retriever.retrieve`.

        Raises:
          UserError: a filter, or other databases: its index has neither.
        """
        self.check(databases)
        vectors = np.asarray(self._encode(self._params, np.asarray(chunks, np.int32)))
        k = self.k if k is None else k
        ids, distances = self._index.search(vectors, k + _MORE)
        living = next((alive for number, _, alive in self._now(PREPARED) if number == 0), None)
        if living is not None:
            document = np.asarray(self.databases.prepared.database.document)
            distances = np.where(living[document[np.maximum(ids, 0)]], distances, np.inf)
            order = np.argsort(distances, axis=1, kind="stable")
            ids, distances = (np.take_along_axis(x, order, 1) for x in (ids, distances))
            ids = np.where(np.isinf(distances), -1, ids)
        ids, distances = ids[:, :k], distances[:, :k]
        return Neighbours(self.values(ids), ids, distances)

    def check(self, databases: Sequence[str]):
        """Raises UserError for any but what was prepared."""
        if list(databases) != [PREPARED]:
            raise UserError(f"databases = {tuple(databases)}: {_ITS_OWN} leave them out")


def _examples(table: ChunkTable, database: ChunkTable, rows, ids) -> query_map.Examples:
    """Training chunks with candidates [n, K]; without vectors, which change."""
    none = np.zeros((len(rows), 0), np.float32)
    following = table.rows(np.asarray(table.continuation)[rows])
    documents = np.asarray(table.document)[rows]
    return query_map.Examples(
        none, none[:, None], table.rows(rows), following, database.values(ids), documents
    )
