"""In-context retrieval more often than once a chunk (Ram et al. 2023, arXiv 2302.00083, section 3.2: the retrieval
stride s, of 4 tokens there)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.config.fields import require, setting
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.databases.database import PREPARED, Databases
from retro_jax.methods import rag
from retro_jax.methods.method import LookUps
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval.index import Found
from retro_jax.retrieval.ranking import Queries
from retro_jax.store.workdir import WorkDir

_OF = "method_settings.rag_often."
_BLOCK = 256  # windows that are looked up at a time


@dataclass(frozen=True)
class Settings(rag.Settings):
    """The fields `method_settings.rag_often.*`."""

    of: ClassVar[str] = _OF
    every: int = setting(16, "tokens between look-ups, a divisor of the chunk")


class RagOften(rag.Rag):
    """`rag` that looks up every `every` tokens, with the last M tokens each time."""

    name = "rag_often"
    meaning = (
        "its real neighbours, looked up several times a chunk, in the prompt of the language model"
    )
    Settings = Settings
    variant_of = "rag"
    retrieves = True

    def check(self, e: Experiment):
        """Refuses a stride that a chunk is no multiple of."""
        m, every = self.model.reading.chunk, self.settings.every
        why = f"must divide model.reading.chunk = {m}"
        require(0 < every <= m and m % every == 0, f"{_OF}every", every, why)

    @property
    def look_ups(self) -> LookUps:
        """Every `every` tokens, with the tokens of a chunk; at least one a chunk."""
        m = self.model.reading.chunk
        return LookUps(min(self.settings.every, m), m)

    @property
    def fetches(self) -> int:
        """Those of all look-ups of a chunk."""
        return self.k * (self.model.reading.chunk // self.look_ups.every)

    def neighbours(self, work: WorkDir, queries: Queries, table: ChunkTable) -> Found:
        """Of each chunk those of the windows that end in it, one after the other."""
        of, m, s = Prepared(work), self.model.reading.chunk, self.look_ups.every
        part = Databases(of).open(PREPARED, 0)
        tokens, document = np.asarray(table.tokens), np.asarray(table.document)
        same = np.concatenate([[False], document[1:] == document[:-1]])[:, None]
        before = np.where(same, np.roll(tokens, 1, axis=0), 0)
        both = np.concatenate([before, tokens], axis=1)  # [N, 2 M]
        ids, distances = [], []
        with progress.bar("looking windows up", len(table) * (m // s)) as advance:
            for begin in range(0, len(table), _BLOCK):
                rows = both[begin : begin + _BLOCK]
                windows = np.stack([rows[:, e : e + m] for e in range(s, m + 1, s)], axis=1)
                texts = [of.tokenizer.decode(w) for w in windows.reshape(-1, m).tolist()]
                found = part.search(of.encoder.queries(texts), self.k, None, None)
                for out, x in zip((ids, distances), found):
                    out.append(np.asarray(x).reshape(len(rows), -1))
                advance(len(texts))
        return np.concatenate(ids), np.concatenate(distances)
