"""With retrieval in the loop nothing that comes later is read (trap 3), and what is retrieved is read in
its place."""

import numpy as np
from conftest import tables

M = 16


def test_replacing_later_text_changes_no_earlier_prediction(whole, finished):
    """What is retrieved for the changed text must not leak back, also not to the position before it, whose
    prediction it is."""
    tokens = tables(finished)["heldout"].tokens[:4].reshape(-1).astype(np.int32)
    other = tables(finished)["train"].tokens[40:44].reshape(-1).astype(np.int32)
    before = whole.logprobs(tokens, whole.neighbours(tokens))  # row t predicts token t + 1
    for t in range(1, 3 * M + 1):
        changed = np.concatenate([tokens[:t], other[t:]])
        after = whole.logprobs(changed, whole.neighbours(changed))
        np.testing.assert_array_equal(after[:t], before[:t])
    # and the change does reach what is retrieved: the last text of chunk 1 is its query's too
    changed = np.concatenate([tokens[: 2 * M - 4], other[2 * M - 4 : 2 * M], tokens[2 * M :]])
    retrieved = [whole.retriever.retrieve(x.reshape(4, M)).ids for x in (tokens, changed)]
    assert (retrieved[0][1] != retrieved[1][1]).any()
    np.testing.assert_array_equal(np.delete(retrieved[0], 1, 0), np.delete(retrieved[1], 1, 0))


def test_what_a_chunk_retrieves_first_moves_the_prediction_of_the_next_chunks_first_token(
    whole, finished
):
    """Position u m + m - 1 (0-based) is the first to read chunk u's neighbours."""
    tokens = tables(finished)["heldout"].tokens[:4].reshape(-1).astype(np.int32)
    near = whole.neighbours(tokens)
    before = whole.logprobs(tokens, near)
    for u in range(3):
        changed = near.copy()
        changed[u] = near[3]
        after = whole.logprobs(tokens, changed)
        assert np.flatnonzero((after != before).any(axis=1))[0] == u * M + M - 1
