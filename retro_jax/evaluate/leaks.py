"""Leaks: whatever shows a model, by way of retrieval, the text that it is to predict."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from retro_jax.config import Experiment
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import PAD
from retro_jax.databases.retriever import Retriever
from retro_jax.evaluate.text import Text
from retro_jax.retrieval import forbidden

_BLOCK = 1024  # chunks at a time
_NAMED = 20  # pairs of documents


def violations(
    texts: dict[str, Text],
    database: ChunkTable,
    e: Experiment,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Leaks, counted in the records themselves; each must be 0.

    same_document: neighbours from a document of the same sequence, or from one with its text or id.
    wrong_text: neighbours whose tokens are not those of their id.
    wrong_query: neighbours that are not those of the chunk in whose place they stand, but, say, of the one
      that is to be predicted.
    heldout_in_database: held-out documents whose text is that of a document of the database, or whose
      id, in the split of the training corpus.

    Args:
      texts: of each split; all but `train` are held out.
    """
    number, document = forbidden.copies(database), np.asarray(database.document)
    same = wrong = shared = query = 0
    for split, text in texts.items():
        own = forbidden.own_documents(text.table, database, number)
        if split != "train":  # unrelated corpora may use the same ids, a split may not
            known = own if split == "heldout" else own[:, :1]
            shared += int((known >= 0).any(axis=1).sum())
        for i, (rows, _) in enumerate(text.cuts(e)):
            record = text.records[i]
            ids, documents = record["neighbour_ids"], record["documents"]
            expected = np.where(rows[:, None] < 0, -1, text.ids[np.maximum(rows, 0)])
            query += int((ids != expected).any(axis=-1).sum())
            wrong += int((database.values(ids) != record["neighbours"]).any(-1).sum())
            from_own = np.isin(number[document[np.maximum(ids, 0)]], own[documents[documents >= 0]])
            same += int((from_own & (ids >= 0)).sum())
            progress(1)
    return {
        "same_document": same,
        "wrong_text": wrong,
        "wrong_query": query,
        "heldout_in_database": shared,
    }


def whole_chunks(text: Text) -> dict:
    """Chunks that stand whole in a neighbour of the chunk before them: no violation, as the documents differ, but
    what is to be predicted can be read there.

    Returns:
      chunks: how many. documents: [document, document of the neighbour, chunks], the most first.
    """
    table, found, count = text.table, Counter(), 0
    continued = np.flatnonzero(np.asarray(table.continuation) >= 0)
    for begin in range(0, len(continued), _BLOCK):
        rows = continued[begin : begin + _BLOCK]
        target = np.asarray(table.tokens[np.asarray(table.continuation)[rows]])
        near = text.values(text.ids[rows])
        runs = np.lib.stride_tricks.sliding_window_view(near, target.shape[1], axis=-1)
        same = (runs == target[:, None, None]).all(axis=-1).any(axis=-1)
        same &= (target != PAD).all(axis=1)[:, None]
        count += int(same.any(axis=1).sum())
        for row, k in np.argwhere(same).tolist():
            document = table.documents[int(table.document[rows[row]])]["id"]
            found[document, text.source(int(text.ids[rows[row], k]))["document"]] += 1
    return {"chunks": count, "documents": [[*pair, n] for pair, n in found.most_common(_NAMED)]}


def held(text: Text, retriever: Retriever, databases: Sequence[str]) -> list[str]:
    """The ids of those of a text's documents whose very text is in databases."""
    theirs = [
        np.asarray(part.table.texts)[slice(None) if living is None else living]
        for part, living in retriever.parts(databases)
    ]
    found = np.isin(np.asarray(text.table.texts), np.concatenate(theirs))
    return [text.table.documents[int(n)]["id"] for n in np.flatnonzero(found)]
