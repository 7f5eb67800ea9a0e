"""Search by words is BM25 as its formula says, behind the interface of the search of vectors."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.methods.method import method_of
from retro_jax.pipeline import prepare, verify
from retro_jax.retrieval import index, sharded
from retro_jax.retrieval.embedders.words import Words
from retro_jax.retrieval.sharded import ShardedIndex
from retro_jax.store.records import Records
from retro_jax.store.workdir import WorkDir
from retro_jax.train import loop

TEXTS = [
    "the cat sat on the mat",
    "The dog sat on the log.",
    "a cat and a dog",
    "a cat and a dog",
    "nothing of the kind \x00 \U0001f600 ü",
    "+ - * /",
]


def build(texts, directory, shard=10**6):
    words = Words(16)
    config = RetrievalConfig(embedder="words", index="bm25", index_shard=shard)
    report = sharded.build(words.embed(texts), directory, config)
    return words, ShardedIndex(directory), report


def score(query, text, texts, k1=1.5, b=0.75):
    """Lucene's BM25, of words in lower case."""
    split = [Words(16).embed([t])[0] for t in (query, text, *texts)]
    query, text, *texts = ([w for w in row if w >= 0] for row in split)
    mean, total = sum(map(len, texts)) / len(texts), 0.0
    for word in query:
        df = sum(word in t for t in texts)
        tf = Counter(text)[word]
        idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        total += idf * tf / (tf + k1 * (1 - b + b * len(text) / mean))
    return total


def test_distances_are_minus_the_score_and_ties_go_by_id(tmp_path):
    words, built, _ = build(TEXTS, tmp_path)
    for query in ("the cat", "dog DOG log", "kind of ü", "zebra cat"):
        ids, distances = built.search(words.embed([query]), len(TEXTS))
        scores = np.array([score(query, text, TEXTS) for text in TEXTS])
        found = [i for i in np.lexsort((np.arange(len(TEXTS)), -scores)) if scores[i] > 0]
        assert ids[0, : len(found)].tolist() == found
        np.testing.assert_allclose(distances[0, : len(found)], -scores[found], rtol=1e-5)
        assert (ids[0, len(found) :] == -1).all()


@pytest.mark.parametrize("query", ["zebra", "+ *", ""])
def test_who_shares_no_word_is_no_neighbour(query, tmp_path):
    words, built, _ = build(TEXTS, tmp_path)
    ids, distances = built.search(words.embed([query]), 3)
    assert (ids == -1).all()
    assert np.isposinf(distances).all()


def test_a_database_without_words_finds_nothing(tmp_path):
    words, built, report = build(["+ -", "( )"], tmp_path)
    assert len(built) == report["size"] == 2
    assert (built.search(words.embed(["cat"]), 2)[0] == -1).all()


def test_shards_keep_the_numbers_of_the_whole(tmp_path):
    words, built, report = build(TEXTS, tmp_path, shard=4)
    assert report["sizes"] == [3, 3]
    ids, _ = built.search(words.embed(["a cat and a dog"]), 2)
    assert set(ids[0].tolist()) == {2, 3}


def test_the_whole_pipeline_runs_on_words(small, tmp_path):
    retrieval = RetrievalConfig(embedder="words", index="bm25")
    experiment = dataclasses.replace(small, retrieval=retrieval)
    prepare.prepare(WorkDir(tmp_path, experiment))
    record = Records(tmp_path / "prepare" / "shards" / "heldout")[0]
    near = record["neighbour_ids"][record["documents"] >= 0]
    assert (near >= 0).mean() > 0.9
    assert (record["distances"][0][near[0] >= 0] < 0).all()
    assert verify.verify(WorkDir(tmp_path, experiment), share=0.5)["index"] == (1, "shards")
    short = dataclasses.replace(experiment, train=dataclasses.replace(small.train, steps=1))
    loop.train(WorkDir(tmp_path, short), method_of(short, "retro"))


def test_words_and_bm25_need_each_other():
    for fields in ({"embedder": "words"}, {"index": "bm25"}):
        with pytest.raises(UserError, match=r"retrieval\.index = .*it searches .*, and .* makes"):
            index.check(RetrievalConfig(**fields))
    index.check(RetrievalConfig(embedder="words", index="bm25"))
