"""A database in partitions: a query visits few of them, and finds what it was to find."""

import json
import math
import shutil

import numpy as np
import pytest
from test_index import brute_force, clustered

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.retrieval import division, neighbours, recall, routing
from retro_jax.retrieval.index import Given
from retro_jax.retrieval.indexes import scann
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.sharded import ShardedIndex


@pytest.fixture(scope="module")
def vectors():
    return clustered(3000)


@pytest.fixture
def routed(monkeypatch):
    """Exact search in partitions: what is missed is missed by the route alone."""
    monkeypatch.setattr(Exact, "approximate", True)
    monkeypatch.setattr(Exact, "Settings", scann.Settings)

    def of(min_recall, shard, k=5):
        settings = {"exact": {"min_recall": min_recall}}
        return RetrievalConfig(
            index="exact", settings=settings, neighbours=k, index_shard=shard
        ), Given(k)

    return of


def test_routes_find_what_is_asked_for_in_a_share_of_the_database(vectors, routed, tmp_path):
    for number, min_recall in enumerate((0.9, 0.99)):
        out = tmp_path / str(number)
        out.mkdir()
        report = division.build(vectors, out, *routed(min_recall, 300))
        assert report["shards"] == 20
        assert sum(report["sizes"]) == 2 * len(vectors)  # each stands in two
        assert max(report["sizes"]) < 900
        assert min_recall <= report["recall"] <= 1
        assert 1 <= report["probes"] < 10
        opened = ShardedIndex(out)
        whole = sum(opened.shard(n).index.operations(5) for n in range(20))
        assert 2 * opened._centres.size < opened.operations(5) < whole / 2
        queries = vectors[::7] + np.float32(0.01)
        ids, distances = opened.each(
            queries,
            5,
            lambda shard, rows, queries=queries: (
                shard.numbers(shard.search(queries[rows], 5)[0]),
                shard.search(queries[rows], 5)[1],
            ),
        )
        truth, _ = brute_force(vectors, queries, 5)
        recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ids, truth)])
        assert recall >= min_recall - 0.03
        assert all(len(set(row)) == 5 for row in ids.tolist())  # none twice
        assert (np.diff(distances, axis=1) >= 0).all()
    np.testing.assert_array_equal(opened.search(queries, len(vectors))[0][:, :5], truth)


def test_a_query_is_sent_to_the_nearest_centre_and_to_those_that_are_nearly_as_near():
    centres = np.array([[0, 0], [3, 0], [0, 4], [9, 9]], np.float32)
    # Squared distances 1.96, 2.56, 17.96, 138.76 and 0.02, 8.42, 15.22, 158.42.
    queries = np.array([[1.4, 0], [0.1, 0.1]], np.float32)
    for slack, least, expected in (
        (0.0, 1, [[0], [0]]),
        (0.31, 1, [[0, 1], [0, -1]]),
        (0.0, 2, [[0, 1], [0, 1]]),
        (1e30, 1, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ):
        np.testing.assert_array_equal(routing.sent(queries, centres, slack, least), expected)
    assert routing.sent(queries[:0], centres, 0.0).shape == (0, 1)


def test_partitions_of_scann_are_searched_as_widely_as_the_route_says(tmp_path):
    """No wider and no narrower: what was measured is what a query gets."""
    vectors = clustered(6000)
    settings = {"scann": {"min_recall": 0.9}}
    config = RetrievalConfig(index="scann", settings=settings, neighbours=5, index_shard=2000)
    report = division.build(vectors, tmp_path, config, Given(5))
    opened = ShardedIndex(tmp_path)
    assert 0 < report["share"] < 1
    for number in range(report["shards"]):
        index = opened.shard(number).index
        assert index.leaves_to_search == math.ceil(report["share"] * index.leaves)
    queries = vectors[::7] + np.float32(0.01)
    truth, _ = brute_force(vectors, queries, 5)
    found = opened.search(queries, 5)[0]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, truth)]) >= 0.87
    built = division.Division(vectors, tmp_path, config, Given(5))
    assert built.route_again()[1]
    assert all(built.again(number)[1] for number in range(report["shards"]))
    narrow = report | {"slack": 0.0, "share": 1e-3}
    (tmp_path / "index.json").write_text(json.dumps(narrow))
    assert not built.route_again()[1]


def test_who_wants_many_neighbours_visits_many_partitions(vectors, routed, tmp_path):
    """In proportion, beyond what the route would have."""
    division.build(vectors, tmp_path, *routed(0.9, 60))
    opened = ShardedIndex(tmp_path)
    assert opened.shards == 100
    visits = [np.bincount(np.concatenate(opened.routes(vectors[:50], k))) for k in (5, 240)]
    assert visits[0].max() < 60
    assert visits[1].min() >= 80


def test_an_index_of_another_version_is_named_with_the_remedy(vectors, routed, tmp_path):
    division.build(vectors, tmp_path, *routed(0.9, 1500))
    report = json.loads((tmp_path / "index.json").read_text())
    del report["slack"]
    (tmp_path / "index.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="another version of retro_jax; delete the index"):
        ShardedIndex(tmp_path)


def test_a_partition_is_told_who_names_it_once_and_in_order():
    sent = np.array([[2, 0], [0, 0], [3, 2]])
    found = [rows.tolist() for rows in routing.members(sent, 5)]
    assert found == [[0, 1], [], [0, 2], [2], []]


def test_a_partition_holds_half_one_is_empty_and_k_is_larger_than_one(routed, tmp_path):
    """A thousand equal vectors, which no centre parts, and a few others."""
    rng = np.random.default_rng(0)
    vectors = np.concatenate([np.ones((1000, 4)), 5 + rng.normal(size=(40, 4))]).astype("f4")
    report = division.build(vectors, tmp_path, *routed(0.9, 260, k=50))
    assert report["recall"] >= 0.9
    assert max(report["sizes"]) >= 1000
    assert min(report["sizes"]) < 60
    ids, distances = ShardedIndex(tmp_path).search(vectors[1000:1010], 60)
    assert (ids[:, 0] == np.arange(1000, 1010)).all()
    assert (ids >= 0).all()  # the 40, and 20 of the thousand that lie elsewhere
    assert np.isfinite(distances).all()
    built = division.Division(vectors, tmp_path, *routed(0.9, 260, k=50))
    built.build_of(0, np.zeros(0, int), np.zeros((0, 4), np.float32))  # as if nothing lay there
    opened = ShardedIndex(tmp_path)
    assert len(opened.shard(0)) == 0
    assert (opened.search(vectors[1000:1010], 60)[0][:, 0] >= 0).all()


def test_who_lies_far_from_all_is_given_as_many_neighbours(routed, tmp_path):
    """Two groups of six have partitions of their own; what a query lacks there is searched everywhere."""
    rng = np.random.default_rng(0)
    far = np.concatenate([100 + rng.normal(size=(6, 4)), -100 + rng.normal(size=(6, 4))])
    vectors = np.concatenate([rng.normal(size=(3000, 4)), far]).astype("f4")
    report = division.build(vectors, tmp_path, *routed(0.9, 400, k=10))
    assert report["probes"] < 3
    opened = ShardedIndex(tmp_path)
    ids, _ = opened.search(vectors[-12:], 10)
    assert (ids >= 0).all()
    nobody = np.full((12, 1), -1)
    same, _ = neighbours.find(
        opened, vectors[-12:], nobody, neighbours.Owners(np.arange(len(vectors))), 10
    )
    np.testing.assert_array_equal(ids, same)  # live and `prepare`


def test_a_build_of_partitions_that_was_killed_goes_on_to_the_same_bytes(vectors, routed, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        division.build(vectors, tmp_path / name, *routed(0.9, 400))
    killed = tmp_path / "killed"
    (killed / "index.json").unlink()
    shutil.rmtree(killed / "00003")
    stays = (killed / "00002" / "ids.npy").stat().st_mtime_ns
    division.build(vectors, killed, *routed(0.9, 400))
    assert (killed / "00002" / "ids.npy").stat().st_mtime_ns == stays
    files = [p.relative_to(killed) for p in killed.rglob("*") if p.is_file()]
    assert len(files) > 40
    for file in files:
        assert (killed / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_a_route_that_cannot_reach_the_recall_is_refused(routed, tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(2000, 16)).astype("f4")  # without clusters
    monkeypatch.setattr(recall, "_SLACKS", (0.0,))
    monkeypatch.setattr(recall, "_ALL", 0.0)
    with pytest.raises(UserError, match=r"min_recall = 1\.0: the index reaches recall@5 0\."):
        division.build(vectors, tmp_path, *routed(1.0, 300))
