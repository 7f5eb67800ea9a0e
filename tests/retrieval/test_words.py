"""What a word is, in every script; BM25 as its formula says; the lists, the sketch and the order made of it."""

import collections
import dataclasses
import math
import random

import numpy as np
import pytest

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.methods.method import method_of
from retro_jax.pipeline import prepare, verify
from retro_jax.retrieval import bm25, division, index
from retro_jax.retrieval.embedders.lexical import Lexical, Settings, signs
from retro_jax.retrieval.index import Given
from retro_jax.retrieval.indexes import bm25 as inverted
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.ranking import Queries, Ranking
from retro_jax.retrieval.sharded import ShardedIndex
from retro_jax.retrieval.words import split, words_of
from retro_jax.store.records import Records
from retro_jax.store.workdir import WorkDir
from retro_jax.train import loop

W = 16
TEXTS = [
    "the cat sat on the mat",
    "The dog sat on the log.",
    "a cat and a dog",
    "a cat and a dog",
    "nothing of the kind \x00 \U0001f600 ü",
    "+ - * /",
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Foo_bar(x1) += 3.5", ["foo_bar", "x1", "3", "5"]),
        ("naïve Straße", ["naïve", "straße"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are marks, and of the word
        ("我们是人。好 ok", ["我们", "们是", "是人", "好", "ok"]),
        ("カタカナとabc漢字", ["カタ", "タカ", "カナ", "ナと", "abc", "漢字"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("កខ។ក", ["កខ", "ក"]),  # a Khmer full stop is of the script, and no letter
        ("ที่นี่", ["ที่นี่"]),  # two letters with their signs
        ("", []),
    ],
)
def test_words_of_every_script(text, words):
    assert split(text) == words


def test_text_without_spaces_finds_what_it_shares():
    """Chinese text in which phrases repeat: each chunk shares one with others."""
    r = random.Random(1)
    han = [chr(c) for c in range(0x4E00, 0x4E00 + 800)]
    phrases = ["".join(r.choices(han, k=8)) for _ in range(40)]

    def chunk():
        own = ("".join(r.choices(han, k=r.randint(3, 9))) for _ in range(5))
        return "".join(o + r.choice(phrases) + r.choice("，。") for o in own)

    chunks = words_of([chunk() for _ in range(200)], 128)
    of = bm25.statistics(chunks)
    found = [np.argsort(-bm25.scores(c, chunks, of), kind="stable")[:2] for c in chunks]
    shared = [bm25.scores(chunks[i], chunks[two], of)[1] > 0 for i, two in enumerate(found)]
    assert np.mean(shared) > 0.9
    assert all(two[0] == i for i, two in enumerate(found))


def score(query, text, texts, k1=1.5, b=0.75):
    """Lucene's BM25, each different word of the query once."""
    query, text, *texts = (split(t)[:W] for t in (query, text, *texts))
    mean, total = sum(map(len, texts)) / len(texts), 0.0
    for word in set(query):
        df = sum(word in t for t in texts)
        tf = collections.Counter(text)[word]
        idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        total += idf * tf / (tf + k1 * (1 - b + b * len(text) / mean))
    return total


@pytest.mark.parametrize("query", ["the cat", "dog DOG log", "kind of ü", "zebra cat", "+", ""])
def test_a_score_is_bm25s(query):
    chunks = words_of(TEXTS, W)
    of = bm25.statistics(chunks)
    found = bm25.scores(words_of([query], W)[0], chunks, of)
    np.testing.assert_allclose(found, [score(query, t, TEXTS) for t in TEXTS], rtol=1e-6)
    for row, alone in enumerate(found):  # whatever else is scored
        assert bm25.scores(words_of([query], W)[0], chunks[row : row + 1], of)[0] == alone


def test_statistics_are_read_in_blocks_and_kept(tmp_path, monkeypatch):
    chunks = words_of(TEXTS * 3, W)
    whole = bm25.statistics(chunks)
    monkeypatch.setattr(bm25, "_BLOCK", 4)
    bm25.statistics(chunks).save(tmp_path)
    for a, b in zip(whole, bm25.Statistics.load(tmp_path)):
        np.testing.assert_array_equal(a, b)
    monkeypatch.setattr(bm25, "_BLOCKS", 2)  # a sample of them
    assert bm25.statistics(chunks).chunks == 8


def prose(count, seed=0):
    """Texts of words of which few are frequent."""
    r = random.Random(seed)
    words = [f"w{i}" for i in range(600)]
    weights = [1 / (i + 1) for i in range(600)]
    return [" ".join(r.choices(words, weights, k=12)) for _ in range(count)]


def built(texts, directory, postings=10**6, shard=10**6):
    chunks = words_of(texts, W)
    of = bm25.statistics(chunks)
    config = RetrievalConfig(
        embedder="words",
        index="bm25",
        index_shard=shard,
        settings={"bm25": {"postings": postings}},
    )
    report = division.build(chunks, directory, config, Given(2, statistics=of))
    return chunks, of, ShardedIndex(directory), report


def test_lists_that_cut_nothing_find_the_best_scores(tmp_path):
    chunks, of, lists, report = built(prose(300), tmp_path)
    assert (report["kind"], report["recall"]) == ("bm25", None)
    queries = chunks[::10]
    ids, distances = lists.search(queries, 300)
    for query, own, d in zip(queries, ids, distances):
        own, d = own[own >= 0], d[own >= 0]
        true = bm25.scores(query, chunks, of)
        assert set(own) == set(np.flatnonzero(true))
        np.testing.assert_allclose(-d, true[own], atol=W / 2 / 256)
        assert (np.diff(d) >= 0).all()
        assert (np.diff(own)[np.diff(d) == 0] > 0).all()  # ties by id


def test_lists_are_cut_and_hold_the_best(monkeypatch):
    chunks = words_of(prose(300), W)
    of = bm25.statistics(chunks)

    def lists(block):
        blocks = (inverted.scored(chunks[i : i + block], i, of) for i in range(0, 300, block))
        return inverted.lists(blocks, of, 5)

    words, shares, ends, chunk, impact = lists(300)
    assert np.diff(ends).max() == 5
    for word, share, begin, end in zip(words, shares, ends, ends[1:]):
        has = np.flatnonzero((chunks == word).any(axis=1))
        assert share == len(has) / 300
        true = np.rint(256 * bm25.scores(np.array([word]), chunks[has], of))
        best = has[np.lexsort((has, -true))][:5]
        np.testing.assert_array_equal(chunk[begin:end], best)
        assert set(impact[begin:end]) <= set(true)
    monkeypatch.setattr(inverted, "_HELD", 50)  # the same, whatever is read or held at a time
    for a, b in zip((words, shares, ends, chunk, impact), lists(7)):
        np.testing.assert_array_equal(a, b)


def test_the_rarest_words_are_read_first_and_no_more_than_was_said(tmp_path):
    """Of words in 100, 2 and 30 of 300 chunks, and of one that the statistics do not know."""
    words, shares = np.array([7, 8, 9, 10]), np.array([100, 2, 30, 0]) / 300
    for most, takes in ((200, [168, 200, 198, 13]), (40, [8, 40, 38, 3]), (20, [0, 20, 18, 2])):
        assert inverted.allot(words, shares, 300, most).tolist() == takes
    chunks, _, lists, _ = built(prose(300), tmp_path, postings=20)
    for query in chunks[:50]:
        assert 0 < len(lists.shard(0).index._of(query)) <= 20


def test_one_shard_or_many_find_the_same(tmp_path):
    """Each has the lists of some words, so a cut is the same cut."""
    found = []
    for shard in (10**6, 4):  # vectors, of which lists of 16 chunks take the memory of one
        (tmp_path / str(shard)).mkdir()
        chunks, _, lists, report = built(prose(300), tmp_path / str(shard), 25, shard)
        found.append(lists.search(chunks, 20))
    assert report["shards"] == 5
    for one, many in zip(*found):
        np.testing.assert_array_equal(one, many)


def test_a_query_of_common_words_only_finds_some(tmp_path):
    chunks, of, lists, _ = built(["cat dog", "cat", "dog cat cat"] * 20, tmp_path)
    assert of.share(chunks[0][:2]).min() > 0.5
    assert (lists.search(chunks[:3], 2)[0] >= 0).all()


@pytest.mark.parametrize("query", ["zebra", "+ *", ""])
def test_who_shares_no_word_is_no_neighbour(query, tmp_path):
    _, _, lists, _ = built(TEXTS, tmp_path)
    ids, distances = lists.search(words_of([query], W), 3)
    assert (ids == -1).all()
    assert np.isposinf(distances).all()


def test_a_database_without_words_finds_nothing(tmp_path):
    _, _, lists, report = built(["+ -", "( )"], tmp_path)
    assert len(lists) == report["size"] == 2
    assert (lists.search(words_of(["cat"], W), 2)[0] == -1).all()


def test_a_sketch_has_nearly_the_products_of_bm25():
    """The cosine of two sketches against that of the weights that they are sketches of."""
    chunks = words_of(prose(200), W)
    of = bm25.statistics(chunks)
    made = Lexical(2048, of).embed(chunks)
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    chunk, word, saturation = bm25.pairs(chunks, of)
    known, column = np.unique(word, return_inverse=True)
    weights = np.zeros((200, len(known)))
    weights[chunk, column] = saturation * np.sqrt(of.idf(word))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(made @ made.T, weights @ weights.T, atol=5 / np.sqrt(2048))
    # And so the chunks that BM25 likes best are among the nearest.
    for query, near in zip(chunks[:50], np.argsort(-(made[:50] @ made.T), axis=1)[:, :20]):
        best = np.argsort(-bm25.scores(query, chunks, of), kind="stable")[:5]
        assert len(set(best) & set(near)) >= 3
    alone = np.concatenate([Lexical(2048, of).embed(chunks[i : i + 1]) for i in range(20)])
    np.testing.assert_array_equal(alone, made[:20])


def test_a_chunk_without_words_is_nobodys_neighbour():
    """However many there are: a vector of 0 would be nearer than a chunk that shares a word or two."""
    chunks = words_of(prose(300) + ["+ -"] * 300, W)
    of = bm25.statistics(chunks)
    vectors = Lexical(512, of).embed(chunks)
    ids, _ = Exact(vectors).search(vectors[:300], 50)
    assert (ids < 300).mean() > 0.95
    ids, _ = Exact(vectors).search(vectors[300:301], 50)
    assert (ids >= 300).all()


def test_signs_are_as_often_minus_as_plus_and_of_no_two_words_alike():
    made = signs(np.arange(400, dtype=np.int32), 512)
    assert set(np.unique(made)) == {-1, 1}
    assert abs(made.mean()) < 0.01
    assert abs(made @ made.T / 512 - np.eye(400)).max() < 0.3


def test_candidates_are_ordered_by_their_scores():
    """Of a sketch the fifty nearest hold the best by BM25, in the order of BM25."""
    chunks = words_of(prose(600), W)
    of = bm25.statistics(chunks)
    vectors = Lexical(512, of).embed(chunks)
    ranking = Ranking.of(RetrievalConfig(candidates=50), of)
    queries = Queries(vectors[:60], chunks[:60])
    found = Exact(vectors).search(queries.searched, ranking.fetch(2))
    ids, distances = ranking.order(queries, chunks, found, 2)
    best = []
    for query, own, d in zip(chunks, ids, distances):
        true = bm25.scores(query, chunks, of)
        np.testing.assert_array_equal(d, -true[own])
        best.append(d[0] == -true.max())
        assert d[0] <= d[1]
    assert np.mean(best) > 0.9


def test_what_shares_no_word_is_last_or_no_neighbour():
    chunks = words_of(["cat", "dog", "cat dog"], W)
    of, queries = bm25.statistics(chunks), Queries(None, words_of(["cat"], W))
    found = np.array([[1, 2, 0, -1]]), np.array([[0.1, 0.2, 0.3, np.inf]])
    for embedder, expected in (("lexical", [0, 2, -1, -1]), ("tfidf", [0, 2, 1, -1])):
        ranking = Ranking.of(RetrievalConfig(embedder=embedder, candidates=4), of)
        ids, distances = ranking.order(queries, chunks, found, 4)
        assert ids.tolist() == [expected]
        assert np.isposinf(distances[ids < 0]).all()
    none = Ranking.of(RetrievalConfig(rerank="none"), of)
    assert none.fetch(2) == 2
    assert none.order(queries, None, found, 2)[0].tolist() == [[1, 2]]


def test_more_neighbours_than_candidates_are_as_many_candidates():
    assert Ranking.of(RetrievalConfig(candidates=3)).fetch(7) == 7


@pytest.mark.parametrize("fields", [{"embedder": "words", "index": "bm25"}, {}])
def test_the_whole_pipeline_runs_on_words(small, tmp_path, fields):
    experiment = dataclasses.replace(small, retrieval=RetrievalConfig(**fields))
    prepare.prepare(WorkDir(tmp_path, experiment))
    assert (tmp_path / "prepare" / "embeddings").exists() == (not fields)
    record = Records(tmp_path / "prepare" / "shards" / "heldout")[0]
    near = record["neighbour_ids"][record["documents"] >= 0]
    assert (near >= 0).mean() > 0.9
    assert (record["distances"][0][near[0] >= 0] < 0).all()
    compared = verify.verify(WorkDir(tmp_path, experiment), share=0.5)
    assert compared["index"] == (1, "shards")
    assert compared["words/train"][0] > 0
    if not fields:
        short = dataclasses.replace(experiment, train=dataclasses.replace(small.train, steps=1))
        loop.train(WorkDir(tmp_path, short), method_of(short, "retro"))


def test_a_word_that_is_rare_in_the_database_is_frequent_in_what_is_added(tmp_path):
    """Its list is longer than the statistics say, and is read all the same."""
    of = bm25.statistics(words_of([*prose(300), "kraken"], W))
    chunks = words_of([f"kraken n{i}" for i in range(40)], W)
    config = RetrievalConfig(embedder="words", index="bm25")
    division.build(chunks, tmp_path, config, Given(2, statistics=of))
    ids, _ = ShardedIndex(tmp_path).search(words_of(["kraken"], W), 40)
    assert sorted(ids[0].tolist()) == list(range(40))


def test_words_and_bm25_need_each_other():
    for fields in ({"embedder": "words"}, {"index": "bm25"}):
        with pytest.raises(UserError, match=r"retrieval\.index = .*it searches .*, and .* makes"):
            index.check(RetrievalConfig(**fields))
    index.check(RetrievalConfig(embedder="words", index="bm25"))


def test_bad_settings_are_refused_by_field():
    with pytest.raises(UserError, match=r"retrieval\.settings\.lexical\.dim = 100"):
        Settings(dim=100)
    with pytest.raises(UserError, match=r"retrieval\.rerank = 'tfidf'.*bm25, none"):
        RetrievalConfig(rerank="tfidf")
    with pytest.raises(UserError, match=r"retrieval\.candidates"):
        RetrievalConfig(candidates=0)
