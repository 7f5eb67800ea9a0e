import numpy as np
import pytest

from retro_jax.corpus import chunks, tokenizer
from retro_jax.corpus.document import Document
from retro_jax.corpus.tokenizer import BOS, EOS, PAD
from retro_jax.store import columns

M = 8


@pytest.fixture(scope="module")
def pieces():
    return tokenizer.Tokenizer(tokenizer.train(["some text to learn from\n" * 50], 300))


@pytest.fixture
def table(tmp_path, pieces):
    documents = [
        Document("a", "first document, of some length, to be cut"),
        Document("short", "x"),
        Document("b", "second document, which follows the first in the table"),
    ]
    short = []
    tokens, entries = chunks.encode(documents, pieces, M, short.append)
    assert [d.id for d in short] == ["short"]
    writer = columns.Writer(tmp_path, chunks.layout(pieces, M))
    writer.append(**chunks.place(tokens, entries))
    writer.commit()
    writer.close()
    return chunks.ChunkTable(tmp_path)


def test_documents_are_cut_from_their_own_start_and_come_back(table, pieces):
    for document, text in zip(table.documents, ("first document", "second document")):
        rows = table.tokens[document["first"] : document["first"] + document["chunks"]]
        ids = rows.reshape(-1)
        assert ids[0] == BOS
        end = int(np.flatnonzero(ids == EOS)[0])
        assert not ids[end + 1 :].any()
        assert pieces.decode(ids[1:end].tolist()).startswith(text)
        assert end - 1 == document["tokens"]


def test_a_continuation_never_leaves_its_document(table):
    for row, following in enumerate(table.continuation):
        if following >= 0:
            assert following == row + 1
            assert table.document[following] == table.document[row]
    last = [d["first"] + d["chunks"] - 1 for d in table.documents]
    assert [table.continuation[row] for row in last] == [-1, -1]


def test_values_are_chunk_and_continuation_with_padding_where_there_is_none(table):
    last = table.documents[0]["first"] + table.documents[0]["chunks"] - 1
    n, f = table.values(np.array(last)).reshape(2, M)
    np.testing.assert_array_equal(n, table.tokens[last])
    assert not f.any()  # row last + 1 exists, but is of the other document
    np.testing.assert_array_equal(
        table.values(np.array([0])).reshape(2, M), np.stack([table.tokens[0], table.tokens[1]])
    )


def test_a_missing_neighbour_is_padding_and_not_the_last_row(table):
    assert (table.values(np.array([[-1]])) == PAD).all()


@pytest.mark.parametrize("id", [-2, 10**6])
def test_ids_outside_the_table_raise(table, id):
    with pytest.raises(IndexError):
        table.values(np.array([id]))
