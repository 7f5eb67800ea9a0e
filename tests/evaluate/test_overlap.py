"""Common runs of tokens, against plain loops."""

import numpy as np
import pytest

from retro_jax.evaluate.likelihood import shared
from retro_jax.evaluate.overlap import runs


def by_loops(a, b):
    """Of each token of a the longest run that ends with it and stands in b."""
    out = []
    for i in range(len(a)):
        longest = 0
        for j in range(len(b)):
            n = 0
            while n <= min(i, j) and a[i - n] == b[j - n] != 0:
                n += 1
            longest = max(longest, n)
        out.append(longest)
    return out


@pytest.mark.parametrize("vocab", [4, 2**16 + 4])
def test_equals_the_definition(vocab):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 4, (50, n)) for n in (12, 20))
    a, b = (np.where(x > 0, x + vocab - 4, 0) for x in (a, b))
    np.testing.assert_array_equal(runs(a, b), [by_loops(x, y) for x, y in zip(a, b)])


def test_any_number_of_pairs_and_any_length():
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 3, (2100, 9)), rng.integers(1, 3, (2100, 30))
    some = [0, 1023, 1024, 2047, 2048, 2099]
    np.testing.assert_array_equal(runs(a, b)[some], [by_loops(a[i], b[i]) for i in some])
    long = np.arange(1, 301)[None]
    assert runs(long, long)[0, -1] == 300
    assert runs(a[:0], b[:0]).shape == (0, 9)


def test_padding_is_no_common_text():
    assert not runs(np.zeros((1, 8), int), np.zeros((1, 8), int)).any()


def test_planted_runs_are_found_in_what_is_read_or_was_retrieved():
    rng = np.random.default_rng(0)
    tokens = 1 + rng.permutation(999)[: 3 * 64].reshape(1, 3, 64)
    retrieved = rng.integers(1000, 2000, (1, 3, 2, 128))
    read = np.concatenate([np.zeros_like(retrieved[:, :1]), retrieved[:, :-1]], axis=1)
    copied, of_each, longest = shared(tokens, retrieved, read)
    assert not copied.any()
    assert not longest.any()
    retrieved[0, 1, 1, 100:108] = tokens[0, 1, 5:13]  # retrieved by chunk 1 itself
    retrieved[0, 1, 0, 3:19] = tokens[0, 2, 40:56]  # read while chunk 2 is predicted
    read = np.concatenate([np.zeros_like(retrieved[:, :1]), retrieved[:, :-1]], axis=1)
    copied, of_each, longest = shared(tokens, retrieved, read)
    np.testing.assert_array_equal(longest, [[0, 8, 16]])
    np.testing.assert_array_equal(of_each[0], [[0, 0], [0, 0], [16, 0]])
    expected = np.zeros((3, 64), int)
    expected[2, 40:56] = np.arange(1, 17)
    np.testing.assert_array_equal(copied[0], expected)


def test_a_run_may_begin_in_the_chunk_before():
    """What is copied is a run of the text; what a chunk shares is its own part of it."""
    rng = np.random.default_rng(0)
    tokens = 1 + rng.permutation(999)[: 2 * 64].reshape(1, 2, 64)
    read = rng.integers(1000, 2000, (1, 2, 1, 128))
    read[0, 1, 0, 10:20] = tokens[0].reshape(-1)[60:70]
    copied, of_each, longest = shared(tokens, np.zeros_like(read), read)
    np.testing.assert_array_equal(copied[0, 1, :7], [5, 6, 7, 8, 9, 10, 0])
    assert (of_each[0, 1, 0], longest[0, 1]) == (6, 6)
