"""How many partitions a query has to be sent to, as their number grows and as the database grows.

    python benchmarks/partitions.py --source='jsonl:corpus.jsonl#text'
    python benchmarks/partitions.py --smoke      # does it run?

The vectors are those of the quickstart's `prepare` of --source with TF-IDF; a smaller database is a random part of
them. Partitions are cut and vectors placed as `retro prepare` does it (retro_jax/retrieval/routing.py), and each
partition is searched exactly, so that what is missed is missed by the route alone. Queries are vectors of the
database, whose own place does not count. `probes` is the number of partitions that a query is sent to on average,
with the slack at which they hold the share --recall of the k nearest.

The exponents are slopes of log probes over log partitions, by least squares: of the largest database cut ever
finer, and of partitions that keep their size while the database grows.
"""

import common
import numpy as np

KS = (10, 50)
FORMATS = {"chunks": ",d", "partitions": ",d", "a partition": ",.0f", "probes, k=10": ".2f",
           "probes, k=50": ".2f", "largest, of the mean": ".1f", "k=10": ".2f", "k=50": ".2f"}  # fmt: skip


def probes(
    place: np.ndarray, near: np.ndarray, farther: np.ndarray, truth: np.ndarray, recall: float
) -> float:
    """How many partitions are visited to see a share of the nearest.

    Args:
      place: the partitions of each vector [N, 2].
      near, farther: all partitions, the nearest first, and how far these are [Q, P]: `routing.nearest`.
      truth: their neighbours [Q, k].
    """
    far = np.zeros(near.shape, farther.dtype)
    np.put_along_axis(far, near, farther, axis=1)
    homes = place[truth]
    reached = np.take_along_axis(far, homes.reshape(len(far), -1), axis=1).reshape(homes.shape)
    slack = np.quantile(reached.min(axis=-1), recall, method="higher")
    return float((farther <= slack).sum(axis=1).mean())


def measure(vectors: np.ndarray, parts: int, queries: int, recall: float) -> dict:
    """The row of vectors [N, E] in so many partitions."""
    from retro_jax.retrieval import routing
    from retro_jax.retrieval.indexes.exact import Exact

    centres = routing.fit(vectors, parts)
    place = np.concatenate(list(routing.placed(vectors, centres)))
    asked = vectors[np.linspace(0, len(vectors) - 1, queries).astype(int)]
    truth = Exact(vectors).search(asked, max(KS) + 1)[0][:, 1:]
    route = routing.nearest(asked, centres, parts)
    sizes = np.bincount(place.ravel(), minlength=parts)
    found = {f"probes, k={k}": probes(place, *route, truth[:, :k], recall) for k in KS}
    return {"chunks": len(vectors), "partitions": parts, "a partition": sizes.mean()} | found | {
        "largest, of the mean": sizes.max() / sizes.mean()
    }  # fmt: skip


def exponent(rows: list[dict], k: int) -> float:
    """The slope of log probes over log partitions."""
    x, y = (np.log([r[n] for r in rows]) for n in ("partitions", f"probes, k={k}"))
    return float(np.polyfit(x, y, 1)[0])


def exponents(rows: list[dict]) -> list[dict]:
    """Of the largest database cut finer, and of each size of partition that several databases have."""
    most = max(r["chunks"] for r in rows)
    groups = {f"{most:,} chunks, cut finer": [r for r in rows if r["chunks"] == most]}
    for row in rows:
        name = f"partitions of about {row['a partition']:,.0f}, the database growing"
        same = [r for r in rows if 0.9 < r["a partition"] / row["a partition"] < 1.1]
        groups |= {name: same} if same[0] is row and len(same) > 2 else {}
    return [
        {"of": name} | {f"k={k}": exponent(own, k) for k in KS}
        for name, own in groups.items()
        if len(own) > 1
    ]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--parts", type=int, nargs="*", default=(16, 64, 256, 1024))
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--smallest", type=int, default=200, help="vectors of a partition")
    args = common.parse(parser, parts=(2, 4), queries=20, smallest=4)
    vectors = np.asarray(common.prepare(args, "reranked").searched("train"), np.float32)
    order, rows = np.random.default_rng(0).permutation(len(vectors)), []
    for size in (len(vectors) // 16, len(vectors) // 4, len(vectors)):
        own = vectors[np.sort(order[:size])]
        enough = (p for p in args.parts if 2 * size >= p * args.smallest)
        rows += [measure(own, parts, args.queries, args.recall) for parts in enough]
    common.show({"probes": rows, "exponents": exponents(rows)}, FORMATS, args.json)


if __name__ == "__main__":
    main()
