"""Where methods gain: by what was copied, by how near the neighbours are, by the place in the chunk."""

import numpy as np

from retro_jax.evaluate.rows import Rows
from retro_jax.evaluate.signals import BINS, bits_per_byte, effects

_QUARTERS = 4  # of the distances of nearest neighbours, and of a chunk


def where(rows: Rows, base: str, names: list[str]) -> dict[str, list[dict]]:
    """Of each way to cut the tokens its parts: label, share (of the tokens), gain {method: nats a token of `base` less
    the method's}.

    copied: by the longest run that ends with the token and stands in what its chunk's neighbours say. distance: by the
    nearest neighbour's, in quarters of the tokens that have one. place: in the chunk.
    """
    copied = {_named(low, high): _within(rows["copied"], low, high) for low, high in BINS}
    chunk = rows.facts["chunk"]
    size = -(-chunk // _QUARTERS)
    place = rows["position"] % chunk // size
    by_place = {
        f"{i * size}-{min(chunk, (i + 1) * size) - 1}": place == i for i in range(-(-chunk // size))
    }
    cuts = {"copied": copied, "distance": by_nearest(rows), "place": by_place}
    return {name: _parts(rows, base, names, cut) for name, cut in cuts.items()}


def by_nearest(rows: Rows) -> dict[str, np.ndarray]:
    """Masks of the tokens [T] by how near the nearest neighbour is that is read for them: quarters of those that have
    one, and those that have none. It is known before the tokens are, so that this cut does not choose by the outcome,
    as those by what is shared with the neighbours do."""
    near = rows["distances"][:, 0]
    there = np.isfinite(near)
    cut = {"nothing found": ~there}
    if there.any():
        edges = np.quantile(near[there], np.arange(1, _QUARTERS) / _QUARTERS)
        part = np.searchsorted(edges, near, side="right")
        names = ("nearest quarter", "second", "third", "farthest")
        cut |= {n: there & (part == i) for i, n in enumerate(names)}
    return cut


def is_far(rows: Rows) -> np.ndarray:
    """Whether the nearest neighbour is in the farther two quarters of `by_nearest`, or there is none [T]."""
    near = rows["distances"][:, 0]
    there = np.isfinite(near)
    return ~(near < np.quantile(near[there], 0.5)) if there.any() else ~there


def nearest(rows: Rows) -> list[dict]:
    """Of each part of `by_nearest` that holds tokens: label, share_of_bytes, bits_per_byte by condition, effects."""
    parts = by_nearest(rows).items()
    return [{"label": label, **_said(rows, mask)} for label, mask in parts if mask.any()]


def far(rows: Rows) -> dict:
    """The same of `is_far`, which always holds tokens."""
    return _said(rows, is_far(rows))


def _said(rows: Rows, mask: np.ndarray) -> dict:
    own = rows.where(mask)
    return {
        "share_of_bytes": float(own["bytes"].sum() / rows["bytes"].sum()),
        "bits_per_byte": bits_per_byte(own),
        "effects": effects(own),
    }


def _parts(rows: Rows, base: str, names: list[str], cut: dict[str, np.ndarray]) -> list[dict]:
    out = []
    for label, inside in cut.items():
        if inside.any():
            gain = {n: float((rows.nats[base] - rows.nats[n])[inside].mean()) for n in names}
            out.append({"label": label, "share": float(inside.mean()), "gain": gain})
    return out


def _within(values, low: int, high: int | None) -> np.ndarray:
    return (values >= low) & (values <= (np.inf if high is None else high))


def _named(low: int, high: int | None) -> str:
    return f"{low}" if low == high else f"{low}+" if high is None else f"{low}-{high}"


def passages(rows: Rows, names: list[str], count: int = 5) -> list[dict]:
    """The chunks about which the methods differ most, one of a document: document and chunk (numbers), first (its first
    row), tokens (how many are scored), nats {method: a token}."""
    key = rows["document"].astype(np.int64) << 32 | rows["chunk"]
    _, first, of = np.unique(key, return_index=True, return_inverse=True)
    size = np.bincount(of)
    means = np.stack([np.bincount(of, rows.nats[n]) / size for n in names])
    spread = np.where(size >= rows.facts["chunk"] // 2, means.max(axis=0) - means.min(axis=0), 0)
    out, seen = [], set()
    for i in np.argsort(-spread, kind="stable"):
        document = int(rows["document"][first[i]])
        if document in seen:
            continue
        seen.add(document)
        out.append(
            {
                "document": document,
                "chunk": int(rows["chunk"][first[i]]),
                "first": int(first[i]),
                "tokens": int(size[i]),
                "nats": {n: float(x) for n, x in zip(names, means[:, i])},
            }
        )
        if len(out) == count:
            break
    return out
