"""Is the retriever fine? What its distances say, whom it finds too often, what it does not find."""

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from retro_jax.evaluate.chunks import Chunks

_GROUPS, _POINTS, _HUBS = 10, 21, 10


def coverage(chunks: Chunks, database: int) -> dict:
    """Whom retrieval finds.

    Returns:
      missing: share of the places for neighbours, after a document's first chunk, that are empty. distinct: how
      many chunks of the database were read, and its share. repeated: share of the neighbours that are nearly
      the same as one before them. hubs: the chunks that are read most, [id, times].
      hubness: the skewness of how often chunks that are read are.
    """
    ids = chunks.neighbours
    asked, found = ids[chunks.chunk > 0], ids[ids >= 0]
    names, times = np.unique(found, return_counts=True)
    most = np.argsort(-times, kind="stable")[:_HUBS]
    spread = times.std() if len(times) else 0.0
    return {
        "missing": float((asked < 0).mean()) if asked.size else 0.0,
        "distinct": len(names),
        "share_of_database": len(names) / database,
        "repeated": float(chunks.twins.sum() / max(1, len(found))),
        "hubs": [[int(names[i]), int(times[i])] for i in most],
        "hubness": float(((times - times.mean()) ** 3).mean() / spread**3) if spread else 0.0,
    }


def by_distance(chunks: Chunks, rank: np.ndarray) -> dict | None:
    """Whether the distance of the nearest neighbour tells what it is worth.

    Args:
      rank: of each document its number in an order that does not depend on how they came [D].

    Returns:
      groups: equal shares of the chunks from near to far, with their mean distance and gain (nats a token,
      off less on), and what an isotonic fit on the other half of the documents says for them.
      auroc: of the distance as a predictor that a chunk gains. None if all is alike.
    """
    distance, gain = chunks.distances[:, 0].astype(np.float64), chunks.gain()
    used = chunks.read & np.isfinite(distance)
    distance, gain, document = distance[used], gain[used], rank[chunks.document[used]]
    if len(np.unique(distance)) < 2:
        return None
    predicted = np.full(len(gain), np.nan)
    for half in (0, 1):
        others = document % 2 != half
        if others.any() and not others.all():
            fit = IsotonicRegression(increasing=False, out_of_bounds="clip")
            predicted[~others] = fit.fit(distance[others], gain[others]).predict(distance[~others])
    groups = [
        {
            "chunks": len(at),
            "distance": float(distance[at].mean()),
            "gain": float(gain[at].mean()),
            "predicted": float(predicted[at].mean()) if np.isfinite(predicted[at]).all() else None,
        }
        for at in np.array_split(np.lexsort((chunks.chunk[used], document, distance)), _GROUPS)
        if len(at)
    ]
    gains = gain > 0
    mixed = 0 < gains.sum() < len(gains)
    return {
        "groups": groups,
        "auroc": float(roc_auc_score(gains, -distance)) if mixed else None,
    }


def skipping(chunks: Chunks, rank: np.ndarray) -> list[dict]:
    """Bits per byte if only the nearest are read: the chunks in the order of the distance of their nearest
    neighbour, a share of them with their neighbours, the others without."""
    distance = np.where(chunks.read, chunks.distances[:, 0], np.inf)
    order = np.lexsort((chunks.chunk, rank[chunks.document], distance))
    on, off = (chunks.nats[n][order] for n in ("on", "off"))
    total = off.sum() + np.concatenate([[0], np.cumsum(on - off)])
    at = np.unique(np.round(np.linspace(0, len(order), _POINTS)).astype(int))
    scale = np.log(2) * chunks.bytes.sum()
    return [{"share": float(i / len(order)), "bits_per_byte": float(total[i] / scale)} for i in at]
