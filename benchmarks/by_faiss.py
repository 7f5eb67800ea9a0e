"""faiss's indexes, each tuned to a recall. Part of benchmarks/search.py."""

import contextlib
import importlib.util
import os
import tempfile
import time

import common
import numpy as np
from rich.progress import track

K_FACTORS = (2, 4, 8, 16, 32, 64)  # of k are compared exactly after product quantization
CORES = sorted(os.sched_getaffinity(0))


def threads(number: int):
    """Has this process, with every library in it, use so many cores."""
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(number)
    for task in os.listdir("/proc/self/task"):  # XLA's, of Exact, among them
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended since it was listed
            os.sched_setaffinity(int(task), CORES[:number])


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

        def fits(value: int, more=more, width=width) -> bool:
            method.set(**{width: value}, **more)
            return reaches(method)

        value = narrowest(fits, most)
        if value is not None:
            method.set(**{width: value}, **more)
            found.append((seconds(method), {width: value, **more}))
    if found:
        method.set(**min(found, key=lambda f: f[0])[1])


def faiss_methods(vectors, reaches, seconds) -> dict[str, dict]:
    """faiss's indexes, tuned, by name."""
    import faiss

    lists = int(4 * np.sqrt(len(vectors)))
    quantized = f"IVF{lists},PQ{vectors.shape[1] // 2}x4fs,RFlat"
    widest = {f"IVF{lists},Flat": lists, quantized: lists, "HNSW32,Flat": 4096, "Flat": 0}
    made = {}
    for name, most in track(widest.items(), "building and tuning faiss"):
        threads(common.THREADS)
        method = Faiss(faiss, name, vectors)
        if most:
            threads(1)
            tune(method, name, most, reaches, seconds)
        about = {"setting": method.setting, "build": method.build_seconds}
        made[f"faiss {name}"] = about | {"search": (method, method), "disk": method.disk()}
    return made
