"""What the per-token log-probabilities say: bits per byte, effects of retrieval, violations."""

from collections.abc import Callable

import numpy as np

from retro_jax import sequences
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.records import Records

CONDITIONS = ("on", "off", "random", "baseline")


def bits_per_byte(rows: dict[str, np.ndarray], keep: np.ndarray | None = None) -> dict[str, float]:
    """-sum log2 p / UTF-8 bytes, over the rows of `keep` (all without it), by condition."""
    keep = np.ones(len(rows["bytes"]), bool) if keep is None else keep
    total = rows["bytes"][keep].sum()
    return {
        name: float(rows[name][keep].sum(dtype=np.float64) / np.log(2) / total) if total else None
        for name in CONDITIONS
        if name in rows
    }


def effect(rows: dict[str, np.ndarray], worse: str, better: str, seed: int = 0) -> dict:
    """bits per byte of `worse` minus `better`, with a 95 % interval.

    The interval is a bootstrap over whole documents (1,000 resamples): tokens of one document are
    not independent.
    """
    documents, index = np.unique(rows["document"], return_inverse=True)
    bits = (rows[worse].astype(np.float64) - rows[better]) / np.log(2)
    gain = np.bincount(index, bits, len(documents))
    size = np.bincount(index, rows["bytes"], len(documents))
    drawn = np.random.default_rng(seed).integers(0, len(documents), (1000, len(documents)))
    samples = gain[drawn].sum(1) / size[drawn].sum(1)
    low, high = np.percentile(samples, [2.5, 97.5])
    return {"value": float(gain.sum() / size.sum()), "low": float(low), "high": float(high)}


def violations(
    shards: dict[str, Records],
    tables: dict[str, ChunkTable],
    database: ChunkTable,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Leaks, counted in the shards themselves; each must be 0.

    same_document: neighbours from a document of the same sequence, or from one with its text or id.
    wrong_text: neighbours whose tokens are not those of their id.
    heldout_in_database: held-out documents whose text is that of a document of the database, or whose
      id, in the split of the training corpus.

    Args:
      shards, tables: those of each split; all but `train` are held out.
    """
    number, document = sequences.copies(database), np.asarray(database.document)
    same = wrong = shared = 0
    for split, records in shards.items():
        own = sequences.own_documents(tables[split], database, number)
        if split != "train":  # unrelated corpora may use the same ids, a split may not
            known = own if split == "heldout" else own[:, :1]
            shared += int((known >= 0).any(axis=1).sum())
        for i in range(len(records)):
            record = records[i]
            ids, documents = record["neighbour_ids"], record["documents"]
            wrong += int((database.values(ids) != record["neighbours"]).any(-1).sum())
            from_own = np.isin(number[document[np.maximum(ids, 0)]], own[documents[documents >= 0]])
            same += int((from_own & (ids >= 0)).sum())
            progress(1)
    return {"same_document": same, "wrong_text": wrong, "heldout_in_database": shared}
