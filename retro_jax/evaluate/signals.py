"""What the per-token log-probabilities say: bits per byte, what retrieval is worth, where it hurts."""

from collections.abc import Sequence

import numpy as np

from retro_jax.evaluate.chunks import CLASSES, EPS, Chunks, classes
from retro_jax.evaluate.overlap import is_little
from retro_jax.evaluate.rows import Rows

# What each effect compares: (worse, better), in bits per byte; positive is a gain.
EFFECTS = {
    "content": ("random", "on"),
    "presence": ("off", "random"),
    "on_against_off": ("off", "on"),
    "system": ("language_model", "on"),
    "own_neighbours": ("permuted", "on"),
    "sequence": ("shuffled", "on"),
    "continuation": ("n_only", "on"),
    "exact_search": ("on", "exact"),
}
BINS = ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, None))
FILTERS = tuple(i / 8 for i in range(1, 9))
RESAMPLES, _MOST = 1000, 700.0


def bits_per_byte(rows: Rows) -> dict[str, float | None]:
    """-sum log2 p / UTF-8 bytes, by condition; None where there is no byte."""
    total = rows["bytes"].sum()
    return {n: float(x.sum() / np.log(2) / total) if total else None for n, x in rows.nats.items()}


def perplexity(rows: Rows, words: int) -> dict[str, dict]:
    """Per token and per word, by condition; None where it is beyond all numbers, as in text without spaces."""
    units = {"token": len(rows), "word": words}
    each = {n: {u: x.sum() / c for u, c in units.items() if c} for n, x in rows.nats.items()}
    return {
        n: {u: float(np.exp(mean)) if mean < _MOST else None for u, mean in found.items()}
        for n, found in each.items()
    }


def effect(rows: Rows, worse: str, better: str, seed: int = 0) -> dict:
    """Bits per byte of `worse` minus `better`: value, low and high of a 95 % interval, and of how many documents.

    The interval is a bootstrap over whole documents: tokens of one document are not independent.
    """
    return effect_over([rows], worse, better, seed)


def effect_over(each: Sequence[Rows], worse: str, better: str, seed: int = 0) -> dict:
    """The same of several trainings [S] on the same tokens: the mean over them. The bootstrap draws trainings, and
    documents for all of them together; of two or three trainings it knows little of how far they are apart."""
    rows = each[0]
    documents, index = np.unique(rows.rank[rows["document"]], return_inverse=True)
    size, rng = np.bincount(index, rows["bytes"], len(documents)), np.random.default_rng(seed)
    gain = np.stack(
        [
            np.bincount(index, (r.nats[worse] - r.nats[better]) / np.log(2), len(documents))
            for r in each
        ]
    )
    drawn = rng.integers(0, len(documents), (RESAMPLES, len(documents)))
    trainings = rng.integers(0, len(each), (RESAMPLES, len(each)))
    times = np.stack([(trainings == s).sum(axis=1) for s in range(len(each))])  # [S, RESAMPLES]
    total = sum(t * g[drawn].sum(1) for t, g in zip(times, gain)) / len(each)
    low, high = np.percentile(total / size[drawn].sum(1), [2.5, 97.5])
    value = float(gain.mean(axis=0).sum() / size.sum())
    return {"value": value, "low": float(low), "high": float(high), "documents": len(documents)}


def effects(rows: Rows) -> dict[str, dict]:
    """Every effect whose conditions were scored."""
    return {
        name: effect(rows, *pair) for name, pair in EFFECTS.items() if set(pair) <= set(rows.nats)
    }


def gap_closed(bits: dict) -> float | None:
    """How far from random neighbours to what really follows the real neighbours come."""
    if not {"random", "self"} <= set(bits) or bits["random"] == bits["self"]:
        return None
    return (bits["random"] - bits["on"]) / (bits["random"] - bits["self"])


def harm(rows: Rows, worse: str = "off", better: str = "on") -> dict:
    """Where neighbours hurt, by token, nats of `worse` less `better`.

    rate: share of tokens that lose more than EPS; help_rate: that gain more. help, harm: their sums;
    ratio: help / harm. concentration: share of all help that the best hundredth of the tokens has.
    """
    delta = rows.nats[worse] - rows.nats[better]
    gains, losses = np.maximum(delta, 0), np.maximum(-delta, 0)
    best = np.sort(gains)[::-1][: max(1, len(gains) // 100)].sum()
    return {
        "rate": float((delta < -EPS).mean()),
        "help_rate": float((delta > EPS).mean()),
        "help": float(gains.sum()),
        "harm": float(losses.sum()),
        "ratio": float(gains.sum() / losses.sum()) if losses.any() else None,
        "concentration": float(best / gains.sum()) if gains.any() else 0.0,
    }


def by_copied(rows: Rows) -> dict:
    """Gain (off less on) by how many tokens were copied; what is not copied, and its share.

    Returns:
      bins: from, to (None: and more), share of the tokens, nats a token, total nats. novel: nats a token
      where the target is no end of any run. copy_share: of the total gain, where it is.
    """
    delta, copied, bins = rows.nats["off"] - rows.nats["on"], rows["copied"], []
    for low, high in BINS:
        inside = (copied >= low) & (copied <= (np.inf if high is None else high))
        gain = float(delta[inside].sum())
        mean = gain / int(inside.sum()) if inside.any() else None
        share = float(inside.mean())
        bins.append({"from": low, "to": high, "share": share, "nats_per_token": mean, "nats": gain})
    total = float(delta.sum())
    return {
        "bins": bins,
        "novel": bins[0]["nats_per_token"],
        "copy_share": float(delta[copied >= 1].sum() / total) if total else None,
    }


def filtered(rows: Rows, m: int) -> list[dict]:
    """Bits per byte, and what retrieval is worth, on chunks that share less than so much of their M tokens
    with what they retrieved or read; in the paper (section 2.6) they may share just so much, too."""
    out = []
    for below in FILTERS:
        kept = rows.where(is_little(rows["overlap"], below, m))
        one = {"below": below, "share_of_bytes": float(kept["bytes"].sum() / rows["bytes"].sum())}
        one["bits_per_byte"] = bits_per_byte(kept)
        pair = ("random", "on") if "random" in rows.nats else ("off", "on")
        one["content"] = effect(kept, *pair) if len(kept) else None
        out.append(one)
    return out


def by_place(rows: Rows, m: int, parts: int = 8) -> list[dict]:
    """Gain (off less on) by the place in the chunk, in eighths: neighbours age."""
    delta, place = rows.nats["off"] - rows.nats["on"], rows["position"] % m * parts // m
    count, total = (np.bincount(place, w, parts) for w in (None, delta))
    return [
        {"from": i * m // parts, "nats_per_token": float(total[i] / count[i]) if count[i] else None}
        for i in range(parts)
    ]


def by_source(rows: Rows) -> dict[str, dict]:
    """The content effect (or off less on) of the documents of each source, if they name one."""
    sources = [d["metadata"].get("source") for d in rows.facts["documents"]]
    sources = [str(s) if isinstance(s, str | int | float) else None for s in sources]
    pair = ("random", "on") if "random" in rows.nats else ("off", "on")
    out = {}
    for source in sorted({s for s in sources if s}):
        mine = np.array([s == source for s in sources])[rows["document"]]
        if mine.any():
            out[str(source)] = effect(rows.where(mine), *pair) | {"tokens": int(mine.sum())}
    return out


def inside(rows: Rows, k: int) -> dict:
    """What cross-attention did: ratio, of each layer, |what it adds| / |what it adds to|; mass, the
    attention on N and F of each neighbour [K, 2]. Over tokens that read anything."""
    read = (rows["neighbours"] >= 0).any(axis=1)
    if not read.any():
        return {"ratio": [0.0] * rows["ratio"].shape[1], "mass": np.zeros((k, 2)).tolist()}
    ratio, mass = (rows[n][read].mean(axis=0, dtype=np.float64) for n in ("ratio", "mass"))
    return {"ratio": ratio.tolist(), "mass": mass.reshape(k, 2).tolist()}


def failures(chunks: Chunks) -> dict[str, dict]:
    """Of each class of chunks: share, and nats of off less on in all."""
    of, gain = classes(chunks), chunks.nats["off"] - chunks.nats["on"]
    return {
        name: {
            "share": float((of == name).mean()),
            "nats": float(gain[of == name].sum()),
            "means": words,
        }
        for name, words in CLASSES.items()
    }
