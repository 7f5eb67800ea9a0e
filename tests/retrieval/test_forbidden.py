"""What may be no neighbour: of every document of a sequence, the one with its text and the one with its id."""

import numpy as np
import pytest

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.retrieval.forbidden import copies, forbidden, own_documents


def table(texts: list[str], ids: list[str], chunks: list[int]) -> ChunkTable:
    """Documents by the hashes of their texts and ids, each of so many chunks."""
    made = object.__new__(ChunkTable)
    made.texts, made.ids = (np.array([ord(c) for c in x], np.uint64) for x in (texts, ids))
    made.document = np.repeat(np.arange(len(chunks)), chunks)
    made.tokens = np.zeros((sum(chunks), 4), np.uint16)
    return made


DATABASE = table("tsuts", "dbcae", [1, 1, 2, 1, 1])


def test_documents_of_one_text_have_the_number_of_the_first():
    np.testing.assert_array_equal(copies(DATABASE), [0, 1, 2, 0, 1])


def test_a_document_is_found_again_by_its_text_and_by_its_id():
    """Whatever comes before, after or between what the database has; an id counts as the first document of its text."""
    sequences = table("uAtZsz", "ZeAbdz", [1] * 6)
    own = own_documents(sequences, DATABASE, copies(DATABASE))
    np.testing.assert_array_equal(own, [[2, -1], [-1, 1], [0, -1], [-1, 1], [1, 0], [-1, -1]])
    itself = own_documents(DATABASE, DATABASE, copies(DATABASE))
    np.testing.assert_array_equal(itself, np.stack([copies(DATABASE)] * 2, 1))


@pytest.mark.parametrize("ids_say_more", [False, True])
def test_a_sequence_may_have_nothing_of_any_of_its_documents(ids_say_more):
    sequences = table("abcd", "abcd", [2, 3, 1, 1])  # chunks of documents 0 0 1 1 1 2 3
    own = np.array([[10, 10], [11, 11], [-1, -1], [13, 13]])
    if ids_say_more:
        own[1, 1] = 21
    found = forbidden(sequences, own, 0, 7, 3)  # sequences 0 0 1, 1 1 2, 3 and filling
    of_ids = {21} if ids_say_more else set()
    expected = [{10, 11} | of_ids] * 3 + [{11} | of_ids] * 3 + [{13}]
    assert [set(row) - {-1} for row in found.tolist()] == expected
    assert found.shape == (7, 6 if ids_say_more else 3)
    np.testing.assert_array_equal(forbidden(sequences, own, 3, 7, 3), found[3:])
    np.testing.assert_array_equal(forbidden(sequences, own, 3, 5, 3), found[3:5])
