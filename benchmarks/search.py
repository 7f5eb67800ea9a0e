"""Search beside faiss at equal recall on the vectors of a prepared corpus; ScaNN on synthetic millions.

    pip install -e . faiss-cpu==1.15.1
    python benchmarks/search.py --source='jsonl:corpus.jsonl#text' --workdir=runs/benchmark
    python benchmarks/search.py --vectors 1000000
    python benchmarks/search.py --smoke      # does it run? a few files of Python's library

Without --vectors: the database are the chunks that are trained on, the queries held-out chunks, none
of which is in it, both embedded by the quickstart's `prepare`; squared L2, k = 10. Our ScaNN index is
built with min_recall 0.95. Each faiss index gets the narrowest search (nprobe, efSearch; for the
refined one the fastest pair of nprobe and k_factor) whose recall is not below ours: doubled until it is
reached, then bisected. Recall is by distance: a neighbour counts that is as near as the true k-th.
Building has all threads, and ours includes measuring its recall. Searches take turns, round by round;
printed are medians of a batch of all queries, and their ratio to ours (above 1: ours is faster). One
thread is one core for the whole process, and of ScaNN `search_batched`, which `Scann.search` calls
for few queries; all threads is `search_batched_parallel`, which it calls for many and which hands out
256 queries at a time.

With --vectors: a database of so many vectors, a mixture of Gaussians with a decaying spectrum, built
by `division.build` (auto, k = 2, the default min_recall) in a process of its own, as one shard
and as four. Its peak memory counts pages of the mapped file of vectors, which the system can take
back; anonymous memory, sampled, does not. Queries are of the same mixture; ScaNN has one thread.
"""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np
from by_faiss import faiss_methods, threads
from rich.progress import track

from retro_jax.config import RetrievalConfig
from retro_jax.retrieval import division, sharded
from retro_jax.retrieval.index import Given, merge
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.indexes.scann import Scann
from retro_jax.store.columns import Columns, Writer

K, MIN_RECALL = 10, 0.95
WIDTH, CENTRES, SHARDS, BLOCK = 384, 1000, 4, 16_384
FORMATS = {
    "build s": ",.1f", "CPU s": ",.1f", "µs, 1 thread": ",.1f", "µs, all threads": ",.1f",
    "µs, batch": ",.1f", "µs, single": ",.1f", "recall": ".3f", "recall@2": ".3f",
    "recall@10": ".3f", "disk MB": ",.1f", "1 thread / ours": ".2f", "all threads / ours": ".2f",
    "shards": "d", "peak GiB": ".2f", "anonymous GiB": ".2f",
}  # fmt: skip


def true_distances(vectors, queries, k: int) -> np.ndarray:
    """Distances to the k nearest [Q, k], the database going by in parts."""
    found = []
    for start in track(range(0, len(vectors), BLOCK), "exact search, for the recall"):
        found.append(Exact(np.array(vectors[start : start + BLOCK])).search(queries, k))
        found = [merge(found, k)]
    return found[0][1]


def recall(distances, truth, queries, k: int) -> float:
    """Recall@k by distance, as `retrieval.indexes.truth` has it."""
    slack = 1e-5 * (1 + np.square(queries).sum(axis=1, keepdims=True))
    return float((distances[:, :k] <= truth[:, k - 1 : k] + slack).mean())


def ours(vectors, directory: Path) -> dict:
    """Our ScaNN index, for one thread and for all, and what building it took."""
    config = RetrievalConfig(
        index="scann", neighbours=K, settings={"scann": {"min_recall": MIN_RECALL}}
    )
    start = time.perf_counter()
    division.build(vectors, directory, config, Given(K))
    seconds = time.perf_counter() - start
    every = sharded.ShardedIndex(directory).shard(0).index
    alone = every._searcher.search_batched
    single = SimpleNamespace(search_batched=alone, search_batched_parallel=alone)
    settings = every.leaves, every.leaves_to_search, every.reorder
    one = Scann(single, len(every), vectors.shape[1], *settings)
    setting = f"leaves {one.leaves_to_search} of {one.leaves}"
    return {"search": (one, every), "build": seconds, "setting": setting}


def compare(vectors, queries, rounds: int) -> dict[str, list[dict]]:
    """Tables of approximate and of exact search."""

    def seconds(method) -> float:
        start = time.perf_counter()
        method.search(queries, K)
        return time.perf_counter() - start

    def found(method) -> float:
        return recall(method.search(queries, K)[1], truth, queries, K)

    threads(common.THREADS)
    truth = true_distances(vectors, queries, K)
    methods, exact = {}, Exact(vectors)
    with tempfile.TemporaryDirectory() as directory:
        if common.installed("retro_jax Scann", "scann"):
            made = ours(vectors, Path(directory))
            methods["retro_jax Scann"] = made | {"disk": common.size(directory)}
            reached = found(made["search"][0])
        else:
            reached = MIN_RECALL
        about = {"setting": "", "build": 0.0, "disk": vectors.nbytes}
        methods["retro_jax Exact"] = about | {"search": (exact, exact)}
        if common.installed("faiss", "faiss"):
            methods |= faiss_methods(vectors, lambda m: found(m) >= reached, seconds)
        times = {(name, one): [] for name in methods for one in (0, 1)}
        for _ in track(range(rounds), "rounds"):
            for which, number in enumerate((1, common.THREADS)):
                threads(number)
                for name, about in methods.items():
                    times[name, which].append(seconds(about["search"][which]))
        recalls = {name: found(about["search"][0]) for name, about in methods.items()}
    micros = {key: statistics.median(t) / len(queries) * 1e6 for key, t in times.items()}
    tables = {}
    for kind, of in (
        ("approximate", ("Scann", "IVF", "HNSW")),
        ("exact", ("Exact", "faiss Flat")),
    ):
        names = [name for name in methods if any(part in name for part in of)]
        title = (
            f"{kind} search, {len(vectors):,} vectors of {vectors.shape[1]}, k = {K}, batches of "
        )
        title += f"{len(queries):,}, medians of {rounds}; all threads: {common.THREADS}"
        if names:
            tables[title] = [
                {
                    "index": name,
                    "search": methods[name]["setting"],
                    "recall": recalls[name],
                    "build s": methods[name]["build"],
                    "µs, 1 thread": micros[name, 0],
                    "µs, all threads": micros[name, 1],
                    "1 thread / ours": micros[name, 0] / micros[names[0], 0],
                    "all threads / ours": micros[name, 1] / micros[names[0], 1],
                    "disk MB": methods[name]["disk"] / 1e6,
                }
                for name in names
            ]
    return tables


def mixture(rng, count: int) -> np.ndarray:
    """Vectors around CENTRES centres; variance falls as 1 / dimension."""
    centres = np.random.default_rng(1).standard_normal((CENTRES, WIDTH), np.float32)
    spectrum = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    noise = rng.standard_normal((count, WIDTH), np.float32)
    return spectrum * (centres[rng.integers(CENTRES, size=count)] + 0.7 * noise)


def build(directory: Path, shard: int, out: Path) -> dict:
    """Builds an index in a process of its own; seconds and peak memory, resident and anonymous."""
    worker = common.Worker("--worker", str(directory), str(out), str(shard))
    status, anonymous = Path(f"/proc/{worker.pid}/status"), [0]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(worker.ask, "build")
        while not answer.done():
            fields = dict(line.split(":") for line in status.read_text().splitlines())
            anonymous.append(int(fields.get("RssAnon", "0").split()[0]) * 1024)
            time.sleep(0.02)
    worker.close()
    return answer.result() | {"anonymous": max(anonymous)}


def synthetic(count: int, asked: int, rounds: int) -> dict[str, list[dict]]:
    """The table of --vectors."""
    rng, rows = np.random.default_rng(0), []
    queries = mixture(rng, asked)
    with tempfile.TemporaryDirectory() as root:
        writer = Writer(Path(root, "vectors"), {"vectors": (np.float32, (WIDTH,))})
        for start in track(range(0, count, BLOCK), "writing vectors"):
            writer.append(vectors=mixture(rng, min(BLOCK, count - start)))
        writer.commit()
        truth = true_distances(Columns(Path(root, "vectors"))["vectors"], queries, K)
        for shards in track((1, SHARDS), "building and searching"):
            out = Path(root, f"{shards}")
            out.mkdir()
            built = build(Path(root, "vectors"), -(-count // shards), out)
            opened, batch, single, near = sharded.ShardedIndex(out), [], [], {}
            for k in (2, K):
                near[k] = recall(opened.search(queries, k)[1], truth, queries, k)
            for _ in range(rounds):
                start = time.perf_counter()
                opened.search(queries, 2)
                batch.append((time.perf_counter() - start) / len(queries))
            for query in queries:
                start = time.perf_counter()
                opened.search(query[None], 2)
                single.append(time.perf_counter() - start)
            rows.append(
                {
                    "shards": shards,
                    "kind": built["result"]["kind"],
                    "build s": built["seconds"],
                    "CPU s": built["cpu_seconds"],
                    "peak GiB": built["peak"] / 2**30,
                    "anonymous GiB": built["anonymous"] / 2**30,
                    "disk MB": common.size(out) / 1e6,
                    "recall@2": near[2],
                    "recall@10": near[K],
                    "µs, batch": statistics.median(batch) * 1e6,
                    "µs, single": statistics.median(single) * 1e6,
                }
            )
    return {f"{count:,} synthetic vectors of {WIDTH}, search for k = 2": rows}


def worker(directory: str, out: str, shard: str):
    """Builds an index of the vectors in a directory."""
    vectors = Columns(Path(directory))["vectors"]
    config = RetrievalConfig(index="auto", neighbours=2, index_shard=int(shard))
    common.serve({"build": lambda: division.build(vectors, Path(out), config, Given(2))})


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vectors", type=int, help="synthetic vectors instead of a corpus")
    parser.add_argument("--queries", type=int, default=2000, help="held-out chunks, at most")
    parser.add_argument("--worker", nargs=3, help="for itself")
    args = common.parse(parser, queries=300)
    if args.worker:
        return worker(*args.worker)
    if args.vectors:
        tables = synthetic(args.vectors, min(args.queries, 1000), args.rounds)
        return common.show(tables, FORMATS, args.json)
    prepared = common.prepare(args)
    heldout = prepared.searched("heldout")
    rows = np.linspace(0, len(heldout) - 1, min(args.queries, len(heldout)))
    queries = np.array(heldout[rows.astype(int)], np.float32)
    database = np.array(prepared.searched("train"), np.float32)
    return common.show(compare(database, queries, args.rounds), FORMATS, args.json)


if __name__ == "__main__":
    main()
