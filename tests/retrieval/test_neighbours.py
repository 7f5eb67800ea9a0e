"""Neighbours are the nearest of what is allowed, and nothing else."""

import numpy as np
import pytest

from retro_jax.config import RetrievalConfig
from retro_jax.retrieval import division, neighbours
from retro_jax.retrieval.index import Given
from retro_jax.retrieval.indexes import scann
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.sharded import Shard, ShardedIndex


def find(shard, queries, forbidden, document, k):
    return neighbours.find_in(shard, queries, forbidden, neighbours.Owners(document), k)


def alone(vectors):
    """An exact index of vectors."""
    return Shard(Exact(vectors), vectors)


def database(documents, chunks_each, width=8, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(documents * chunks_each, width)).astype(np.float32)
    return vectors, np.repeat(np.arange(documents), chunks_each)


def test_no_neighbour_is_from_any_document_of_the_sequence():
    """A sequence packed of two documents: neither may be retrieved for any of its chunks."""
    vectors, document = database(6, 10)
    forbidden = np.full((60, 2), -1)
    forbidden[:, 0] = document
    forbidden[10:20] = forbidden[0:10] = [0, 1]
    ids, _ = find(alone(vectors), vectors, forbidden, document, 3)
    assert (ids >= 0).all()
    for query in range(60):
        assert not set(document[ids[query]]) & set(forbidden[query])


@pytest.mark.parametrize(("documents", "each"), [(5, 4), (20, 1)])
def test_what_remains_is_the_nearest_first(documents, each):
    vectors, document = database(documents, each)
    forbidden = document[:, None]
    ids, distances = find(alone(vectors), vectors, forbidden, document, 2)
    for query in range(20):
        d = ((vectors - vectors[query]) ** 2).sum(1)
        d[document == document[query]] = np.inf
        np.testing.assert_array_equal(ids[query], np.argsort(d)[:2])
        np.testing.assert_allclose(distances[query], np.sort(d)[:2], rtol=1e-3, atol=1e-4)


def test_a_document_that_fills_the_candidates_does_not_leave_a_query_without():
    """The nearest 500 chunks are all the query's own document's; the search must go on (trap 16)."""
    own = np.zeros((500, 8), np.float32) + 0.001 * np.arange(500)[:, None]
    other = np.full((3, 8), 9.0, np.float32)
    vectors = np.concatenate([own, other])
    document = np.array([0] * 500 + [1, 1, 2])
    ids, _ = find(alone(vectors), vectors[:2], np.zeros((2, 1), int), document, 2)
    assert (ids >= 500).all()


def test_with_scann_too_the_search_goes_on_until_valid_ones_are_found(tmp_path):
    """A document of 2,000 near-equal chunks fills every leaf that a small search would visit."""
    rng = np.random.default_rng(0)
    own = (0.01 * rng.normal(size=(2000, 8))).astype(np.float32)
    other = (9 + rng.normal(size=(20, 8))).astype(np.float32)
    document = np.array([0] * 2000 + [1] * 20)
    config = RetrievalConfig(index="scann", settings={"scann": {"min_recall": 0.0}})
    division.build(np.concatenate([own, other]), tmp_path, config, Given(2))
    ids, _ = find(ShardedIndex(tmp_path).shard(0), own[:5], np.zeros((5, 1), int), document, 2)
    assert (document[ids] == 1).all()


def test_too_few_are_missing_and_never_the_own_document():
    vectors, document = database(2, 3)
    only = np.array([0, 0, 0, 1, 1, 1])
    ids, distances = find(alone(vectors), vectors[:3], only[:3, None], document, 5)
    assert (np.sort(ids[:, :3], axis=1) == [3, 4, 5]).all()
    assert (ids[:, 3:] == -1).all()
    assert np.isposinf(distances[:, 3:]).all()
    nothing = find(alone(vectors), vectors[:1], np.array([[0, 1]]), document, 2)
    assert (nothing[0] == -1).all()


def test_a_database_smaller_than_k():
    vectors, document = database(1, 2)
    ids, _ = find(alone(vectors), vectors, np.full((2, 1), -1), document, 4)
    assert (ids[:, :2] >= 0).all()
    assert (ids[:, 2:] == -1).all()


def test_where_most_is_forbidden_the_rest_is_compared_directly_and_exactly(monkeypatch):
    """As searching until all candidates are found, but without searching."""
    vectors, document = database(40, 5)
    document[:150] = 0  # most of the database is one document
    number = np.arange(40)
    number[35] = 36  # two of the others are copies of one another
    owners = neighbours.Owners(document, number)
    forbidden = np.stack([number[document], np.full(200, -1)], axis=1)
    forbidden[::3, 1] = 36
    searched, index = [], alone(vectors)
    search = index.search

    def counting(queries, k):
        searched.append(len(queries))
        return search(queries, k)

    index.search = counting
    slow = neighbours.find_in(index, vectors, forbidden, owners, 3)
    assert sum(searched) > 200
    searched.clear()
    monkeypatch.setattr(neighbours, "_MANY", 20)
    fast = neighbours.find_in(index, vectors, forbidden, owners, 3)
    assert sum(searched) < 200
    for a, b in zip(slow, fast):
        np.testing.assert_array_equal(a, b)
    # nothing is left at all
    none, _ = neighbours.find_in(index, vectors[:2], np.array([[0, 1], [0, 1]]),
                              neighbours.Owners(np.repeat([0, 1], 100)), 2)  # fmt: skip
    assert (none == -1).all()


def test_where_a_route_holds_only_what_is_forbidden_all_partitions_are_searched(
    tmp_path, monkeypatch
):
    """A document fills the partitions that its chunks are sent to; what is left lies elsewhere."""
    monkeypatch.setattr(Exact, "approximate", True)
    monkeypatch.setattr(Exact, "Settings", scann.Settings)
    rng = np.random.default_rng(0)
    own = rng.normal(size=(600, 8))
    vectors = np.concatenate([own, 50 + rng.normal(size=(600, 8))]).astype("f4")
    document = np.repeat([0, 1], 600)
    config = RetrievalConfig(
        index="exact", index_shard=200, settings={"exact": {"min_recall": 0.5}}
    )
    report = division.build(vectors, tmp_path, config, Given(2))
    assert report["probes"] < report["shards"] / 2
    index, owners = ShardedIndex(tmp_path, vectors), neighbours.Owners(document)
    ids, _ = neighbours.find(index, vectors[:50], np.zeros((50, 1), int), owners, 3)
    assert (document[ids] == 1).all()
    assert (ids >= 0).all()
    one = neighbours.Owners(
        np.zeros(1200, int)
    )  # a database of one document, its own chunks' and others'
    for forbidden, found in ((0, False), (-1, True)):
        ids, _ = neighbours.find(index, vectors[:50], np.full((50, 1), forbidden), one, 3)
        assert ((ids >= 0) == found).all()


def test_the_chunks_of_each_number_are_counted():
    document = np.array([0, 2, 2, 1, 2])
    np.testing.assert_array_equal(neighbours.Owners(document).chunks, [1, 1, 3])
    np.testing.assert_array_equal(
        neighbours.Owners(document, np.array([0, 0, 2])).chunks, [2, 0, 3]
    )
    np.testing.assert_array_equal(neighbours.Owners(np.zeros(3, int)).chunks, [3])
    assert len(neighbours.Owners(np.zeros(0, int)).chunks) == 0
    np.testing.assert_array_equal(neighbours.Owners(document)(np.array([4, 0])), [2, 0])


@pytest.mark.parametrize("most", [None, 40, 150, 200])
def test_a_query_that_finds_too_few_among_so_many_candidates_is_given_up(most):
    """Of 200 chunks on a line, what a query may have begins `wanted` away from it."""
    vectors = np.arange(200, dtype=np.float32)[:, None]
    wanted, fetched = np.array([0, 30, 60, 190]), []

    def search(queries, k):
        fetched.append(k)
        return Exact(vectors).search(queries, k)

    def valid(rows, found):
        return found >= wanted[rows][:, None]

    queries = np.zeros((4, 1), np.float32)
    ids, distances, given_up = neighbours.nearest_valid(search, queries, 200, 2, valid, 10, most)
    expected = np.stack([wanted, wanted + 1], 1)
    assert fetched == ([10, 40] if most in (40, 150) else [10, 40, 160, 200])
    lost = [2, 3] if most in (40, 150) else []
    assert given_up.tolist() == lost
    expected[lost] = -1
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(
        distances, np.where(expected < 0, np.inf, expected.astype(float) ** 2)
    )
