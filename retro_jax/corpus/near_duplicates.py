"""Held-out documents that nearly repeat a training document: 13-gram Jaccard, MinHash to find them.

The paper's rule (section 2.1 there): MinHash over 13-grams, similarity 0.8.
"""

import re
import zlib
from array import array
from collections import deque
from collections.abc import Iterable

import numpy as np

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
        # Imported here, as it takes long: most commands compare no documents.
        from datasketch import MinHashLSH

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


class Contained:
    """How much of each of some documents stands in any one other: a page in a larger one is no near-duplicate of it,
    and nothing of it is new all the same.

    Args:
      texts: of the documents [N].
    """

    def __init__(self, texts: Iterable[str]):
        grams = [shingles(text) for text in texts]
        self._sizes = np.array([len(g) for g in grams])
        owner = np.repeat(np.arange(len(grams)), self._sizes)
        every = np.concatenate(grams)
        order = np.argsort(every, kind="stable")
        self._owner = owner[order]
        self._grams, self._begins = np.unique(every[order], return_index=True)
        self._ends = np.append(self._begins[1:], len(every))
        self.shares = np.zeros(len(grams))

    def add(self, text: str):
        """Compares another document: `shares` [N] has the largest share of their 13-grams that stood in one."""
        other = shingles(text)
        at = np.searchsorted(self._grams, other)
        at = at[
            (at < len(self._grams)) & (self._grams[np.minimum(at, len(self._grams) - 1)] == other)
        ]
        if not len(at):
            return
        count = np.zeros(len(self.shares))
        for begin, end in zip(self._begins[at], self._ends[at]):
            count[self._owner[begin:end]] += 1
        self.shares = np.maximum(self.shares, count / self._sizes)


def _minhash(grams: np.ndarray):
    from datasketch import MinHash

    sketch = MinHash(num_perm=64, hashfunc=int)
    sketch.update_batch(grams)
    return sketch
