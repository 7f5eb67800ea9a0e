"""Every backend keeps the same promises; ScaNN's own edges do not reach the caller."""

import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.retrieval import division, index
from retro_jax.retrieval.index import INDEXES, Given
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.indexes.scann import Scann
from retro_jax.retrieval.sharded import ShardedIndex


def clustered(size: int) -> np.ndarray:
    """Vectors [size, 16] about forty centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    return (centres[rng.integers(0, 40, size)] + 0.3 * rng.normal(size=(size, 16))).astype("f4")


@pytest.fixture(scope="module")
def vectors():
    return clustered(3000)


@pytest.fixture(params=[n for n in INDEXES if n != "auto" and INDEXES[n].takes == "vectors"])
def kind(request):
    """Every index of the table that searches vectors."""
    return request.param


def config(kind, min_recall, k, shard):
    """The config of an index."""
    settings = {kind: {"min_recall": min_recall}} if kind in ("scann", "faiss", "auto") else {}
    return RetrievalConfig(index=kind, settings=settings, neighbours=k, index_shard=shard)


def build(vectors, directory, kind, min_recall, k, shard=10**6):
    """(index, report)."""
    report = division.build(vectors, directory, config(kind, min_recall, k, shard), Given(k))
    return ShardedIndex(directory), report


def brute_force(vectors, queries, k):
    d = ((queries[:, None].astype("f8") - vectors[None]) ** 2).sum(-1)
    ids = np.argsort(d, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(d, ids, 1)


def test_neighbours_are_the_nearest_with_their_squared_distance(vectors, kind, tmp_path):
    built, report = build(vectors, tmp_path, kind, 0.9, 5)
    assert report["kind"] == kind
    queries = vectors[:200] + 0.01
    ids, distances = built.search(queries, 5)
    truth, exact = brute_force(vectors, queries, 5)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ids, truth)])
    # ScaNN's threads train its tree in another order each time: a few neighbours may be missed, the
    # first as well as the fifth. What it does return stands at its true distance.
    least = 0.8 if INDEXES[kind].approximate else 1.0
    assert recall >= least
    assert (np.diff(distances, axis=1) >= -1e-5).all()
    true = np.square(queries[:, None].astype("f8") - vectors[ids]).sum(-1)
    np.testing.assert_allclose(distances, true, atol=1e-3)
    found_first = ids[:, 0] == truth[:, 0]
    assert found_first.mean() >= least
    np.testing.assert_allclose(distances[found_first, 0], exact[found_first, 0], atol=1e-3)


def test_a_saved_index_opens_after_a_move_and_finds_the_same(vectors, kind, tmp_path):
    (tmp_path / "a").mkdir()
    built, _ = build(vectors, tmp_path / "a", kind, 0.9, 5)
    shutil.move(tmp_path / "a", tmp_path / "b")
    opened = ShardedIndex(tmp_path / "b")
    for before, after in zip(built.search(vectors[:50], 5), opened.search(vectors[:50], 5)):
        np.testing.assert_array_equal(before, after)
    assert len(opened) == len(vectors)


def test_more_neighbours_than_vectors_leaves_places_empty(kind, tmp_path):
    few = np.eye(4, dtype=np.float32)
    built, report = build(few, tmp_path, kind, 0.5, 2)
    assert report["kind"] == (
        "exact" if INDEXES[kind].approximate else kind  # which cannot be trained on 4
    )
    ids, distances = built.search(few, 6)
    assert ids.shape == distances.shape == (4, 6)
    assert (ids[:, 0] == np.arange(4)).all()
    assert (ids[:, 4:] == -1).all()
    assert np.isposinf(distances[:, 4:]).all()
    assert np.isfinite(distances[ids >= 0]).all()


def test_thousands_of_equal_vectors_are_found_by_id_and_in_little_memory(tmp_path):
    """Queries that are equally near to everything go fewer at a time."""
    same = np.ones((30_000, 4), np.float32)
    built, _ = build(same, tmp_path, "exact", 0.9, 3)
    ids, distances = built.search(same[:200], 3)
    assert (ids == [0, 1, 2]).all()
    assert (distances == 0).all()


def test_a_query_in_an_empty_neighbourhood_finds_k_all_the_same(vectors, kind, tmp_path):
    """Vectors far from all others have a leaf each: what looks at the nearest leaves sees fewer than k there."""
    far = 1000 * np.eye(16, dtype=np.float32)
    built, _ = build(np.concatenate([vectors, far]), tmp_path, kind, 0.0, 5)
    ids, distances = built.search(far, 5)
    assert (ids[:, 0] == 3000 + np.arange(16)).all()
    assert (ids >= 0).all()
    assert np.isfinite(distances).all()


def test_leaves_that_hold_fewer_than_k_give_missing_and_not_row_0(vectors, tmp_path):
    built = build(vectors, tmp_path, "scann", 0.0, 5)[0].shard(0).index
    built.leaves = built.leaves_to_search = 1  # visit one leaf, whatever k is
    ids, distances = built.search(vectors[:100], 500)
    assert (ids == -1).any()
    assert (np.isposinf(distances) == (ids == -1)).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in ids)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused_before_the_library_sees_them(bad, kind, tmp_path):
    vectors = np.ones((10, 4), np.float32)
    vectors[3, 1] = bad
    with pytest.raises(UserError, match="chunk 3 holds NaN or Inf"):
        build(vectors, tmp_path, kind, 0.9, 2)


def test_queries_of_another_width_or_with_nan_are_refused(vectors, kind, tmp_path):
    built, _ = build(vectors, tmp_path, kind, 0.9, 5)
    with pytest.raises(ValueError, match=r"\[Q, 16\]"):
        built.search(np.zeros((2, 5), np.float32), 3)
    with pytest.raises(ValueError, match="NaN"):
        built.search(np.full((2, 16), np.nan, np.float32), 3)


def test_an_empty_query_batch_finds_nothing(vectors, kind, tmp_path):
    built, _ = build(vectors, tmp_path, kind, 0.9, 5)
    assert built.search(np.zeros((0, 16), np.float32), 3)[0].shape == (0, 3)


def test_an_empty_database_is_refused(kind, tmp_path):
    with pytest.raises(UserError, match="empty"):
        build(np.zeros((0, 8), np.float32), tmp_path, kind, 0.9, 2)


def test_duplicates_and_zero_vectors_are_found(kind, tmp_path):
    vectors = np.zeros((500, 8), np.float32)
    vectors[250:, 0] = 1
    built, report = build(vectors, tmp_path, kind, 0.9, 2)
    ids, distances = built.search(vectors, 2)
    assert (vectors[ids[:, 0], 0] == vectors[:, 0]).all()
    np.testing.assert_allclose(distances, 0, atol=1e-5)
    assert report["recall"] == 1.0


def test_auto_is_exact_for_a_small_database(vectors, tmp_path):
    assert build(vectors, tmp_path, "auto", 0.9, 2)[1]["kind"] == "exact"


def test_scann_opens_beside_a_tensorflow_that_it_was_not_built_for(tmp_path):
    """scann imports TensorFlow ops of one version; a foreign TensorFlow must not break the index."""
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    (fake / "__init__.py").write_text("raise RuntimeError('undefined symbol')")
    code = "from retro_jax.retrieval.indexes.scann import library; assert library() is not None"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(tmp_path), "PATH": ""}
    )


def test_a_recall_below_the_bound_is_refused(vectors, tmp_path):
    unreachable = types.SimpleNamespace(min_recall=1.01)
    with pytest.raises(UserError, match=r"min_recall = 1\.01: the ScaNN index reaches recall@2 "):
        Scann.build(vectors, tmp_path, unreachable, Given(2))


@pytest.mark.parametrize("keep", [True, False])
def test_shards_find_what_the_whole_finds(vectors, keep, tmp_path):
    """Bit for bit, ties and all: half of the vectors stand in two places."""
    twice = np.concatenate([vectors[:800], vectors[:800]])
    found = []
    for shard in (10**6, 300):
        directory = tmp_path / str(shard)
        directory.mkdir()
        report = division.build(twice, directory, config("exact", 0.9, 5, shard), Given(5))
        found.append(ShardedIndex(directory, keep=keep).search(vectors[:200], 7))
    assert report["shards"] == 6
    assert max(report["sizes"]) <= 300
    for whole, parts in zip(*found):
        np.testing.assert_array_equal(whole, parts)
    assert (found[0][0][:, :2] == np.arange(200)[:, None] + [0, 800]).all()


def test_a_build_that_was_killed_keeps_the_shards_that_were_complete(vectors, tmp_path):
    division.build(vectors[:900], tmp_path, config("exact", 0.9, 5, 300), Given(5))
    (tmp_path / "index.json").unlink()
    (tmp_path / "00001" / "index.json").unlink()
    first = (tmp_path / "00000" / "vectors.npy").stat().st_mtime_ns
    report = division.build(vectors[:900], tmp_path, config("exact", 0.9, 5, 300), Given(5))
    assert report["sizes"] == [300, 300, 300]
    assert (tmp_path / "00000" / "vectors.npy").stat().st_mtime_ns == first
    assert len(ShardedIndex(tmp_path)) == 900


def test_what_exact_search_finds_does_not_depend_on_what_else_is_searched(vectors, tmp_path):
    exact, _ = build(vectors, tmp_path, "exact", 0.9, 5)
    together = exact.search(vectors[:300], 9)
    for row in range(0, 300, 37):
        for whole, alone in zip(together, exact.search(vectors[row : row + 1], 9)):
            np.testing.assert_array_equal(whole[row], alone[0])


@pytest.mark.parametrize("scale", [1e-12, 3e-12, 1.0, 1e10, "mixed"])
def test_exact_search_misses_nothing_at_any_scale(vectors, scale):
    """What products in bfloat16 propose has to hold the answer, wherever the numbers lie."""
    rng = np.random.default_rng(1)
    factor = 10.0 ** rng.uniform(-3, 3, (len(vectors), 1)) if scale == "mixed" else scale
    scaled = (vectors * factor).astype("f4")
    queries = scaled[::50] * np.float32(1.001)
    ids, distances = Exact(scaled).search(queries, 5)
    expected, squared = brute_force(scaled, queries, 5)
    np.testing.assert_allclose(distances, squared, rtol=1e-6)
    np.testing.assert_array_equal(ids[:, 0], expected[:, 0])


def test_the_wider_an_index_is_searched_the_more_it_finds(vectors, kind, tmp_path):
    """To all of it, where nothing is left to miss."""
    built = build(vectors, tmp_path, kind, 0.5, 5)[0].shard(0).index
    queries = vectors[:300] + np.float32(0.01)
    truth, _ = brute_force(vectors, queries, 5)
    recall = [
        np.mean([len(set(a) & set(b)) / 5 for a, b in zip(built.wide(share).search(queries, 5)[0], truth)])
        for share in (1 / 64, 1.0)
    ]  # fmt: skip
    assert recall[1] > 0.999
    assert (recall[0] < recall[1]) == INDEXES[kind].approximate
    # And the more it computes, from less than comparing the query with all of them on.
    few, many = (built.wide(share).operations(5) for share in (1 / 64, 1.0))
    if not INDEXES[kind].approximate:
        assert few == many == 2 * vectors.size
    else:
        assert few < 2 * vectors.size
        assert few < many


def test_scann_and_faiss_find_the_same_within_their_recall(vectors, tmp_path):
    found = []
    for name in ("scann", "faiss"):
        (tmp_path / name).mkdir()
        built, report = build(vectors, tmp_path / name, name, 0.95, 5)
        assert report["recall"] >= 0.95
        found.append(built.search(vectors[:300] + np.float32(0.01), 5)[0])
    same = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*found)])
    assert same >= 0.85


@pytest.mark.parametrize("name", ["scann", "faiss"])
def test_a_library_that_is_missing_is_named_before_anything_runs(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"retrieval\.index = '{name}': .*auto"):
        index.check(RetrievalConfig(index=name))
