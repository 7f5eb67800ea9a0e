"""Reading shards: records.Records against grain's own TFRecord reader, on the same files.

    python benchmarks/records.py [--records 4000] [--rounds 7]

Both sides decode every feature to NumPy; ours also verifies the checksum and can read in any order,
which a shuffle over the whole corpus needs. Prints examples a second, medians over rounds in which
the two take turns, and the ratio of the medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import grain
import numpy as np

from retro_jax import records


def write(directory: Path, count: int):
    def example(i):
        rng = np.random.default_rng(i)
        return {
            "tokens": rng.integers(0, 60_000, 2048).astype(np.uint16),
            "neighbours": rng.integers(0, 60_000, (32, 2, 128)).astype(np.uint16),
            "neighbour_ids": rng.integers(0, 2**40, (32, 2)),
        }

    records.write(directory, lambda start: map(example, range(start, count)))


def ours(directory: Path) -> int:
    """All records in a random order."""
    opened = records.Records(directory)
    return sum(len(opened[i]) > 0 for i in np.random.default_rng(0).permutation(len(opened)))


def grains(directory: Path) -> int:
    """All records in the order of the file, features found at our known offsets."""
    opened = records.Records(directory)
    seen = 0
    for path in sorted(directory.glob("*.tfrecord")):
        for payload in grain.experimental.TFRecordIterDataset(str(path)):
            for name, (dtype, shape) in opened._features.items():
                np.frombuffer(payload, dtype, int(np.prod(shape)), opened._offsets[name]).copy()
            seen += 1
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), args.records)
        seconds = {ours: [], grains: []}
        for _ in range(args.rounds):
            for reader, times in seconds.items():
                start = time.perf_counter()
                assert reader(Path(directory)) == args.records
                times.append(time.perf_counter() - start)
    rate = {r: args.records / statistics.median(t) for r, t in seconds.items()}
    print(f"records.Records              {rate[ours]:10,.0f} examples/s")
    print(f"grain TFRecordIterDataset    {rate[grains]:10,.0f} examples/s")
    print(f"ratio                        {rate[ours] / rate[grains]:10.2f}")


if __name__ == "__main__":
    main()
