"""The figures of a study: losses by size, laws through them, and what a database is worth in parameters.

    M(N) = N' / N, where a language model of N' has the loss that RETRO has with a decoder of N

N' lies between the two measured sizes whose losses enclose RETRO's, on a line that bends as the law through all sizes
does. That law itself misses each size by more than some gains are; it is asked only where RETRO is better than the
largest language model, or worse than the smallest, and goes on from there.

Uncertainty is a bootstrap of two levels, paired: documents are drawn once for all runs of a draw, and to the mean over
the seeds of a size comes noise of the seeds' variance, which is pooled over the sizes that have several.
"""

import functools
from dataclasses import dataclass

import numpy as np

from retro_jax.evaluate.beside import BASE
from retro_jax.study import laws
from retro_jax.study.sums import Sums

DRAWS = 1000
READER = "retro"
CURVES = (BASE, "on", "off", "random")
# What is set against the loss, and what it is called.
SIZES = {
    "layers": "parameters without embeddings",
    "parameters": "all parameters",
    "training_flops": "training FLOPs",
    "searched_flops": "training FLOPs, its search included",
    "flops_per_token": "FLOPs of a token",
}


@dataclass(eq=False)  # so that what is fitted to one is remembered
class Curve:
    """One method under one condition, at S sizes.

    Attributes:
      runs: names, of each size. sizes: {name: [S]}, see SIZES; of the layers it is the decoder's.
      losses: bits per byte, mean over seeds [S]. draws: the same of a bootstrap [D, S]. each: of the seeds.
    """

    runs: list[list[str]]
    sizes: dict[str, np.ndarray]
    losses: np.ndarray
    draws: np.ndarray
    each: list[np.ndarray]


def curves(
    sums: Sums, split: str, part: str, kept: np.ndarray | None = None, only: tuple[str, ...] = ()
) -> dict[str, Curve]:
    """The curves of a part of a split, by condition; the language model's is `language_model`. Of the runs of the
    study's `curves` those of one size are its seeds. Only what was scored is there.

    kept: which documents [N] count; by default all. only: the conditions that are wanted; by default all.
    """
    rng = np.random.default_rng(0)
    documents = len(sums.facts["documents"][split])
    kept = np.ones(documents, bool) if kept is None else kept
    draws = kept * rng.multinomial(documents, np.full(documents, 1 / documents), DRAWS)
    conditions = {BASE: (BASE, BASE)} | {c: (READER, c) for c in _conditions(sums) if c != BASE}
    found = {}
    for curve, (method, condition) in conditions.items():
        if only and curve not in only:
            continue
        by_size: dict[int, list[str]] = {}
        for name in sums.facts["curves"].get(method, ()):
            by_size.setdefault(_of(sums, name, method)["layers"], []).append(name)
        runs = [by_size[n] for n in sorted(by_size)]
        said = {
            n: _said(sums, n, split, part, condition, documents) for names in runs for n in names
        }
        runs = [own for names in runs if (own := [n for n in names if said[n] is not None])]
        if not runs:
            continue
        each = [np.array([_loss(*said[n], kept) for n in names]) for names in runs]
        drawn = np.stack(
            [np.mean([_loss(*said[n], draws) for n in names], axis=0) for names in runs], axis=1
        )
        counts = np.array([len(x) for x in each])
        noise = rng.standard_normal(drawn.shape) * (pooled(each) / counts**0.5)
        sizes = {
            s: np.array([_size(sums, names[0], method, s) for names in runs], float) for s in SIZES
        }
        losses = np.array([x.mean() for x in each])
        found[curve] = Curve(runs, sizes, losses, drawn + noise, each)
    return found


def _conditions(sums: Sums) -> list[str]:
    return list(dict.fromkeys(sums.columns["condition"].tolist()))


def _of(sums: Sums, run: str, method: str) -> dict:
    return sums.facts["runs"][run]["methods"][method]


def _size(sums: Sums, run: str, method: str, size: str) -> float:
    own = _of(sums, run, method)
    if size != "searched_flops":
        return own[size]
    # Of the language model's training nothing is searched for.
    return own["training_flops"] + (method != BASE) * sums.facts["runs"][run]["search_flops"]


def _said(sums: Sums, run: str, split: str, part: str, condition: str, documents: int):
    """nats and bytes by document [N], or None where it was not scored."""
    rows = sums.of(run=run, split=split, part=part, condition=condition)
    if not len(rows["nats"]):
        return None
    return tuple(
        np.bincount(rows["document"], rows[n], documents).astype(float) for n in ("nats", "bytes")
    )


def _loss(nats: np.ndarray, size: np.ndarray, weights) -> np.ndarray:
    """Bits per byte, of weights [..., N] of documents; nan of a draw that has no text."""
    with np.errstate(invalid="ignore"):
        return (weights * nats).sum(-1) / (weights * size).sum(-1) / np.log(2)


def pooled(each: list[np.ndarray]) -> float:
    """The standard deviation between seeds of one size, pooled over sizes; 0 where no size has two."""
    squares = sum(((x - x.mean()) ** 2).sum() for x in each)
    freedom = sum(len(x) - 1 for x in each)
    return float(np.sqrt(squares / freedom)) if freedom else 0.0


@functools.lru_cache(1024)
def law_of(curve: Curve, size: str = "layers") -> dict | None:
    """The law of a curve: floor, scale, exponent, 95 % of the exponent; left_out: errors where a size is left out, bits
    per byte. None with too few sizes."""
    x = curve.sizes[size]
    if len(x) < laws.FEWEST:
        return None
    one, many = laws.fit(x, curve.losses[None]), laws.fit(x, curve.draws)
    out = {n: float(getattr(one, n)[0]) for n in ("floor", "scale", "exponent")}
    out["exponent_interval"] = laws.interval(many.exponent)
    enough = len(x) > laws.FEWEST
    out["left_out"] = laws.leave_one_out(x, curve.losses).tolist() if enough else None
    return out


@functools.lru_cache(1024)
def multipliers(base: Curve, reader: Curve, size: str = "layers") -> list[dict]:
    """M of each size of the reader.

    Returns:
      size, loss, value, low and high (95 %); beyond, below: whether RETRO is better than the largest baseline, or worse
      than the smallest, and at_least: what was measured of one that is better than the largest; law: M by the law
      through all sizes; floor_0, floor_90: the same with its floor fixed at 0 and at nine tenths of the least loss.
    """
    x, own = base.sizes[size], reader.sizes[size]
    if len(x) < laws.FEWEST:
        return []
    one, many = laws.fit(x, base.losses[None]), laws.fit(x, base.draws)
    fixed = {
        f"floor_{round(100 * share)}": laws.fit(x, base.losses[None], share * base.losses.min())
        for share in (0.0, 0.9)
    }
    out = []
    for i, n in enumerate(own):
        loss, draws = reader.losses[i : i + 1], reader.draws[:, i]
        drawn = _reached(x, base.draws, draws, many) / n
        value = _reached(x, base.losses[None], loss, one)[0] / n
        low, high = laws.interval(drawn)
        out.append(
            {
                "size": float(n), "loss": float(loss[0]), "value": float(value), "low": low, "high": high,
                "beyond": bool(loss[0] < base.losses.min()), "below": bool(loss[0] > base.losses.max()),
                "at_least": float(min(value, x.max() / n)), "law": float(one.size(loss)[0] / n),
                **{name: float(law.size(loss)[0] / n) for name, law in fixed.items()},
            }
        )  # fmt: skip
    return out


def _reached(x: np.ndarray, losses: np.ndarray, loss: np.ndarray, law: laws.Law) -> np.ndarray:
    """The size [D] of a loss [D]: between measured sizes where it lies there, else by the law as it goes on from the
    smallest or the largest."""
    found = laws.between(x, losses, loss, law.exponent)
    best = losses.argmin(axis=1)
    larger = law.through(x[best], losses[np.arange(len(losses)), best]).size(loss)
    off = np.where(loss > losses[:, 0], law.through(x[0], losses[:, 0]).size(loss), larger)
    return np.where(np.isnan(found), off, found)
