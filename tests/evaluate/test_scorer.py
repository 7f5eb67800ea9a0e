"""Likelihoods are those of one pass over the whole text with everything retrieved again."""

import jax
import numpy as np
import pytest
from conftest import weights
from whole import TEXT

from retro_jax.corpus import collect
from retro_jax.corpus.tokenizer import BOS, PAD, UNK
from retro_jax.errors import UserError
from retro_jax.evaluate import rows
from retro_jax.evaluate.score import Pair
from retro_jax.evaluate.scorer import Scorer, split
from retro_jax.generate.lookup import prompt_ids
from retro_jax.model import functional
from retro_jax.store.workdir import WorkDir

M = 16
CONFIG = "--config=experiments/quickstart.py"


@pytest.fixture(scope="module")
def aligned(small, finished):
    return Scorer.open(WorkDir(finished, small), align=True, length=128)


def contexts(tokenizer) -> list[str]:
    """Texts that end around the ends of the first three chunks."""
    by_length = {len(prompt_ids(tokenizer, TEXT[:n])): TEXT[:n] for n in range(320)}
    at = [n * M + more for n in (1, 2, 3) for more in (-2, -1, 0, 1)]
    return [by_length[n] for n in at if n in by_length]


def expected(whole, ids, first, k):
    """(log p, greedy) of a full pass, where everything is retrieved again."""
    near = whole.neighbours(ids, k) if k else np.zeros((-(-len(ids) // M), 0, 2 * M), np.int32)
    found = whole.logprobs(ids, near)[first - 1 : -1]
    own = found[np.arange(len(found)), ids[first:]]
    found = found.copy()
    found[:, [PAD, BOS, UNK]] = -np.inf
    return own.sum(), bool((own >= found.max(axis=-1)).all())


def close(scores, wanted):
    np.testing.assert_allclose([s.logp for s in scores], [w[0] for w in wanted], atol=2e-5)
    assert [s.greedy for s in scores] == [w[1] for w in wanted]


@pytest.mark.parametrize("k", [None, 1, 0])
def test_a_likelihood_is_that_of_one_pass_with_everything_retrieved_again(scorer, whole, k):
    pairs = [
        Pair(c, f" {word}") for c in contexts(whole.tokenizer) for word in ("lo", "surkara ten")
    ]
    scores = scorer.score(pairs, k)
    assert len(pairs) > 20
    wanted, width = [], 2 if k is None else k
    for pair, score in zip(pairs, scores):
        ids, first, _ = split(whole.tokenizer, whole.tokenizer.byte_counts, *pair)
        assert score.tokens == len(ids) - first
        wanted.append(expected(whole, ids, first, width))
        read = (len(ids) - 1) // M if width else 0  # chunks that a token follows
        assert len(score.ids) == read
        if read:
            chunks = np.array(ids[: read * M]).reshape(read, M)
            np.testing.assert_array_equal(score.ids, whole.retriever.retrieve(chunks, width).ids)
    close(scores, wanted)


def test_neighbours_make_a_difference_only_from_the_end_of_the_first_chunk_on(scorer, whole):
    pairs = [Pair(c, " lo") for c in contexts(whole.tokenizer)]
    on, off = (np.array([s.logp for s in scorer.score(pairs, k)]) for k in (2, 0))
    size = [len(prompt_ids(whole.tokenizer, p.context + p.continuation)) for p in pairs]
    np.testing.assert_array_equal(np.abs(on - off) > 1e-6, np.array(size) > M)


def test_what_the_model_would_write_is_greedy_and_nothing_else_is(scorer, whole):
    pairs, wanted = [], []
    for context in contexts(whole.tokenizer):
        ids = prompt_ids(whole.tokenizer, context)
        order = np.argsort(-whole.logprobs(ids, whole.neighbours(ids))[-1])
        order = [t for t in order.tolist() if t not in (PAD, BOS, UNK)]
        for place, more in ((0, []), (1, []), (5, []), (0, [7]), (0, [300])):
            tokens = [order[place], *more]
            pair = Pair(context, whole.tokenizer.decode(tokens))
            made = split(whole.tokenizer, whole.tokenizer.byte_counts, *pair)
            if made[0] == ids + tokens and made[1] == len(ids):
                pairs.append(pair)
                wanted.append(place == 0 and not more)
    assert {*wanted} == {True, False}
    ends = [s.tokens for s, greedy in zip(scorer.score(pairs), wanted) if not greedy]
    assert {*ends} == {1, 2}  # of two tokens the first is the most probable one
    assert [s.greedy for s in scorer.score(pairs)] == wanted


def test_aligned_a_chunk_ends_where_the_context_does(aligned, whole):
    pairs = [Pair(c, " lominel") for c in contexts(whole.tokenizer)] + [Pair("", TEXT[:60])]
    wanted = []
    for pair in pairs:
        ids, first, _ = split(whole.tokenizer, whole.tokenizer.byte_counts, *pair)
        padding = -first % M if pair.context else 0
        wanted.append(expected(whole, [PAD] * padding + ids, padding + first, 2))
    close(aligned.score(pairs), wanted)


def test_a_text_longer_than_a_block_of_the_readout(tiny, mesh):
    vocab, never = 50, (PAD, BOS, UNK)
    params = weights(tiny, vocab)
    tokens = np.random.default_rng(1).integers(1, vocab, (2, 530))
    apply = jax.jit(functional.apply, static_argnums=0)
    logits = np.array(apply(tiny, params, tokens))[:, :-1]
    logits[..., list(never)] = -np.inf
    tokens[0, 1:300] = logits[0, :299].argmax(axis=-1)  # then the others are of another text
    logits = np.array(apply(tiny, params, tokens))[:, :-1]
    logits[..., list(never)] = -np.inf
    logp, best, _ = jax.jit(lambda t: functional.token_scores(tiny, params, t, None, never))(tokens)
    wanted = jax.jit(lambda t: functional.token_logprobs(tiny, params, t))(tokens)
    np.testing.assert_allclose(logp, wanted, atol=2e-5)
    np.testing.assert_array_equal(np.array(best)[:, 1:], logits.argmax(axis=-1))
    assert 0 < (np.array(best) == tokens).mean() < 1


def test_the_order_and_number_of_the_pairs_make_no_difference(scorer, small, finished, whole):
    pairs = [Pair(c, f" {w}") for c in contexts(whole.tokenizer) for w in ("mira", "ten lopo")]
    pairs += [Pair("", ""), Pair(TEXT, " kara"), Pair("", TEXT * 2), Pair("kara ", "")]
    every = scorer.score(pairs)
    order = np.random.default_rng(0).permutation(len(pairs))
    again = Scorer.open(WorkDir(finished, small), rows=4).score([pairs[i] for i in order])
    for i, score in zip(order, again):
        assert score.logp == pytest.approx(every[i].logp, rel=1e-6, abs=1e-5)
        assert (score.greedy, score.tokens) == (every[i].greedy, every[i].tokens)
        np.testing.assert_array_equal(score.ids, every[i].ids)
    assert [(every[i].logp, every[i].tokens) for i in (-4, -1)] == [(0.0, 0)] * 2
    assert scorer.score([]) == []
    assert scorer.score([Pair(TEXT, "")])[0].logp == 0.0


def test_of_a_long_context_the_last_whole_chunks_are_read(scorer, whole):
    """On the chunk grid of the whole text."""
    pairs = [Pair((TEXT * 2)[:n], " surnel") for n in range(500, 530)]
    wanted = []
    for pair in pairs:
        ids, first, _ = split(whole.tokenizer, whole.tokenizer.byte_counts, *pair)
        begin = -(-(len(ids) - scorer.length) // M) * M
        assert begin > 0
        assert len(ids) - begin in range(scorer.length - M + 1, scorer.length + 1)
        wanted.append(expected(whole, ids[begin:], first - begin, 2))
    close(scorer.score(pairs), wanted)


def test_every_token_of_a_text_is_scored_once_as_evaluate_does(scorer, small, finished):
    """Whatever its length; with what is retrieved live instead of from the shards."""
    read = rows.load(finished / "evaluate" / "heldout" / "tokens.parquet")
    known = {d.id: d.text for d in collect.read(finished / "prepare" / "corpus", "heldout")}
    names = [d["id"] for d in read.facts["documents"]]
    assert max(read["position"]) > 2 * scorer.length
    for condition, k in (("on", 2), ("off", 0)):
        scores = scorer.rolling([known[name] for name in names], k)
        wanted = np.bincount(read["document"], read.nats[condition])
        np.testing.assert_allclose([-s.logp for s in scores], wanted, rtol=1e-5)
        assert [s.tokens for s in scores] == np.bincount(read["document"]).tolist()


def test_a_continuation_longer_than_a_window_goes_by_several(scorer):
    """Each token once, with `context` tokens before it at least: no cut may lose or repeat one."""
    for size in range(2, 300):
        for first in {1, 2, size // 2, size - 1} - {0}:
            cuts = list(scorer._cuts(size, first))
            places = [t for begin, scored, end in cuts for t in range(scored, end)]
            assert places == list(range(first, size))
            for begin, scored, end in cuts:
                assert begin % M == 0
                assert end - begin <= scorer.length
                assert scored - begin >= min(scored, 32 - M + 1)


def test_the_continuations_tokens_are_those_that_hold_its_bytes(whole):
    tokenizer, text = whole.tokenizer, "kara  lopo\n naïve 日本 surkara"
    counts, merged = tokenizer.byte_counts, 0
    for at in range(len(text) + 1):
        ids, first, more = split(tokenizer, counts, text[:at], text[at:])
        assert ids == prompt_ids(tokenizer, text)
        held = text[len(text[:at].rstrip()) :] if text[at:] else ""
        assert counts[ids[first:]].sum() == len(held.encode()) + more
        assert tokenizer.decode_bytes(ids[first:]).endswith(held.encode())
        merged += more > 0
    assert merged > 3  # tokens do hold bytes of both sides


def test_a_scorer_of_sizes_that_cannot_work_is_refused(small, finished, scorer):
    for sizes, message in (
        ({"rows": 0}, "rows = 0"),
        ({"length": 72}, "length = 72, context = 32"),
    ):
        with pytest.raises(UserError, match=message):
            Scorer.open(WorkDir(finished, small), **sizes)
    with pytest.raises(UserError, match="k = -1: must be a number of neighbours"):
        scorer.score([Pair("kara", " lopo")], k=-1)
