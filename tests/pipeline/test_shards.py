"""What the shards hold, checked from the records themselves: every chunk once, and nothing leaked."""

import shutil

import numpy as np
import pytest
from conftest import tables

from retro_jax.corpus import collect
from retro_jax.errors import UserError
from retro_jax.evaluate import evaluate, leaks
from retro_jax.evaluate.text import Text
from retro_jax.pipeline import sequences
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import recipe
from retro_jax.store import records
from retro_jax.store.workdir import WorkDir

M = 16


def shards(root, split):
    opened = records.Records(root / "prepare" / "shards" / split)
    return [opened[i] for i in range(len(opened))]


def test_held_out_documents_are_never_in_the_database(finished, small):
    split = {s: {d["id"] for d in t.documents} for s, t in tables(finished).items()}
    assert all(split.values())
    assert not split["train"] & split["heldout"]
    for name, ids in split.items():
        for id in ids:
            assert collect.is_heldout(id, small.corpus.heldout) == (name == "heldout")
    database = tables(finished)["train"]
    for record in shards(finished, "heldout"):
        ids = record["neighbour_ids"]
        np.testing.assert_array_equal(record["neighbours"], database.values(ids))


def test_no_neighbour_or_continuation_is_of_a_document_of_the_sequence(finished):
    """Recomputed from the rows themselves, for N and for F, in sequences packed of documents."""
    database = tables(finished)["train"]
    packed = 0
    for record in shards(finished, "train"):
        own = set(record["documents"]) - {-1}
        packed += len(own) > 1
        for id in record["neighbour_ids"][record["neighbour_ids"] >= 0]:
            assert database.document[id] not in own
            following = database.continuation[id]
            assert following < 0 or database.document[following] not in own
    assert packed  # otherwise this test proves little


def test_each_chunk_of_a_shard_has_the_neighbours_of_its_own_text(finished, small):
    """From the record alone: chunk u's tokens, decoded and embedded, compared with every vector. A
    stream that is shifted against its neighbours by one token or one chunk would show."""
    prepared = Prepared(WorkDir(finished, small))
    pieces, vectors, database = prepared.tokenizer, prepared.searched("train"), prepared.database
    for record in shards(finished, "train")[:5]:
        texts = [pieces.decode(row) for row in record["tokens"].reshape(-1, M).tolist()]
        queries = prepared.encoder(texts)["vectors"]
        allowed = ~np.isin(database.document, record["documents"])
        d = np.square(queries[:, None].astype(np.float64) - vectors[None]).sum(-1)
        d = np.where(allowed, d, np.inf)
        real = record["documents"] >= 0
        nearest = np.sort(d, axis=1)[:, :2]
        np.testing.assert_allclose(record["distances"][real], nearest[real], rtol=1e-4, atol=1e-5)
        for u in np.flatnonzero(real):
            np.testing.assert_allclose(
                d[u, record["neighbour_ids"][u]], record["distances"][u], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(("share", "warns"), [(0.0, False), (0.09, False), (0.2, True)])
def test_many_chunks_that_find_few_neighbours_are_a_warning(
    finished, small, tmp_path, capfd, share, warns
):
    step = recipe(small, finished / "prepare")["neighbours/heldout"]
    counts = step.finish(tmp_path, {"fewer": share * step.total()})
    assert counts["share_with_fewer_than_k"] == pytest.approx(share)
    said = capfd.readouterr().err
    assert ("WARNING: 20% of the heldout chunks find fewer than 2 neighbours" in said) == warns


def test_training_sequences_hold_every_chunk_once(finished):
    table = tables(finished)["train"]
    rows = np.concatenate([r["tokens"].reshape(-1, M) for r in shards(finished, "train")])
    np.testing.assert_array_equal(rows[: len(table)], table.tokens)
    assert not rows[len(table) :].any()


def test_windows_score_every_chunk_of_a_document_once():
    for count in range(1, 14):
        scored = []
        for rows, first in sequences.windows(100, count, 4, 2):
            assert len(rows) == 4
            scored += [row - 100 for row in rows[first:] if row >= 0]
        assert scored == list(range(count))


def test_planted_leaks_are_counted_and_stop_the_evaluation(finished, small, tmp_path):
    root = tmp_path / "leaky"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "evaluate")
    database = tables(root)["train"]
    directory = root / "prepare" / "shards" / "train"
    leaky = shards(root, "train")
    leaky[0]["neighbour_ids"][1, 0] = database.documents[leaky[0]["documents"][0]]["first"]
    leaky[0]["neighbours"][1] = database.values(leaky[0]["neighbour_ids"][1])
    leaky[2]["neighbours"][0, 0, 3] += 1
    (directory / "00000.tfrecord").unlink()
    records.write(directory, leaky)
    texts = {s: Text.prepared(WorkDir(root, small), s) for s in ("train", "heldout")}
    found = leaks.violations(texts, database, small)
    assert found == {
        "same_document": 1, "wrong_text": 1, "wrong_query": 1, "heldout_in_database": 0
    }  # fmt: skip
    with pytest.raises(UserError, match="leak, so no result"):
        evaluate.evaluate(WorkDir(root, small))
    assert not list((root / "evaluate").iterdir())


class Changed:
    """Records whose neighbours a function has changed."""

    def __init__(self, records, change):
        self._records, self._change = records, change

    def __len__(self):
        return len(self._records)

    def __getitem__(self, i):
        names, record = ("neighbours", "neighbour_ids", "distances"), self._records[i]
        return record | {name: self._change(record[name]) for name in names}


def test_neighbours_of_the_chunk_that_is_to_be_predicted_are_found_out(finished, small):
    """Shifted by one chunk they would be those of the target: all else about them is right."""
    text = Text.prepared(WorkDir(finished, small), "heldout")
    text.records = Changed(text.records, lambda x: np.roll(x, -1, axis=0))
    found = leaks.violations({"heldout": text}, tables(finished)["train"], small)
    assert found["wrong_query"] > 0 == found["same_document"] == found["wrong_text"]


def test_a_database_that_holds_the_held_out_text_is_found_out(finished, small):
    text = Text.prepared(WorkDir(finished, small), "heldout")
    text.records = Changed(text.records, lambda x: np.where(x > 0, x.dtype.type(0), x))
    found = leaks.violations({"heldout": text}, text.table, small)
    assert found["heldout_in_database"] == len(text.table.documents)
