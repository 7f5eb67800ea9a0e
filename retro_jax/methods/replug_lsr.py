"""REPLUG-LSR (Shi et al. 2023, arXiv 2301.12652, section 4): REPLUG with a retriever that learned from the language
model which documents make what follows probable. Query side only: a linear map of the queries' vectors, so that the
index stays. BM25 has nothing to train, so neighbours are not re-ranked."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from retro_jax.config import Experiment
from retro_jax.config.fields import require, require_at_least, setting
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.databases.retriever import Retriever, open_retriever
from retro_jax.errors import UserError
from retro_jax.methods import query_map, replug
from retro_jax.methods.retriever_losses import lsr
from retro_jax.model import functional
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval.index import INDEXES, Found
from retro_jax.retrieval.ranking import Queries
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.train import sharding
from retro_jax.train.restore import check_trained, restore_trained

_OF = "method_settings.replug_lsr."


@dataclass(frozen=True)
class Settings(replug.Settings):
    """The fields `method_settings.replug_lsr.*`."""

    of: ClassVar[str] = _OF
    chunks: int = setting(512, "training chunks that it learns from")
    candidates: int = setting(20, "documents of each")
    gamma: float = setting(
        1.0, "temperature of the retriever, in standard deviations of a query's scores"
    )
    beta: float = setting(1.0, "temperature of the language model's log p of a whole chunk")
    steps: int = setting(200, "of Adam; 0: the retriever as it is, without re-ranking")
    rate: float = setting(0.001, "its learning rate")

    def __post_init__(self):
        super().__post_init__()
        require_at_least(2, _OF, self, "chunks", "candidates")
        require_at_least(0, _OF, self, "steps")
        for name in ("gamma", "beta", "rate"):
            require(getattr(self, name) > 0, _OF + name, getattr(self, name), "must be above 0")


class ReplugLsr(replug.Replug):
    """REPLUG whose queries are mapped before they are searched."""

    name = "replug_lsr"
    meaning = "each of the neighbours of a trained retriever, in a prompt of its own"
    Settings = Settings
    retrieves = True
    _map: np.ndarray | None = None

    def check(self, e: Experiment):
        """Refuses what makes no vectors."""
        r = e.retrieval
        if INDEXES[r.index].takes == "words":
            raise UserError(
                f"config field retrieval.embedder = {r.embedder!r} makes no vectors, so replug_lsr has nothing to "
                "train; leave it out, or prepare with another embedder"
            )

    def prepare(self, work: WorkDir):
        """Trains the map, and opens it."""
        if self._map is None:
            self._map = np.load(self._trained(work) / "map.npy")

    def neighbours(self, work: WorkDir, queries: Queries, table: ChunkTable) -> Found:
        """What the mapped queries find."""
        found = Prepared(work).index()
        return found.search(np.asarray(queries.searched, np.float32) @ self._map, self.k)

    def retriever(self, work: WorkDir) -> Retriever:
        """Maps queries, and does not re-rank."""
        e = work.experiment
        plain = dataclasses.replace(e, retrieval=dataclasses.replace(e.retrieval, rerank="none"))

        def mapped(queries: Queries) -> Queries:
            return queries._replace(searched=queries.searched @ self._map)

        return open_retriever(WorkDir(work.root, plain), mapped)

    def _trained(self, work: WorkDir) -> Path:
        out, s = work.datastore(self.name), self.settings
        names = ("chunks", "candidates", "gamma", "beta", "steps", "rate")
        settings = {_OF + n: getattr(s, n) for n in names}
        settings["evaluate.checkpoint"] = work.experiment.evaluate.checkpoint
        inputs = [check_trained(work, self), work.prepared("index"), work.prepared("chunks/train")]
        with work.lock("datastore"):
            artefact.renew(out, settings, inputs, lambda partial: self._make(work, partial))
        return out

    def _make(self, work: WorkDir, out: Path) -> dict:
        s, mesh = self.settings, sharding.make_mesh(work.experiment.mesh)
        given = query_map.examples(Prepared(work), s.chunks, s.candidates)
        if not len(given.queries):
            raise UserError(
                f"config field {_OF}candidates = {s.candidates}: no training chunk has so many neighbours in other "
                "documents; lower it"
            )
        with jax.set_mesh(mesh):
            params = restore_trained(work, self, mesh)

            def logprobs(params, tokens):
                return functional.token_logprobs(self.model, params, tokens)

            batch = work.experiment.evaluate.batch
            logp = query_map.logp_of_following(given, params, logprobs, mesh, batch)

        def loss(scores, rows):
            return lsr(scores / s.gamma, logp[rows], s.beta)

        w, losses = query_map.train(given, loss, s.steps, s.rate)
        np.save(out / "map.npy", w)
        return {"chunks": len(given.queries), "loss": losses}
