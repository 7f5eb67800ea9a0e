"""Longest common runs of tokens: a chunk of 64 with a neighbour of 128, pairs a second.

    pip install -e .
    python benchmarks/overlap.py
    python benchmarks/overlap.py --smoke      # does it run? few pairs

`evaluate.overlap.runs` beside the same dynamic programming in NumPy, all pairs at once, and in plain Python,
pair by pair, which is what one would write first. All give the same numbers, which is checked. Takes
20 seconds.
"""

import time

import common
import numpy as np

CHUNK, READ, CHECKED = 64, 128, 100


def by_numpy(a, b):
    """Of each token the longest run that ends with it, as `runs`."""
    out, ending = np.zeros(a.shape, np.int32), np.zeros((len(a), b.shape[1] + 1), np.int32)
    for i in range(a.shape[1]):
        same = (a[:, i : i + 1] == b) & (b != 0)
        ending[:, 1:] = np.where(same, ending[:, :-1] + 1, 0)
        out[:, i] = ending.max(axis=1)
    return out


def by_python(a, b):
    """The same of one pair after the other."""
    out = np.zeros(a.shape, np.int32)
    for p, (x, y) in enumerate(zip(a.tolist(), b.tolist())):
        ending = [0] * (len(y) + 1)
        for i, token in enumerate(x):
            ending = [0] + [ending[j] + 1 if token == t != 0 else 0 for j, t in enumerate(y)]
            out[p, i] = max(ending)
    return out


def main():
    parser = common.parser(__doc__, corpus=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=20_000)
    args = common.parse(parser, pairs=200)
    from retro_jax.evaluate.overlap import runs

    rng = np.random.default_rng(0)
    a, b = (rng.integers(1, 300, (args.pairs, n)).astype(np.uint16) for n in (CHUNK, READ))
    ways = {
        "retro_jax": (runs, args.pairs),
        "NumPy": (by_numpy, 2_000),
        "plain Python": (by_python, CHECKED),
    }
    expected, seconds = by_numpy(a[:CHECKED], b[:CHECKED]), {name: [] for name in ways}
    for _ in range(args.rounds + 1):  # the first compiles
        for name, (run, count) in ways.items():
            begin = time.perf_counter()
            found = run(a[:count], b[:count])
            seconds[name].append((time.perf_counter() - begin) / len(found))
            np.testing.assert_array_equal(found[:CHECKED], expected)
    ours = seconds["retro_jax"][1:]
    rows = []
    for name, each in seconds.items():
        ratios = np.array(each[1:]) / np.array(ours)
        rows.append(
            {
                "way": name,
                "pairs/s": 1 / float(np.median(each[1:])),
                "times as long": f"{np.median(ratios):.3g} ({ratios.min():.3g} to {ratios.max():.3g})",
            }
        )
    common.show({f"runs of {CHUNK} tokens in {READ}": rows}, {"pairs/s": ",.0f"}, args.json)


if __name__ == "__main__":
    main()
