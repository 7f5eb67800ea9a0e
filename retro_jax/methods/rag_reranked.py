"""In-context retrieval whose neighbours the language model itself chooses (Ram et al. 2023, arXiv 2302.00083, section
5.1, "LM-oriented reranking"): those with which what came last was most probable."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from retro_jax.config import Experiment, ModelConfig
from retro_jax.config.fields import require, setting
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.databases.database import PREPARED, Databases
from retro_jax.databases.retriever import Retriever, open_retriever
from retro_jax.methods import rag
from retro_jax.methods.datastore import read
from retro_jax.methods.method import Retrieved
from retro_jax.methods.prompted import at
from retro_jax.model import formulas, sizes
from retro_jax.model.layers import ROWS, by_rows
from retro_jax.model.retro import PAD
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval.index import Found
from retro_jax.retrieval.ranking import Queries
from retro_jax.store.workdir import WorkDir

_OF = "method_settings.rag_reranked."


@dataclass(frozen=True)
class Settings(rag.Settings):
    """The fields `method_settings.rag_reranked.*`."""

    of: ClassVar[str] = _OF
    candidates: int = setting(8, "neighbours that are looked up, to choose from")
    judged: int = setting(
        16, "tokens at the end of the chunk that looked up, by which they are judged"
    )

    def __post_init__(self):
        super().__post_init__()
        require(self.candidates >= 2, f"{_OF}candidates", self.candidates, "must be at least 2")
        require(self.judged >= 1, f"{_OF}judged", self.judged, "must be at least 1")


class RagReranked(rag.Rag):
    """`rag` with the best of several candidates: each is read before the chunk that looked up, and the log p of the end
    of this chunk orders them. What comes after the chunk is not looked at."""

    name = "rag_reranked"
    meaning = "those of its real neighbours that the language model itself prefers, in its prompt"
    Settings = Settings
    variant_of = "rag"
    retrieves = True
    needs = "logits"

    def __init__(self, model: ModelConfig, k: int = 0, settings=None, length: int = 0):
        self._shown = k
        super().__init__(model, k, settings, length)
        self.k = max(k, self.settings.candidates) if k else 0

    def check(self, e: Experiment):
        """Refuses candidates of which there is nothing to choose."""
        super().check(e)
        k, most = e.retrieval.neighbours, self.settings.candidates
        why = f"must be above config field retrieval.neighbours = {k}, which of them are shown"
        require(most > k, f"{_OF}candidates", most, why)

    @property
    def shown(self) -> int:
        """As many as the others have."""
        return self._shown

    def neighbours(self, work: WorkDir, queries: Queries, table: ChunkTable) -> Found:
        """The candidates, in the order of the retriever."""
        return Databases(Prepared(work)).open(PREPARED, 0).search(queries, self.k, None, None)

    def retriever(self, work: WorkDir) -> Retriever:
        """Finds as many as there are candidates."""
        return open_retriever(work, k=self.k)

    def chosen(self, net, text, near: Retrieved) -> Retrieved:
        """The `shown` candidates [..., K, R] with which the end of the text [..., M] is most probable."""
        *rest, k, _ = near.tokens.shape
        m, judged = text.shape[-1], min(self.settings.judged, text.shape[-1])
        ask = jnp.broadcast_to(text[..., None, :], (*near.tokens.shape[:-1], m))
        whole = jnp.concatenate([near.tokens, ask], axis=-1)
        order = jnp.argsort(whole == PAD, axis=-1, stable=True)
        rows = jnp.take_along_axis(whole, order, axis=-1)
        count = (whole != PAD).sum(axis=-1)
        size = count.size
        rows, count = (
            jnp.reshape(x, (size, *x.shape[len(rest) + 1 :]), out_sharding=ROWS)
            for x in (rows, count)
        )
        h, model = read(net, rows)[1:]
        last = jnp.maximum(count[:, None] - judged + jnp.arange(judged), 1)

        def pick(x, i):
            return jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))(x, i)

        logits = by_rows(model.logits(pick(h, last - 1)))
        logp = at(logits, pick(rows, last)) - jax.nn.logsumexp(logits, axis=-1)
        logp = jnp.reshape(logp.sum(axis=-1), (*rest, k), out_sharding=ROWS)
        logp = jnp.where((near.tokens != PAD).any(axis=-1), logp, -jnp.inf)
        best = jnp.argsort(-logp, axis=-1, stable=True)[..., : self.shown]
        return Retrieved(
            jnp.take_along_axis(near.tokens, best[..., None], axis=-2),
            jnp.take_along_axis(near.distances, best, axis=-1),
        )

    def _judging(self, length: int, row: float, vocab: int) -> float:
        """FLOPs of the candidates' rows, of which `row` is one without its readout."""
        read_out = 2 * self.settings.judged * self.model.decoder.d * vocab
        return -(-length // self.model.reading.chunk) * self.k * (row + read_out)

    @property
    def _row(self) -> int:
        return self.model.reading.chunk + self.model.reading.retrieved

    def flops(self, vocab: int, length: int) -> int:
        """And of the candidates' rows."""
        row = sizes.forward_flops(self.model, vocab, self._row, 0)
        row -= 2 * self._row * self.model.decoder.d * vocab
        return super().flops(vocab, length) + int(self._judging(length, row, vocab))

    def formula(self, vocab: int, length: int) -> float:
        """And of the candidates' rows."""
        row = formulas.decoder(self.model, vocab, self._row)
        row -= 2 * self._row * self.model.decoder.d * vocab
        return super().formula(vocab, length) + self._judging(length, row, vocab)
