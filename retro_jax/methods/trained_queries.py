"""A method whose retriever is trained on its query side: a linear map of the queries' vectors (query_map.py), so that
the index stays. BM25 has nothing to train, so neighbours are not re-ranked."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from retro_jax.config import Experiment
from retro_jax.config.fields import binding, require, require_at_least, setting
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.databases.retriever import Retriever, open_retriever
from retro_jax.errors import UserError
from retro_jax.methods import query_map
from retro_jax.methods.method import Method
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval.index import INDEXES, Found
from retro_jax.retrieval.ranking import Queries
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.train import sharding
from retro_jax.train.restore import check_trained, restore_trained


@dataclass(frozen=True)
class Training:
    """How a retriever is trained: a part of a method's settings, which derive from it."""

    of: ClassVar[str] = ""
    chunks: int = setting(512, "training chunks that the retriever learns from")
    candidates: int = setting(20, "documents of each")
    gamma: float = setting(
        1.0, "temperature of the retriever, in standard deviations of a query's scores"
    )
    steps: int = setting(200, "of Adam; 0: the retriever as it is, without re-ranking")
    rate: float = setting(0.001, "its learning rate")

    def __post_init__(self):
        require_at_least(2, self.of, self, "chunks", "candidates")
        require_at_least(0, self.of, self, "steps")
        for name in ("gamma", "rate"):
            value = getattr(self, name)
            require(value > 0, self.of + name, value, "must be above 0")


class TrainedQueries:
    """What such a method has beside how it reads; its settings are a `Training` too. A subclass says which loss."""

    retrieves = True
    _map: np.ndarray | None = None

    def loss_of_scores(
        self, given: query_map.Examples, params: dict, mesh, batch: int
    ) -> Callable[[jax.Array, np.ndarray], jax.Array]:
        """The loss: of scores [m, K] over gamma, and which examples they are of [m]. The mesh is in context."""
        raise NotImplementedError

    def check(self, e: Experiment):
        """Refuses what makes no vectors."""
        super().check(e)
        r = e.retrieval
        if self.retrieves and INDEXES[r.index].takes == "words":
            raise UserError(
                f"config field retrieval.embedder = {r.embedder!r} makes no vectors, so {self.name} has no "
                f"retriever to train; {self.instead}, or prepare with another embedder"
            )

    def prepare(self, work: WorkDir):
        """Trains the map, and opens it."""
        if self.retrieves and self._map is None:
            self._map = np.load(trained(work, self, self._make) / "map.npy")

    def neighbours(self, work: WorkDir, queries: Queries, table: ChunkTable) -> Found | None:
        """What the mapped queries find."""
        if not self.retrieves:
            return None
        mapped = np.asarray(queries.searched, np.float32) @ self._map
        return Prepared(work).index().search(mapped, self.k)

    def retriever(self, work: WorkDir) -> Retriever:
        """Maps queries, and does not re-rank."""
        if not self.retrieves:
            return open_retriever(work)
        e = work.experiment
        plain = dataclasses.replace(e, retrieval=dataclasses.replace(e.retrieval, rerank="none"))

        def mapped(queries: Queries) -> Queries:
            return queries._replace(searched=queries.searched @ self._map)

        return open_retriever(work.asking(plain), mapped)

    def _make(self, work: WorkDir, out: Path) -> dict:
        s, mesh = self.settings, sharding.make_mesh(work.experiment.mesh)
        given = query_map.examples(Prepared(work), s.chunks, s.candidates)
        require_examples(s, len(given.queries))
        with jax.set_mesh(mesh):
            params = restore_trained(work, self, mesh)
            loss = self.loss_of_scores(given, params, mesh, work.experiment.evaluate.batch)

        def scaled(scores, rows):
            return loss(scores / s.gamma, rows)

        w, losses = query_map.train(given, scaled, s.steps, s.rate)
        np.save(out / "map.npy", w)
        return {"chunks": len(given.queries), "loss": losses}


def trained(work: WorkDir, method: Method, make: Callable[[WorkDir, Path], dict]) -> Path:
    """Where a method's trained retriever is; `make` makes it in a directory if it is not there, and returns counts."""
    out = work.datastore(method.name)
    settings = dict(binding(method.settings, method.settings.of))
    settings["evaluate.checkpoint"] = work.experiment.evaluate.checkpoint
    inputs = [check_trained(work, method), work.prepared("index"), work.prepared("chunks/train")]
    with work.lock("datastore"):
        artefact.renew(out, settings, inputs, lambda partial: make(work, partial))
    return out


def require_examples(s: Training, found: int):
    """Raises UserError if no training chunk has as many candidates as the settings ask for."""
    if not found:
        raise UserError(
            f"config field {s.of}candidates = {s.candidates}: no training chunk has so many neighbours in other "
            "documents; lower it"
        )
