"""What is left out of a corpus, and how it is counted."""

import json

import numpy as np
import pytest

from retro_jax.corpus import collect
from retro_jax.corpus.collect import HELDOUT, TRAIN, Rules, Source
from retro_jax.errors import UserError

WORDS = ["kara", "lopo", "minel", "tenis", "surra", "okapi", "tapir"]


def prose(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 200))


def collected(tmp_path, documents, bad="skip", copies="keep"):
    """The counts of a corpus whose documents are held out if their id begins so."""
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in documents))
    rules = Rules(bad, 10**6, 0.5, 0.8, copies)

    def split_of(document):
        return HELDOUT if document.id.startswith("held") else TRAIN

    source = Source(f"jsonl:{file}", "corpus.source", 10**6, (TRAIN, HELDOUT), split_of)
    counts = collect.collect(rules, source, tmp_path / "out")
    kept = {s: [d.id for d in collect.read(tmp_path / "out", s)] for s in (TRAIN, HELDOUT)}
    return counts, kept


def test_of_one_id_the_first_stays_and_each_document_is_counted_once(tmp_path):
    given = [
        ("a", prose(1)),
        ("a", prose(1)),
        ("b", prose(1)),
        ("held", prose(2)),
        ("held", prose(3)),
    ]
    counts, kept = collected(tmp_path, given, copies="drop")
    assert kept == {TRAIN: ["a"], HELDOUT: ["held"]}
    assert counts["bad_documents"] == {"repeated id": 2}
    assert counts["exact_duplicates_in_train"] == 1
    assert (counts["train_documents"], counts["heldout_documents"]) == (1, 1)
    assert counts["train_bytes"] == len(prose(1))
    assert counts["near_duplicates_dropped"] == 0


def test_they_stop_it_where_bad_ones_are_refused(tmp_path):
    with pytest.raises(UserError, match="a: an earlier document has this id; make ids unique"):
        collected(tmp_path, [("a", prose(1)), ("a", prose(2)), ("held", prose(3))], bad="refuse")


def test_a_held_out_split_of_which_nothing_is_left_is_refused(tmp_path):
    """One nearly repeats a training document, the other has its id."""
    given = [("a", prose(1)), ("held", prose(1) + " zebra"), ("held", prose(2))]
    with pytest.raises(UserError, match="every held-out document nearly repeats"):
        collected(tmp_path, given)


@pytest.mark.parametrize(("all_are", "held"), [("", 1), ("held", 3)])
def test_where_a_split_is_empty_a_share_is_told_that_fills_it(all_are, held, tmp_path):
    ids = [f"{all_are}{i}.txt" for i in range(4)]
    with pytest.raises(UserError, match="no document falls into the") as raised:
        collected(tmp_path, [(id, prose(i)) for i, id in enumerate(ids)])
    share = float(str(raised.value).rsplit("--config.corpus.heldout=", 1)[1])
    assert sum(collect.is_heldout(id, share) for id in ids) == held


def test_what_could_not_be_used_is_named_where_nothing_is_left(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no document falls into .*\(2 documents, 2 of them bad"):
        collected(tmp_path, [("a", None), ("held", None)])
