"""What is said of per-token log-probabilities, on rows whose truth is planted."""

import json

import numpy as np
import pytest

from retro_jax.evaluate import beside, chunks, likelihood, retriever_health, signals, where
from retro_jax.evaluate.figures import figures
from retro_jax.evaluate.rows import Rows

M, K = 8, 2


def planted(documents: int = 30, per: int = 12, **changes) -> Rows:
    """Rows of documents of `per` chunks, whose neighbours change nothing; `changes` are added to the
    nats of a condition, a number or [T]."""
    rng = np.random.default_rng(0)
    n = documents * per * M
    truth = rng.random(n) * 4
    names = ("on", "off", "random", "permuted", "self", "k1", "next", "language_model")
    nats = {name: truth + changes.get(name, 0) for name in names}
    chunk = np.tile(np.repeat(np.arange(per), M), documents)
    ids = rng.integers(0, 1000, (documents * per, K)).repeat(M, axis=0)
    columns = {
        "document": np.repeat(np.arange(documents), per * M).astype(np.int32),
        "chunk": chunk.astype(np.int32),
        "position": (chunk * M + np.tile(np.arange(M), documents * per)).astype(np.int32),
        "target": rng.integers(3, 10, n).astype(np.int32),
        "bytes": rng.integers(1, 8, n).astype(np.int32),
        "copied": np.zeros(n, np.int16),
        "overlap": np.zeros(n, np.int16),
        "neighbours": np.where(chunk[:, None] == 0, -1, ids),
        "distances": rng.random((documents * per, K)).repeat(M, axis=0).astype(np.float32),
        "runs": np.zeros((n, K), np.int16),
        "twins": np.zeros(n, np.int16),
        "ratio": np.full((n, 3), 0.2, np.float32),
        "mass": np.full((n, 2 * K), 0.2, np.float32),
    }
    facts = {
        "chunk": M, "neighbours": K, "filter_overlap": 0.5, "database": {"documents": 9, "chunks": 1000},
        "conditions": dict.fromkeys(nats, "something"), "violations": {"same_document": 0}, "whole_chunks": {},
        "share_with_fewer_than_k": {"heldout": 0.0},
        "documents": [{"id": str(i), "metadata": {"source": "ab"[i % 2]}} for i in range(documents)],
        "vocabulary": ["", "", "", *"a b c d"], "verbatim": {},
    }  # fmt: skip
    return Rows(facts, nats, columns)


def noise(rows: int = 30 * 12 * M, seed: int = 1):
    return np.random.default_rng(seed).normal(size=rows)


def test_bits_per_byte_is_total_bits_over_total_bytes():
    r = planted(off=0.1)
    got = signals.bits_per_byte(r)
    np.testing.assert_allclose(got["on"], r.nats["on"].sum() / np.log(2) / r["bytes"].sum())
    keep = r["bytes"] < 4
    part = signals.bits_per_byte(r.where(keep))["off"]
    total = r.nats["off"][keep].sum() / np.log(2) / r["bytes"][keep].sum()
    np.testing.assert_allclose(part, total)
    assert signals.bits_per_byte(r.where(r["bytes"] > 9))["on"] is None


def test_an_effect_has_its_value_and_an_interval_that_tells_it_from_none():
    r = planted(off=0.1 + 0.2 * noise(), random=0.2 * noise(seed=3))
    bits = signals.bits_per_byte(r)
    real = signals.effect(r, "off", "on")
    np.testing.assert_allclose(real["value"], bits["off"] - bits["on"])
    assert 0 < real["low"] < real["value"] < real["high"]
    none = signals.effect(r, "random", "on")
    assert none["low"] < 0 < none["high"]


def test_the_interval_is_over_documents_and_not_tokens():
    """One document carries the whole gain: its tokens are many, but the evidence is one document."""
    r = planted()
    r.nats["off"] = r.nats["on"] + np.where(r["document"] == 0, 5.0, 0.0)
    assert signals.effect(r, "off", "on")["low"] <= 0.0


@pytest.mark.parametrize(
    ("changes", "word", "collapsed"),
    [
        ({"language_model": 0.1, "random": 0.1, "off": 0.1}, "helps", False),
        ({"language_model": -0.1, "random": 0.1, "off": 0.1}, "hurts", False),
        ({"random": 0.1, "off": 0.1}, "neutral", False),
        # ahead of the language model, but whatever it reads: not retrieval's doing
        ({"language_model": 0.1, "random": 0.3 * noise()}, "neutral", True),
    ],
)
def test_the_verdict_compares_with_what_one_would_use_instead(changes, word, collapsed):
    verdict = figures(planted(**changes))["verdict"]
    assert (verdict["word"], verdict["collapsed"]) == (word, collapsed)


def test_a_cross_attention_that_adds_nothing_is_reported():
    r = planted(random=0.1, off=0.1, language_model=0.1)
    r.columns["ratio"][:] = 1e-5
    verdict = figures(r)["verdict"]
    assert verdict["collapsed"]
    assert "less than a thousandth" in verdict["why_collapsed"]


def test_harm_and_help_by_token():
    r = planted(off=np.tile([0.5, -0.2, 0.05, -0.05], 30 * 12 * M // 4))
    harm, quarter = signals.harm(r), len(r) / 4
    assert (harm["rate"], harm["help_rate"]) == (0.25, 0.25)
    np.testing.assert_allclose([harm["help"], harm["harm"]], [0.55 * quarter, 0.25 * quarter])
    np.testing.assert_allclose(harm["ratio"], 0.55 / 0.25)
    one = planted(off=np.where(np.arange(len(r)) < len(r) // 100, 1.0, 0.0))
    np.testing.assert_allclose(signals.harm(one)["concentration"], 1.0)


def test_gain_goes_to_the_bin_of_what_was_copied():
    copied = np.tile([0, 1, 3, 40], 30 * 12 * M // 4)
    r = planted(off=np.where(copied == 40, 1.0, np.where(copied == 0, -0.1, 0.0)))
    r.columns["copied"] = copied.astype(np.int16)
    found = signals.by_copied(r)
    gains = {(b["from"], b["to"]): b["nats_per_token"] for b in found["bins"]}
    np.testing.assert_allclose(
        [gains[0, 0], gains[1, 1], gains[2, 3], gains[32, None]], [-0.1, 0, 0, 1]
    )
    assert gains[8, 15] is None
    np.testing.assert_allclose(found["novel"], -0.1)
    np.testing.assert_allclose(found["copy_share"], 1 / 0.9)
    assert sum(b["share"] for b in found["bins"]) == 1


def test_a_gain_that_is_copying_goes_away_when_it_is_filtered():
    overlap = np.repeat(np.where(np.arange(30 * 12) % 4 == 0, 6, 0), M)
    r = planted(
        random=np.where(overlap == 6, 0.5, 0.0) + 0.05 * noise(), off=0.1, language_model=0.1
    )
    r.columns["overlap"] = overlap.astype(np.int16)
    curve = {round(f["below"] * 8): f for f in signals.filtered(r, M)}
    assert curve[6]["content"]["low"] < 0 < curve[6]["content"]["high"]
    assert curve[7]["content"]["low"] > 0
    np.testing.assert_allclose(curve[8]["bits_per_byte"]["on"], signals.bits_per_byte(r)["on"])
    assert 0.7 < curve[1]["share_of_bytes"] < 0.8
    few = figures(r)["effects_filtered"]["content"]
    assert few["low"] < 0 < few["high"]


def test_each_chunk_has_the_class_of_what_came_of_its_retrieval():
    of = np.arange(30 * 12) % 5

    def each(values):
        return np.repeat(np.select([of == i for i in range(5)], values), M)

    r = planted(
        off=each([0.3, -0.3, 0, 0, 0]), k1=each([0, 0, -0.3, 0, 0]) + each([0.3, -0.3, 0, 0, 0])
    )
    # k1 is better than off by 0.3 where it is 2
    r.columns["runs"] = np.where(np.repeat(of == 3, M)[:, None], 8, 0).astype(np.int16)
    r.nats["next"] = r.nats["off"]
    found = chunks.gather(r)
    named = chunks.classes(found)
    first = np.arange(30 * 12) % 12 == 0
    expected = np.array(["helped", "misled", "misranked", "ignored", "absent"])[of]
    np.testing.assert_array_equal(named, np.where(first, "nothing read", expected))
    shares = signals.failures(found)
    np.testing.assert_allclose(sum(s["share"] for s in shares.values()), 1)


def test_a_distance_that_tells_what_a_neighbour_is_worth_is_found_to():
    near = np.random.default_rng(5).random(30 * 12)
    r = planted(off=np.repeat(0.5 - near, M))
    r.columns["distances"] = np.repeat(np.stack([near, near + 1], 1), M, axis=0).astype(np.float32)
    found = chunks.gather(r)
    told = retriever_health.by_distance(found, r.rank)
    assert told["auroc"] > 0.99
    gains = [g["gain"] for g in told["groups"]]
    assert gains == sorted(gains, reverse=True)
    np.testing.assert_allclose([g["predicted"] for g in told["groups"]], gains, atol=0.05)
    curve = retriever_health.skipping(found, r.rank)
    bits = signals.bits_per_byte(r)
    np.testing.assert_allclose(curve[0]["bits_per_byte"], bits["off"])
    np.testing.assert_allclose(curve[-1]["bits_per_byte"], bits["on"])
    best = min(curve, key=lambda point: point["bits_per_byte"])
    assert 0.35 < best["share"] < 0.6  # those whose distance is below a half
    r.columns["distances"][:] = 1.0
    assert retriever_health.by_distance(chunks.gather(r), r.rank) is None


def test_hubs_repeated_and_missing_neighbours():
    r = planted()
    ids = np.tile([[7, 3], [7, 8], [-1, -1], [7, 5]], (90, 1)).repeat(M, axis=0)
    ids[r["chunk"] == 0] = -1
    r.columns["neighbours"] = ids
    r.columns["twins"] = (ids[:, 1] == 8).astype(np.int16)
    found = retriever_health.coverage(chunks.gather(r), 1000)
    assert found["hubs"][0] == [7, 240]  # of 30 documents with eleven chunks that retrieve
    assert found["distinct"] == 4
    np.testing.assert_allclose(found["missing"], 3 / 11)
    np.testing.assert_allclose(found["repeated"], 90 / 480)


def test_neighbours_that_are_nearly_the_same_are_counted():
    rng = np.random.default_rng(0)
    near = 1 + rng.permutation(900)[: 3 * 4 * 64].reshape(1, 3, 4, 64)
    near[0, 1, 2, 3:60] = near[0, 1, 0, :57]  # shifted, and most of it
    near[0, 2, 1:] = 0
    near[0, 2, 0] = 0
    np.testing.assert_array_equal(likelihood.twins(near), [[0, 1, 0]])


def test_documents_that_stand_in_the_database_in_all_but_name_are_named():
    r = planted()
    r.columns["overlap"] = np.where((r["document"] == 4) & (r["chunk"] < 9), M, 1).astype(np.int16)
    assert figures(r)["near_copies"] == ["4"]


def test_it_does_not_matter_how_documents_came():
    r = planted(
        off=np.repeat(noise(360), M), random=0.1 + 0.3 * noise(), language_model=0.2 * noise(seed=4)
    )
    order = np.random.default_rng(0).permutation(30)  # document n was number order[n]
    facts = r.facts | {"documents": [r.facts["documents"][n] for n in order]}
    rows_ = np.concatenate([np.flatnonzero(r["document"] == n) for n in order])
    other = Rows(facts, *({n: x[rows_] for n, x in d.items()} for d in (r.nats, r.columns)))
    other.columns["document"] = np.repeat(np.arange(30), 12 * M).astype(np.int32)
    a, b = figures(r), figures(other)
    for name in (
        "effects",
        "verdict",
        "failures",
        "copied",
        "filtered",
        "distance",
        "skipping",
        "words",
    ):
        assert json.dumps(_rounded(a[name])) == json.dumps(_rounded(b[name])), name


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 9) + 0.0 if isinstance(value, float) else value


def test_of_few_documents_nothing_is_said():
    verdict = figures(planted(documents=6, language_model=0.1, random=0.1, off=0.1))["verdict"]
    assert verdict["word"] == "neutral"
    assert verdict["effect"]["documents"] == 6


def test_gain_by_place_and_by_source():
    r = planted(off=np.tile(np.arange(M), 30 * 12) * 0.1, random=0.1)
    np.testing.assert_allclose(
        [p["nats_per_token"] for p in signals.by_place(r, M)], np.arange(M) * 0.1, atol=1e-9
    )
    assert set(signals.by_source(r)) == {"a", "b"}
    assert signals.by_source(r)["a"]["low"] > 0


def test_words_are_counted_in_the_text_itself():
    r = planted()
    each = [r["target"][r["document"] == d] for d in range(30)]
    texts = ["".join(r.facts["vocabulary"][t] for t in part) for part in each]
    found = figures(r)
    assert found["words"] == sum(len(text.split()) for text in texts)
    per = found["perplexity"]["on"]
    np.testing.assert_allclose(np.log(per["word"]) * found["words"], r.nats["on"].sum())
    np.testing.assert_allclose(np.log(per["token"]) * len(r), r.nats["on"].sum())


def test_the_gap_that_is_closed_is_a_share():
    assert signals.gap_closed({"random": 2.0, "on": 1.75, "self": 1.5}) == 0.5
    assert signals.gap_closed({"random": 2.0, "on": 2.25, "self": 1.5}) == -0.5
    assert signals.gap_closed({"random": 5.0, "on": 4.0, "self": 1.0}) == 0.25
    for bits in ({"random": 2.0, "on": 1.0}, {"random": 2.0, "on": 1.0, "self": 2.0}):
        assert signals.gap_closed(bits) is None


def test_bins_of_what_was_copied_hold_every_length_once():
    for length in range(60):
        assert sum(a <= length <= (b if b is not None else length) for a, b in signals.BINS) == 1


def test_a_perplexity_beyond_all_numbers_is_none():
    r = planted()
    for nats, known in ((699.9, True), (700.1, False), (1e6, False)):
        r.nats["on"][:] = nats
        found = signals.perplexity(r, 1)["on"]
        assert (found["token"] is not None) == known
        assert found["word"] is None


def test_what_cross_attention_did_is_of_tokens_that_read():
    r = planted()
    read = r["chunk"] > 0
    r.columns["ratio"] = np.where(read[:, None], [0.1, 0.2, 0.3], 9.0).astype(np.float32)
    r.columns["mass"] = np.where(read[:, None], [0.1, 0.2, 0.3, 0.4], 9.0).astype(np.float32)
    found = signals.inside(r, K)
    np.testing.assert_allclose(found["ratio"], [0.1, 0.2, 0.3], rtol=1e-5)
    np.testing.assert_allclose(found["mass"], [[0.1, 0.2], [0.3, 0.4]], rtol=1e-5)
    r.columns["neighbours"][:] = -1
    assert signals.inside(r, K) == {"ratio": [0.0] * 3, "mass": [[0.0, 0.0]] * K}


def test_where_it_finds_little_is_known_before_and_not_from_what_came_of_it():
    """A reader that is right nine times in ten loses on the tenth: where nothing was copied it seems to do harm, and
    by the distance of what it read it does none."""
    r = planted()
    distance = r["distances"][:, 0]
    near = distance < np.median(distance)
    r.columns["copied"] = np.where(near & (np.arange(len(r)) % 10 > 0), 9, 0).astype(np.int16)
    r.nats["language_model"] += np.where(r["copied"] == 9, 0.3, np.where(near, -0.5, 0.0))
    parts = beside.parts_of(r)
    assert signals.effect(r.where(parts["novel"]), "language_model", "on")["high"] < 0
    gains = {p["label"]: p["effects"]["system"] for p in where.nearest(r)}
    assert list(gains) == ["nearest quarter", "second", "third", "farthest"]
    assert min(gains["nearest quarter"]["low"], gains["second"]["low"]) > 0
    assert gains["third"]["value"] == gains["farthest"]["value"] == 0
    np.testing.assert_array_equal(parts["far"], ~near)
    r.columns["distances"][: len(r) // 10] = np.inf
    assert where.nearest(r)[0]["label"] == "nothing found"
    assert beside.parts_of(r)["far"][: len(r) // 10].all()
    r.columns["distances"][:] = np.inf
    assert beside.parts_of(r)["far"].all()
