"""What the model reads under each condition: the real neighbours of a chunk, changed or exchanged.

    B windows, C chunks, M chunk length, K neighbours, R = 2 M retrieved length

What is drawn at random depends on a chunk's document and its place in it alone, so that no figure depends
on batches, windows, devices or the order of documents.
"""

from pathlib import Path

import numpy as np

from retro_jax import steps
from retro_jax.config import Experiment
from retro_jax.corpus.tokenizer import PAD
from retro_jax.errors import UserError
from retro_jax.evaluate.text import Text
from retro_jax.retrieval.database import PREPARED, Databases

SHARES = (1, 10)  # percent of the database's documents
MEANING = {
    "on": "its real neighbours",
    "off": "nothing: every cross-attention is the identity",
    "random": "random chunks of the database",
    "permuted": "the real neighbours of another document's chunk",
    "shuffled": "its neighbours, their tokens shuffled",
    "n_only": "its neighbours without their continuations",
    "f_only": "the continuations of its neighbours alone",
    "self": "what really follows, in place of the first neighbour",
    "next": "the neighbours that come after the k nearest",
    "exact": "the neighbours that exact search finds",
    "baseline": "nothing: a language model trained without retrieval",
} | {f"database_{n}": f"neighbours from {n} % of the database's documents" for n in SHARES}


def meaning(name: str) -> str:
    """What the model reads, in words."""
    return (
        f"its nearest {name[1:]} only"
        if name[:1] == "k" and name[1:].isdecimal()
        else MEANING[name]
    )


def _every(e: Experiment) -> list[str]:
    """Those that there can be."""
    k = e.retrieval.neighbours
    every = ["on", "off", "random", "permuted", "shuffled", "n_only", "f_only", "self", "next"]
    every += [f"k{i}" for i in range(1, k)] + [f"database_{n}" for n in SHARES] + ["exact"]
    return every + ["baseline"] * ("baseline" in e.train.models)


def check(e: Experiment):
    """Raises UserError for a condition that there is not."""
    every = _every(e)
    for name in e.evaluate.conditions:
        if name not in every:
            raise UserError(
                f"config field evaluate.conditions: no condition {name!r} here; there are {', '.join(every)}"
            )


def names(e: Experiment, text: Text, kind: str) -> list[str]:
    """The conditions under which a text is scored: those that `evaluate.conditions` asks for, on and off in
    any case.

    Left out is `exact` where the index (of this kind) is exact, `permuted` where there is one document, and
    what searches anew (next, exact and shares of the database) where other databases are read than the one
    that was prepared, or that one as it is not any more.
    """
    asked = e.evaluate.conditions or _every(e)
    left_out = {"exact"} if kind in ("exact", "bm25") else set()
    if len(text.table.documents) < 2:
        left_out.add("permuted")
    if not text.as_prepared:
        left_out |= {"next", "exact", *(f"database_{n}" for n in SHARES)}
    return [n for n in _every(e) if n in (*asked, "on", "off") and n not in left_out]


class Conditions:
    """The neighbours of the chunks of a text under each condition.

    What is searched for anew is from the prepared database.
    """

    def __init__(self, e: Experiment, base: Path, names, text: Text):
        table, self._ids, self._k = text.table, text.ids, e.retrieval.neighbours
        self._table, self._values = table, text.values
        self._database = steps.table_of(base, steps.database_split(e))
        self._found, self.names = {}, names
        searched = [n for n in names if n in ("next", "exact") or n.startswith("database_")]
        if searched:
            part = Databases(e, base).open(PREPARED, 0)
            self._search(part, searched, text.vectors)
        self._draw = text.draw
        if "permuted" in names:
            self._place = _by_text(table)

    def neighbours(self, name: str, rows: np.ndarray, real: np.ndarray) -> np.ndarray | None:
        """Tokens [B, C, K, R] of what chunks retrieve, PAD where there is none; None: nothing at all.

        Args:
          rows: of the text's chunk table [B, C], -1 for padding. real: the real neighbours [B, C, K, R].
        """
        if name in ("off", "baseline"):
            return None
        half = real.shape[-1] // 2
        if name == "on":
            return real
        if name == "n_only":
            return np.concatenate([real[..., :half], np.full_like(real[..., half:], PAD)], axis=-1)
        if name == "f_only":
            return np.concatenate([np.full_like(real[..., :half], PAD), real[..., half:]], axis=-1)
        if name[1:].isdecimal():
            return np.where(np.arange(self._k)[:, None] < int(name[1:]), real, PAD)
        if name == "self":
            out = real.copy()
            out[:, :, 0] = self._table.values(rows)
            return out
        if name == "shuffled":
            return self._each(rows, real.shape[2:], lambda rng, row, at: _shuffled(rng, real[at]))
        if name in ("random", "permuted"):
            ids = self._each(rows, (self._k,), getattr(self, f"_{name}"))
        else:
            ids = np.where(rows[..., None] < 0, -1, self._found[name][np.maximum(rows, 0)])
        return self._values(ids)

    def _each(self, rows, shape: tuple, make) -> np.ndarray:
        """make(rng, row, at) for each chunk, with random numbers of its own; PAD or -1 for padding."""
        out = np.full((*rows.shape, *shape), -1 if len(shape) == 1 else PAD, np.int64)
        for at in zip(*np.nonzero(rows >= 0)):
            row = int(rows[at])
            number = int(self._table.document[row])
            text = int.from_bytes(bytes(self._table.texts[number]).ljust(16, b"\0"), "little")
            place = row - self._table.documents[number]["first"]
            out[at] = make(np.random.default_rng([text, place]), row, at)
        return out

    def _random(self, rng, row, at):
        found = self._ids[row] >= 0  # as many as it has really
        return np.where(found, self._draw(rng, self._k), -1)

    def _permuted(self, rng, row, at):
        order, before, counts = self._place
        number = int(self._table.document[row])
        mine = np.flatnonzero(order == number)[0]
        drawn = int(rng.integers(0, len(self._table) - counts[mine]))
        if drawn >= before[mine]:
            drawn += counts[mine]  # past its own document
        other = int(np.searchsorted(before, drawn, side="right")) - 1
        first = self._table.documents[int(order[other])]["first"]
        return self._ids[first + drawn - before[other]]

    def _search(self, part, names, vectors):
        """The neighbours of all chunks [N, K] that need a search."""
        k, own = self._k, np.isin(self._database.texts, self._table.texts)
        for name in names:
            allowed = ~own
            if name.startswith("database_"):
                allowed &= _share(self._database.texts, int(name[9:]) / 100)
            if name == "exact":
                self._found[name] = part.exactly(vectors, k, allowed)[0]
            else:
                more = 2 * k if name == "next" else k
                found = part.search(vectors, more, None if allowed.all() else allowed)[0]
                self._found[name] = found[:, more - k :]


def _by_text(table):
    """Documents in the order of their texts' hashes, how many chunks are before each, and how many each
    has."""
    order = np.argsort(np.asarray(table.texts), kind="stable")
    counts = np.bincount(np.asarray(table.document), minlength=len(order))[order]
    return order, np.cumsum(counts) - counts, counts


def _share(texts, share: float) -> np.ndarray:
    """Which documents are of a share of a database: by the hash of their text, at least one."""
    hashed = np.frombuffer(np.asarray(texts, "S16").tobytes(), "<u4").reshape(-1, 4)[:, 0]
    chosen = hashed < share * 2**32
    chosen[np.argmin(hashed)] = True
    return chosen


def _shuffled(rng, tokens: np.ndarray) -> np.ndarray:
    """Tokens [K, R] of each neighbour in random order; PAD stays where it is."""
    out = tokens.copy()
    for row in out:
        real = row != PAD
        row[real] = rng.permutation(row[real])
    return out
