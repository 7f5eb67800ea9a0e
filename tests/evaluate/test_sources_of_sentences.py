"""Which documents a sentence comes from: what a sentence is, what a neighbour was worth to it, when that counts."""

import json
import shutil
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_jax.cli import main as cli
from retro_jax.errors import UserError
from retro_jax.evaluate import sources
from retro_jax.evaluate.sources_threshold import (
    FALSE,
    LEAST,
    _asked,
    _Found,
    _settled,
    bound,
    calibrate,
    threshold,
)
from retro_jax.store.workdir import WorkDir

TEXT = 'He said "Stop!" It holds 2.3 litres. Then\n\n1. one\n2. two.  '
PARTS = ['He said "Stop!"', "It holds 2.3 litres.", "Then", "1. one", "2. two."]


def test_sentences_end_where_a_reader_ends_them():
    assert [TEXT[a:b] for a, b in sources.sentences(TEXT)] == PARTS
    assert sources.sentences("  \n ") == sources.sentences("") == []
    assert sources.sentences(" 230. ") == [(0, 5)]  # an answer, too
    assert sources.sentences("It holds. 2. 3. ") == [(0, 15)]


@given(st.text(alphabet='ab1.!?"\n ', max_size=40))
def test_sentences_hold_every_letter_once_in_order(text):
    spans = sources.sentences(text)
    assert all(a < b for a, b in spans)
    assert all(b <= c for (_, b), (c, _) in pairwise(spans))
    kept = "".join(text[a:b] for a, b in spans)
    assert [c for c in kept if c.isalpha()] == [c for c in text if c.isalpha()]


def test_every_token_counts_for_the_sentence_in_which_it_ends():
    ends = [3, 16, 20, 36, 37, 41, 45, 53, len(TEXT)]  # the second: a quote and the blank after it
    gains = np.stack([np.arange(9.0), np.zeros(9)], axis=1)
    nats = sources.worth(gains, ends, sources.sentences(TEXT))
    assert nats.sum() == gains.sum()
    assert nats[:2, 0].tolist() == [0 + 1, 2 + 3 + 4]
    assert not nats[:, 1].any()
    read = [
        {"database": "prepared", "document": d, "chunk": 0, "offset": 0, "text": "x"} for d in "ab"
    ]
    told = sources.tell(TEXT, gains, ends, read, 1.5)
    assert [bool(t["sources"]) for t in told] == [False, True, True, True, True]
    assert told[1]["sources"][0] | {"nats": 0} == {n: read[0][n] for n in sources.TOLD} | {
        "nats": 0
    }


@given(st.lists(st.floats(-5, 50, width=16), min_size=1, max_size=200))
def test_one_more_number_reaches_the_bound_once_in_twenty_and_a_lower_one_oftener(nats):
    """Of as many again and one, each as likely to be the new one, so many are above it."""
    nats, least = np.array(nats), bound(np.array(nats))
    most = max(1, int(FALSE * (len(nats) + 1)))
    assert (nats >= least).sum() < most
    assert least == 1e-3 or (nats >= least - 3e-4).sum() >= most


def test_the_false_share_is_that_of_the_other_half():
    """One half never reaches what the other does: the threshold of each is tried on the other."""
    low, high = (_Found(np.full(100, 5.0), np.full(100, x)) for x in (1.0, 2.0))
    told = _settled([low], [high])
    assert told["false"] == 0.5
    assert told["named"] == 1.0
    with pytest.raises(UserError, match="39 sentences are too few"):
        _settled([_Found(np.zeros(39), np.zeros(39))], [])


def test_what_two_texts_both_read_does_not_count_as_another_texts():
    """Nor are the passages that are left fewer: their greatest would be smaller by itself."""

    def finds(*documents):
        return [{"document": d, "chunk": 0} for d in documents]

    found = {"a": finds("x", "y"), "b": finds("x", "z"), "c": finds("v", "w"), "d": finds("x", "y")}
    generator = SimpleNamespace(retriever=SimpleNamespace(search=found.__getitem__))
    asked = _asked(generator, [(text, "") for text in "abcd"])
    assert all(len(one.others) == 2 for one in asked)
    for one in asked:
        assert not {p["document"] for p in one.own} & {p["document"] for p in one.others}
    assert _asked(generator, [("a", ""), ("d", "")]) == []
    assert [one.text for one in _asked(generator, [("a", ""), ("c", "y")])] == ["a"]


def test_sentences_of_a_continuation_have_what_their_neighbours_contributed(generator):
    """Also a neighbour that several chunks read, of which there is one source."""
    c = generator.generate("kara lopo minel tenra kais mipo ", tokens=60, contributions=True)
    gains, read = sources.gains_of_completion(c)
    told = sources.tell(c.text, gains, c.ends, read, -1e9)
    nats, given = {}, {}
    for one in told:
        assert len({(s["document"], s["chunk"]) for s in one["sources"]}) == len(one["sources"])
        for s in one["sources"]:
            key = s["document"], s["chunk"]
            nats[key] = nats.get(key, 0) + s["nats"]
    for n in (n for chunk in c.chunks for n in chunk["neighbours"]):
        key = n["document"], n["chunk"]
        given[key] = given.get(key, 0) + n.get("contribution", 0)
    assert nats == pytest.approx(given, abs=1e-3 * len(told))
    assert sources.tell(c.text, gains, c.ends, read, 1e9) == [one | {"sources": []} for one in told]


def test_a_threshold_is_set_by_held_out_documents(finished, tmp_path, capfd):
    root = shutil.copytree(finished, tmp_path / "w")
    work = WorkDir(root)
    assert threshold(work, "retro") is None
    assert cli.main(["sources", str(root)]) == 0
    assert "sentences have one; by another text's documents" in capfd.readouterr().err
    told = json.loads((root / "sources" / "retro.json").read_text())
    assert threshold(work, "retro") == (told["threshold"], 2)
    assert told["threshold"] > 0
    assert told["sentences"] >= LEAST
    assert told["texts"] > 2 * 11  # several of each held-out document
    told["of"] = "other weights"
    (root / "sources" / "retro.json").write_text(json.dumps(told))
    assert threshold(work, "retro") is None
    for method, questions, message in (
        ("language_model", (), "reads nothing"),
        ("retro", ("kara?",), "is judged by held-out documents"),
    ):
        with pytest.raises(UserError, match=message):
            calibrate(work, method, questions)
