"""What is read under each condition, and that no figure depends on how the work is divided."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import altered, make_mesh

from retro_jax.corpus import collect
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.document import Document
from retro_jax.corpus.tokenizer import PAD
from retro_jax.databases.retriever import open_retriever
from retro_jax.errors import UserError
from retro_jax.evaluate import condition, evaluate, likelihood, rows
from retro_jax.evaluate.figures import figures
from retro_jax.evaluate.text import Text, Windows
from retro_jax.methods.method import method_of, methods_of
from retro_jax.store.columns import Columns
from retro_jax.store.workdir import WorkDir
from retro_jax.train import restore, sharding

M, K = 16, 2


@pytest.fixture(scope="module")
def text(small, finished):
    return Text.prepared(WorkDir(finished, small), "heldout")


@pytest.fixture(scope="module")
def some(small, finished, text):
    """(conditions by name, rows [B, C] of the first windows, their real neighbours)."""
    made = {c.name: c for c in chosen(small, text, approximate=True)}
    at = np.stack([cut[0] for cut, _ in zip(text.cuts(small), range(6))])
    return made, at, np.stack([text.records[i]["neighbours"] for i in range(6)])


def chosen(e, text, approximate=False):
    retro = method_of(e, "retro")
    return condition.chosen(e.evaluate.conditions, retro.conditions, text, K, approximate)


def names(e, text, approximate=False):
    return [c.name for c in chosen(e, text, approximate)]


def test_every_condition_there_is_has_a_meaning(small, text):
    every = chosen(small, text, approximate=True)
    assert all(c.meaning for c in every)
    assert {"exact", "k1", "database_1"} < {c.name for c in every}
    assert "exact" not in names(small, text)
    few = altered(small, evaluate={"conditions": ("self", "random")})
    assert names(few, text) == ["on", "off", "random", "self"]
    with pytest.raises(
        UserError, match=r"evaluate\.conditions: no condition 'slef' here; there are on"
    ):
        condition.check(("slef",), list(condition.CONDITIONS), K)


def test_what_cannot_be_compared_is_left_out(small, text):
    other = dataclasses.replace(text, as_prepared=False)
    gone = set(names(small, text, True)) - set(names(small, other, True))
    assert gone == {"next", "exact", "database_1", "database_10"}


def test_neighbours_changed_in_their_tokens(some, text):
    made, at, real = some
    real_rows, of = at >= 0, lambda name: made[name].neighbours(at, real)
    assert of("off") is None
    np.testing.assert_array_equal(of("on"), real)
    n, f = of("n_only"), of("f_only")
    np.testing.assert_array_equal(n[..., :M], real[..., :M])
    np.testing.assert_array_equal(f[..., M:], real[..., M:])
    assert not n[..., M:].any()
    assert not f[..., :M].any()
    np.testing.assert_array_equal(of("k1")[:, :, 0], real[:, :, 0])
    assert not of("k1")[:, :, 1].any()
    shuffled = of("shuffled")
    np.testing.assert_array_equal(np.sort(shuffled, axis=-1), np.sort(real, axis=-1))
    np.testing.assert_array_equal(shuffled == PAD, real == PAD)
    assert (shuffled != real).any(axis=-1)[real_rows].mean() > 0.9
    gold = of("self")
    np.testing.assert_array_equal(gold[:, :, 1], real[:, :, 1])
    for b, c in zip(*np.nonzero(real_rows)):
        following = text.table.continuation[at[b, c]]
        expected = text.table.tokens[following] if following >= 0 else np.zeros(M)
        np.testing.assert_array_equal(gold[b, c, 0, M:], expected)


def test_neighbours_exchanged_for_others(some, text, finished, small):
    made, at, real = some
    base = finished / "prepare"
    database, vectors = (
        ChunkTable(base / "chunks" / "train"),
        Columns(base / "embeddings" / "train")["vectors"],
    )
    real_rows = at >= 0
    queries = text.queries.searched[at[real_rows]].astype(np.float64)
    order = np.argsort(np.square(queries[:, None] - vectors[None]).sum(-1), axis=1, kind="stable")
    exact = made["exact"].neighbours(at, real)[real_rows]
    np.testing.assert_array_equal(exact, database.values(order[:, :K]))
    later = made["next"].neighbours(at, real)[real_rows]
    np.testing.assert_array_equal(later, database.values(order[:, K : 2 * K]))
    for name in ("random", "permuted", "database_1", "database_10"):
        other = made[name].neighbours(at, real)
        assert not other[~real_rows].any()
        assert (other[real_rows] != real[real_rows]).any(axis=(-1, -2)).mean() > 0.8
    one = made["database_1"].neighbours(at, real)[real_rows]  # the one document that is left
    document = {tuple(database.values(i)): database.document[i] for i in range(len(database))}
    assert len({document[tuple(x)] for x in one.reshape(-1, 2 * M)}) == 1
    # those of a chunk of another held-out document
    lists = {ids.tobytes(): text.table.document[i] for i, ids in enumerate(np.asarray(text.ids))}
    again = {database.values(np.frombuffer(k, np.int64)).tobytes(): d for k, d in lists.items()}
    for row, found in zip(at[real_rows], made["permuted"].neighbours(at, real)[real_rows]):
        assert again[found.astype(database.tokens.dtype).tobytes()] != text.table.document[row]


def test_what_is_drawn_does_not_depend_on_the_batch(some):
    made, at, real = some
    for name in ("random", "permuted", "shuffled"):
        whole = made[name].neighbours(at, real)
        for b in range(len(at)):
            alone = made[name].neighbours(at[b : b + 1, ::-1], real[b : b + 1, ::-1])[:, ::-1]
            np.testing.assert_array_equal(alone, whole[b : b + 1])


def scored(e, root, text, out, facts) -> rows.Rows:
    retro, other = methods_of(e)
    columns = [
        likelihood.Column(c.name, retro, c, measured=c.name == "on") for c in chosen(e, text)
    ] + [likelihood.Column(other.name, other, None)]
    likelihood.score(WorkDir(root, e), text, columns, facts, out)
    return rows.load(out)


@pytest.fixture(scope="module")
def facts(finished):
    return rows.load(finished / "evaluate" / "heldout" / "tokens.parquet").facts


def test_no_figure_depends_on_batches_devices_or_the_order_of_documents(
    small, finished, text, tmp_path, facts, monkeypatch
):
    plain = rows.load(finished / "evaluate" / "heldout" / "tokens.parquet")
    assert plain.facts["ms_per_token"].keys() == plain.nats.keys()
    assert min(plain.facts["ms_per_token"].values()) > 0
    assert len(plain) == sum(d["tokens"] for d in text.table.documents)
    assert plain["bytes"].sum() == sum(d["bytes"] for d in text.table.documents)
    places = plain["document"].astype(np.int64) << 32 | plain["position"]
    assert len(np.unique(places)) == len(plain)  # each once
    order = np.argsort(places)

    def same(other, order_of_other):
        np.testing.assert_array_equal(other["target"][order_of_other], plain["target"][order])
        for name, nats in plain.nats.items():
            np.testing.assert_allclose(
                other.nats[name][order_of_other], nats[order], atol=2e-5, err_msg=name
            )

    e = dataclasses.replace(small, evaluate=dataclasses.replace(small.evaluate, batch=3),
                            mesh=dataclasses.replace(small.mesh, data=1, model=1))  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda config: make_mesh(1, 1, 1))
        one = scored(e, finished, text, tmp_path / "one.parquet", facts)
    same(one, np.argsort(one["document"].astype(np.int64) << 32 | one["position"]))

    backwards = Text.prepared(WorkDir(finished, small), "heldout")
    cuts = list(backwards.cuts(small))
    records = [backwards.records[i] for i in range(len(cuts))]
    backwards.cuts, backwards.records = lambda e: iter(cuts[::-1]), records[::-1]
    other = scored(small, finished, backwards, tmp_path / "other.parquet", facts)
    same(other, np.argsort(other["document"].astype(np.int64) << 32 | other["position"]))
    a, b = figures(plain), figures(other)
    for name, effect in a["effects"].items():
        assert b["effects"][name] == pytest.approx(effect, abs=1e-5)


def test_another_stride_scores_the_same_tokens_once(small, finished, text, tmp_path, facts):
    for stride in (16, 48):
        e = dataclasses.replace(
            small, evaluate=dataclasses.replace(small.evaluate, stride=stride, conditions=("on",))
        )
        again = Text.prepared(WorkDir(finished, e), "heldout")
        near = (again.ids, again.distances)
        again.records = Windows(again.table, list(again.cuts(e)), again.values, near)
        found = scored(e, finished, again, tmp_path / f"{stride}.parquet", facts)
        assert len(found) == sum(d["tokens"] for d in text.table.documents)
        assert found["bytes"].sum() == sum(d["bytes"] for d in text.table.documents)


def test_a_longer_window_changes_nothing_for_documents_that_fit(
    small, finished, tmp_path, facts, monkeypatch
):
    restored = (
        restore.restore_trained
    )  # the weights are the same, but were made with the shorter one

    def of_small(work, method, mesh):
        return restored(WorkDir(work.root, small), method, mesh)

    monkeypatch.setattr(likelihood, "restore_trained", of_small)
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": f"kara {i} lopo minel tenis " * 6}) for i in range(9))
    )
    found = []
    for length in (64, 128):
        e = dataclasses.replace(small, train=dataclasses.replace(small.train, length=length))
        source, out = f"jsonl:{tmp_path}/a.jsonl#text", tmp_path / str(length)
        out.mkdir()
        retriever = open_retriever(WorkDir(finished, e))
        short = Text.given("text", source, retriever, ("prepared",), out)
        assert max(d["chunks"] for d in short.table.documents) in (3, 4)
        found.append(scored(e, finished, short, out / "rows.parquet", facts))
    for name in found[0].nats:
        np.testing.assert_allclose(found[0].nats[name], found[1].nats[name], atol=2e-5)


def test_random_neighbours_have_no_content_effect(small, finished, text, tmp_path, facts):
    """What stands for the real neighbours is drawn at random: the interval holds 0, which is reported."""
    drawn = Text.prepared(WorkDir(finished, small), "heldout")
    ids = np.random.default_rng(7).integers(
        0, len(ChunkTable(finished / "prepare" / "chunks" / "train")), drawn.ids.shape
    )
    drawn.ids = ids
    drawn.records = Windows(
        drawn.table, list(drawn.cuts(small)), drawn.values, (ids, drawn.distances)
    )
    found = figures(scored(small, finished, drawn, tmp_path / "rows.parquet", facts))
    content = found["effects"]["content"]
    assert content["low"] < 0 < content["high"]
    assert found["verdict"]["collapsed"]
    assert "holds 0" in found["verdict"]["why_collapsed"]


def test_a_cross_attention_of_zeros_changes_nothing_and_is_reported(
    small, finished, text, tmp_path, facts, monkeypatch
):
    restored = restore.restore_trained

    def zeroed(*arguments):
        params = restored(*arguments)
        return {
            n: jax.numpy.zeros_like(p) if "cca" in n and n.endswith(".out") else p
            for n, p in params.items()
        }

    monkeypatch.setattr(likelihood, "restore_trained", zeroed)
    found = scored(small, finished, text, tmp_path / "rows.parquet", facts)
    np.testing.assert_allclose(found.nats["on"], found.nats["self"], atol=1e-6)
    told = figures(found)
    assert max(told["inside"]["ratio"]) == 0
    assert "less than a thousandth" in told["verdict"]["why_collapsed"]


def test_neighbours_and_statistics_stand_beside_the_token_that_they_predicted(
    finished, text, small
):
    """The neighbours read for a token are those of the chunk before; a text's first chunk reads none."""
    found = rows.load(finished / "evaluate" / "heldout" / "tokens.parquet")
    first = np.array([d["first"] for d in text.table.documents])[found["document"]] + found["chunk"]
    begins = found["chunk"] == 0
    assert (found["neighbours"][begins] == -1).all()
    np.testing.assert_array_equal(
        found["neighbours"][~begins], np.asarray(text.ids)[first[~begins] - 1]
    )
    # without anything to read nothing is added; with it, something is
    assert (found["ratio"][begins] == 0).all()
    assert (found["ratio"][~begins] > 0).mean() > 0.95
    np.testing.assert_array_equal(text.table.tokens[first, found["position"] % M], found["target"])


def test_any_text_is_evaluated_against_databases_as_they_are_now(small, finished, tmp_path):
    """Added documents are found; the text itself in a database is a leak; what is deleted is not seen."""
    root, out = tmp_path / "w", tmp_path / "w" / "evaluate" / "one" / "tokens.parquet"
    shutil.copytree(finished, root)
    held = [d.text for d in collect.read(root / "prepare" / "corpus", "heldout")][:3]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in held))
    source = f"jsonl:{tmp_path}/a.jsonl#text"
    databases = open_retriever(WorkDir(root, small)).databases
    databases.add("mine", [Document("copy", held[0][: len(held[0]) // 2], {})])
    databases.add("mine", [Document("other", "lois " * 50, {})])

    def longest(*names):
        evaluate.evaluate_text(WorkDir(root, small), source, "one", names)
        return rows.load(out)["overlap"].max()

    assert longest("mine") == M
    databases.delete("mine", ["copy"])
    assert longest("mine") < M
    databases.add("mine", [Document("leak", held[1], {})])
    with pytest.raises(UserError, match=r"hold the text of 1 of the 3 documents.*:2"):
        longest("mine")
    assert out.exists()  # what there was before is still there
    for name in ("..", "a/b", ".x", "heldout", "tasks"):
        with pytest.raises(UserError, match=r"--name="):
            evaluate.evaluate_text(WorkDir(root, small), source, name, ("mine",))
    assert (root / "prepare" / "index").exists()


def test_an_evaluation_of_one_text_that_was_killed_begins_anew(
    small, finished, tmp_path, monkeypatch
):
    """And one document is enough."""
    root = tmp_path / "w"
    shutil.copytree(finished, root)
    (tmp_path / "a.txt").write_text("kara lopo minel tenis " * 20)
    monkeypatch.setattr(likelihood, "score", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.evaluate_text(WorkDir(root, small), f"text:{tmp_path}/a.txt")
    monkeypatch.undo()
    evaluate.evaluate_text(WorkDir(root, small), f"text:{tmp_path}/a.txt")
    found = rows.load(root / "evaluate" / "text" / "tokens.parquet")
    assert len(found.facts["documents"]) == 1
    assert "permuted" not in found.conditions
    assert figures(found)["verdict"]["word"] == "neutral"
