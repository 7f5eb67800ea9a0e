"""Search beside faiss at equal recall on the vectors of a prepared corpus; ScaNN on synthetic millions.

    pip install -e . faiss-cpu==1.15.1
    python benchmarks/search.py --source='jsonl:corpus.jsonl#text' --workdir=runs/benchmark
    python benchmarks/search.py --vectors 1000000

Without --vectors: the database are the chunks that are trained on, the queries held-out chunks, none
of which is in it, both embedded by the quickstart's `prepare`; squared L2, k = 10. Our ScaNN index is
built with min_recall 0.95. Each faiss index gets the narrowest search (nprobe, efSearch; for the
refined one the fastest pair of nprobe and k_factor) whose recall is not below ours: doubled until it is
reached, then bisected. Recall is by distance: a neighbour counts that is as near as the true k-th.
Building has all threads, and ours includes measuring its recall. Searches take turns, round by round;
printed are medians of a batch of all queries, and their ratio to ours (above 1: ours is faster). One
thread is one core for the whole process, and of ScaNN `search_batched`, which `ScannIndex.search` calls
for few queries; all threads is `search_batched_parallel`, which it calls for many and which hands out
256 queries at a time.

With --vectors: a database of so many vectors, a mixture of Gaussians with a decaying spectrum, built
by `retrieval.index.build` (auto, k = 2, the default min_recall) in a process of its own, as one shard
and as four. Its peak memory counts pages of the mapped file of vectors, which the system can take
back; anonymous memory, sampled, does not. Queries are of the same mixture; ScaNN has one thread.
"""

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np
from rich.progress import track

from retro_jax.columns import Columns, Writer
from retro_jax.config import RetrievalConfig
from retro_jax.retrieval import index
from retro_jax.retrieval.exact import ExactIndex
from retro_jax.retrieval.tree import ScannIndex

K, QUERIES, MIN_RECALL = 10, 2000, 0.95
K_FACTORS = (2, 4, 8, 16, 32, 64)  # of k are compared exactly after product quantization
CORES = sorted(os.sched_getaffinity(0))
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
        found.append(ExactIndex(np.array(vectors[start : start + BLOCK])).search(queries, k))
        found = [index.merge(found, k)]
    return found[0][1]


def recall(distances, truth, queries, k: int) -> float:
    """Recall@k by distance, as `tree.recall_of` has it."""
    slack = 1e-5 * (1 + np.square(queries).sum(axis=1, keepdims=True))
    return float((distances[:, :k] <= truth[:, k - 1 : k] + slack).mean())


class Faiss:
    """A faiss index behind our interface; `widths` are the arguments of its search, most last."""

    def __init__(self, library, factory: str, vectors):
        self.library, start = library, time.perf_counter()
        self.index = library.index_factory(vectors.shape[1], factory)
        self.index.train(vectors)
        self.index.add(vectors)
        self.build_seconds = time.perf_counter() - start
        self.setting = ""

    def set(self, **widths):
        """nprobe, efSearch or k_factor_rf."""
        self.setting = ", ".join(f"{n} {w}" for n, w in widths.items())
        self.library.ParameterSpace().set_index_parameters(
            self.index, ",".join(f"{n}={w}" for n, w in widths.items())
        )

    def search(self, queries, k: int):
        distances, ids = self.index.search(queries, k)
        return ids, distances

    def disk(self) -> int:
        """Bytes of its file."""
        with tempfile.TemporaryDirectory() as directory:
            self.library.write_index(self.index, f"{directory}/index")
            return common.size(directory)


def narrowest(reaches, most: int) -> int | None:
    """The smallest width up to `most` that reaches: doubled until it does, then bisected."""
    high = 1
    while not reaches(high):
        if high == most:
            return None
        high = min(most, 2 * high)
    low = high // 2  # too narrow, or 0
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def tune(method: Faiss, name: str, most: int, reaches, seconds):
    """Sets the cheapest search of a faiss index that reaches the recall.

    reaches: whether it does as it is set. seconds: of a search as it is set.
    """
    found = []
    for more in [{"k_factor_rf": f} for f in K_FACTORS] if name.endswith("RFlat") else [{}]:
        width = "efSearch" if "HNSW" in name else "nprobe"
        fits = lambda w, m=more, n=width: (method.set(**{n: w}, **m), reaches(method))[1]  # noqa: E731
        value = narrowest(fits, most)
        if value is not None:
            method.set(**{width: value}, **more)
            found.append((seconds(method), {width: value, **more}))
    if found:
        method.set(**min(found, key=lambda f: f[0])[1])


def ours(vectors, directory: Path) -> dict:
    """Our ScaNN index, for one thread and for all, and what building it took."""
    start = time.perf_counter()
    index.build(vectors, directory, "scann", MIN_RECALL, K, 10**9)
    seconds = time.perf_counter() - start
    one = index.load(directory).shard(0)
    every, alone = one, one._searcher.search_batched
    single = SimpleNamespace(search_batched=alone, search_batched_parallel=alone)
    settings = every.leaves, every.leaves_to_search, every.reorder
    one = ScannIndex(single, len(every), vectors.shape[1], *settings)
    setting = f"leaves {one.leaves_to_search} of {one.leaves}"
    return {"search": (one, every), "build": seconds, "setting": setting}


def compare(vectors, queries, rounds: int) -> dict[str, list[dict]]:
    """Tables of approximate and of exact search."""
    import faiss

    def threads(number: int):
        faiss.omp_set_num_threads(number)
        for task in os.listdir("/proc/self/task"):  # XLA's, of ExactIndex, among them
            os.sched_setaffinity(int(task), CORES[:number])

    def seconds(method) -> float:
        start = time.perf_counter()
        method.search(queries, K)
        return time.perf_counter() - start

    threads(common.THREADS)
    truth = true_distances(vectors, queries, K)
    found = lambda method: recall(method.search(queries, K)[1], truth, queries, K)  # noqa: E731
    lists = int(4 * np.sqrt(len(vectors)))
    methods = {}
    with tempfile.TemporaryDirectory() as directory:
        made = ours(vectors, Path(directory)) | {"disk": common.size(directory)}
        methods["retro_jax ScannIndex"], reached = made, found(made["search"][0])
        exact = ExactIndex(vectors)
        about = {"setting": "", "build": 0.0, "disk": vectors.nbytes}
        methods["retro_jax ExactIndex"] = about | {"search": (exact, exact)}
        quantized = f"IVF{lists},PQ{vectors.shape[1] // 2}x4fs,RFlat"
        widest = {f"IVF{lists},Flat": lists, quantized: lists, "HNSW32,Flat": 4096, "Flat": 0}
        for name, most in track(widest.items(), "building and tuning faiss"):
            threads(common.THREADS)
            method = Faiss(faiss, name, vectors)
            if most:
                threads(1)
                tune(method, name, most, lambda m: found(m) >= reached, seconds)
            about = {"setting": method.setting, "build": method.build_seconds}
            about["search"] = (method, method)
            methods[f"faiss {name}"] = about | {"disk": method.disk()}
        times = {(name, one): [] for name in methods for one in (0, 1)}
        for _ in track(range(rounds), "rounds"):
            for which, number in enumerate((1, common.THREADS)):
                threads(number)
                for name, about in methods.items():
                    times[name, which].append(seconds(about["search"][which]))
        micros = {key: statistics.median(t) / len(queries) * 1e6 for key, t in times.items()}
        tables = {}
        for title, first, names in (
            ("approximate", "retro_jax ScannIndex", ("Scann", "IVF", "HNSW")),
            ("exact", "retro_jax ExactIndex", ("Exact", "faiss Flat")),
        ):
            title += (
                f" search, {len(vectors):,} vectors of {vectors.shape[1]}, k = {K}, batches of "
            )
            title += f"{len(queries):,}, medians of {rounds}; all threads: {common.THREADS}"
            tables[title] = [
                {
                    "index": name,
                    "search": about["setting"],
                    "recall": found(about["search"][0]),
                    "build s": about["build"],
                    "µs, 1 thread": micros[name, 0],
                    "µs, all threads": micros[name, 1],
                    "1 thread / ours": micros[name, 0] / micros[first, 0],
                    "all threads / ours": micros[name, 1] / micros[first, 1],
                    "disk MB": about["disk"] / 1e6,
                }
                for name, about in methods.items()
                if any(part in name for part in names)
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


def synthetic(count: int, rounds: int) -> dict[str, list[dict]]:
    """The table of --vectors."""
    rng, rows = np.random.default_rng(0), []
    queries = mixture(rng, 1000)
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
            opened, batch, single, near = index.load(out), [], [], {}
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
    vectors, r = Columns(Path(directory))["vectors"], RetrievalConfig()
    given = vectors, Path(out), "auto", r.min_recall, 2, int(shard)
    common.serve({"build": lambda: index.build(*given)})


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vectors", type=int, help="synthetic vectors instead of a corpus")
    parser.add_argument("--worker", nargs=3, help="for itself")
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker)
    if args.vectors:
        return common.show(synthetic(args.vectors, args.rounds), FORMATS, args.json)
    base = common.prepare(args.source, args.workdir)
    vectors = {s: Columns(base / "embeddings" / s)["vectors"] for s in ("train", "heldout")}
    rows = np.linspace(0, len(vectors["heldout"]) - 1, min(QUERIES, len(vectors["heldout"])))
    queries = np.array(vectors["heldout"][rows.astype(int)], np.float32)
    database = np.array(vectors["train"], np.float32)
    return common.show(compare(database, queries, args.rounds), FORMATS, args.json)


if __name__ == "__main__":
    main()
