"""Held-out documents that nearly repeat a training document: 13-gram Jaccard, MinHash to find them.

The paper's rule (section 2.1 there): MinHash over 13-grams, similarity 0.8.
"""

import re
import zlib
from array import array
from collections import deque
from collections.abc import Iterable

import numpy as np
from datasketch import MinHash, MinHashLSH

N_GRAM = 13
_WORD = re.compile(r"\w+|[^\w\s]")


def shingles(text: str) -> np.ndarray:
    """Hashes of the text's 13-grams of words, sorted, once each; of the whole for a shorter text."""
    words, hashes = deque(maxlen=N_GRAM), array("L")  # as large a text as may be: hashes only
    for number, match in enumerate(_WORD.finditer(text), 1):
        words.append(match.group().encode())
        if number >= N_GRAM:
            hashes.append(zlib.crc32(b" ".join(words)))
    return np.unique(np.array(hashes or [zlib.crc32(b" ".join(words))], np.int64))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a & b| / |a | b| of two arrays from `shingles`."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


class HeldOut:
    """The held-out documents, to which training documents are compared one after another.

    MinHash proposes pairs from half the threshold on; the exact similarity of the sets decides.
    Memory: 4 bytes for each word of held-out text, and nothing of training text.

    Args:
      heldout: (id, text).
      threshold: 13-gram Jaccard similarity from which two documents are near-duplicates.
    """

    def __init__(self, heldout: Iterable[tuple[str, str]], threshold: float):
        self._threshold = threshold
        self._shingles = {id: shingles(text).astype(np.uint32) for id, text in heldout}
        self._lsh = MinHashLSH(threshold=threshold / 2, num_perm=64)
        for id, grams in self._shingles.items():
            self._lsh.insert(id, _minhash(grams))

    def near(self, text: str) -> list[str]:
        """Ids of the held-out documents that nearly repeat `text`, sorted."""
        grams = shingles(text)
        return sorted(
            id
            for id in self._lsh.query(_minhash(grams))
            if jaccard(self._shingles[id], grams) >= self._threshold
        )


def _minhash(grams: np.ndarray) -> MinHash:
    sketch = MinHash(num_perm=64, hashfunc=int)
    sketch.update_batch(grams)
    return sketch
