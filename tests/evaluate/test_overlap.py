import numpy as np

from retro_jax.evaluate.overlap import chunk_overlap, longest_common_run


def by_loops(a, b):
    best = 0
    for i in range(len(a)):
        for j in range(len(b)):
            n = 0
            while i + n < len(a) and j + n < len(b) and a[i + n] == b[j + n] != 0:
                n += 1
            best = max(best, n)
    return best


def test_equals_the_definition():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (50, 12)), rng.integers(0, 4, (50, 20))
    np.testing.assert_array_equal(longest_common_run(a, b), [by_loops(x, y) for x, y in zip(a, b)])


def test_padding_is_no_common_text():
    assert longest_common_run(np.zeros((1, 8), int), np.zeros((1, 8), int)) == 0


def test_a_planted_run_is_found_in_what_was_retrieved_or_shown():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 1000, (1, 3, 64))
    neighbours = rng.integers(1000, 2000, (1, 3, 2, 128))
    assert not chunk_overlap(tokens, neighbours).any()
    neighbours[0, 1, 1, 100:108] = tokens[0, 1, 5:13]  # retrieved by chunk 1 itself
    neighbours[0, 1, 0, 3:19] = tokens[0, 2, 40:56]  # shown while chunk 2 is predicted
    np.testing.assert_allclose(chunk_overlap(tokens, neighbours), [[0, 8 / 64, 16 / 64]])
