"""Held-out documents that nearly repeat a training document: 13-gram Jaccard, MinHash to find them.

The paper's rule (section 2.1 there): MinHash over 13-grams, similarity 0.8.
"""

import re
import zlib
from collections.abc import Iterable

from datasketch import MinHash, MinHashLSH

N_GRAM = 13
_WORD = re.compile(r"\w+|[^\w\s]")


def shingles(text: str) -> set[int]:
    """Hashes of the text's 13-grams of words; one hash of the whole for a shorter text."""
    words = [m.group().encode() for m in _WORD.finditer(text)]
    count = max(1, len(words) - N_GRAM + 1)
    return {zlib.crc32(b" ".join(words[i : i + N_GRAM])) for i in range(count)}


def jaccard(a: set, b: set) -> float:
    """|a & b| / |a | b|."""
    return len(a & b) / max(1, len(a | b))


def near_duplicates(
    heldout: dict[str, str],
    training: Iterable[tuple[str, str]],
    threshold: float,
) -> dict[str, str]:
    """Held-out document -> the training document that it nearly repeats.

    Args:
      heldout: id -> text.
      training: the training documents as (id, text), read once.
      threshold: 13-gram Jaccard similarity from which two documents are near-duplicates.

    MinHash proposes pairs from half the threshold on; the exact similarity of the sets decides.
    """
    own = {id: shingles(text) for id, text in heldout.items()}
    lsh = MinHashLSH(threshold=threshold / 2, num_perm=64)
    for id, grams in own.items():
        lsh.insert(id, _minhash(grams))
    found: dict[str, str] = {}
    for other, text in training:
        grams = shingles(text)
        for id in lsh.query(_minhash(grams)):
            if id not in found and jaccard(own[id], grams) >= threshold:
                found[id] = other
    return found


def _minhash(grams: set[int]) -> MinHash:
    sketch = MinHash(num_perm=64, hashfunc=lambda gram: gram)
    sketch.update_batch(grams)
    return sketch
