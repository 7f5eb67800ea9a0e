"""Methods side by side: from one command to one table."""

import json
from dataclasses import make_dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import altered, make_mesh

from retro_jax.cli import main as cli
from retro_jax.errors import UserError
from retro_jax.evaluate import beside, compare, costs, likelihood, rows, signals, tuning
from retro_jax.evaluate.likelihood import Column
from retro_jax.methods import datastore
from retro_jax.methods.method import METHODS, method_of
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.train.restore import restore_trained

One = make_dataclass("One", ["x"])
READS = ("rag", "replug", "rag_tuned", "replug_lsr", "replug_lsr_full")
ASKED = f"--methods=retro,{','.join(READS)},knn_lm,language_model_longer"


@pytest.fixture(scope="module")
def compared(small, finished, tmp_path_factory):
    """(working directory, rows, summary) of a comparison; the trained models are those of `finished`."""
    root = tmp_path_factory.mktemp("compared")
    (root / "prepare").symlink_to(finished / "prepare")
    (root / "train").mkdir()
    for name in ("language_model", "retro"):
        (root / "train" / name).symlink_to(finished / "train" / name)
    longer = {name: {"budget": "longer"} for name in READS}
    longer["replug_lsr"] |= {"chunks": 16, "candidates": 4, "steps": 20}
    longer["replug_lsr_full"] |= longer["replug_lsr"] | {"imitates": 50, "rounds": 2}
    work = WorkDir(root, altered(small, method_settings=small.method_settings | longer))
    work.save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            datastore, "_FLAT", 200
        )  # so that ScaNN searches, as in a datastore of any size
        patch.setattr(costs, "ROWS", (1,))  # one program of generation for each method, not two
        assert cli.main(["compare", str(root), ASKED, "--k=1"]) == 0
    found = root / "compare" / "heldout"
    return (
        work,
        rows.load(found / "tokens.parquet"),
        json.loads((found / "summary.json").read_text()),
    )


def test_all_methods_score_the_tokens_that_evaluate_scores(compared, finished):
    _, found, summary = compared
    own = rows.load(finished / "evaluate" / "heldout" / "tokens.parquet")
    np.testing.assert_array_equal(found["target"], own["target"])
    assert set(found.nats) == {
        "language_model",
        "language_model_longer",
        "knn_lm",
        "knn_lm random",
    } | {f"{m}{c}" for m in (*READS, "retro") for c in ("", " random", " k=1")}
    for name, condition in (("retro", "on"), ("retro random", "random"), ("language_model",) * 2):
        np.testing.assert_allclose(found.nats[name], own.nats[condition], atol=1e-4)
    for name, of in summary["methods"].items():
        bits = found.nats[name].sum() / np.log(2) / found["bytes"].sum()
        assert of["all"]["bits_per_byte"] == pytest.approx(bits)
        assert of["gflops_per_token"] > 0
        assert of["state_bytes"] > 0
        assert of["ms_per_token"]["1"] > 0
        assert (of["retrieved_per_token"] > 0) == (name in (*READS, "retro"))
        assert (of["index_bytes"] > 0) == (name in (*READS, "retro", "knn_lm"))
    assert summary["methods"]["knn_lm"]["index_bytes"] != summary["methods"]["rag"]["index_bytes"]


def test_before_anything_was_retrieved_they_are_the_language_model(compared):
    _, found, _ = compared
    nothing = found["position"] < found.facts["chunk"]
    for name in ("rag", "replug"):
        same = found.nats[name][nothing], found.nats["language_model"][nothing]
        np.testing.assert_allclose(*same, atol=1e-4)
        assert (found.nats[name] != found.nats["language_model"])[~nothing].mean() > 0.9


def test_fewer_neighbours_are_a_point_of_the_plots(compared):
    work, _, summary = compared
    with_one = {n: of["fewer"] for n, of in summary["methods"].items() if of["fewer"]}
    assert set(with_one) == {*READS, "retro"}
    for name, of in with_one.items():
        whole = summary["methods"][name]
        assert of["1"]["bits_per_byte"] != whole["all"]["bits_per_byte"]
        alone = summary["methods"]["language_model"]["all"]["bits_per_byte"]
        gain = of["1"]["gain"]["all"]
        assert gain["value"] == pytest.approx(alone - of["1"]["bits_per_byte"], abs=1e-6)
        assert gain["low"] < gain["value"] < gain["high"]
        assert of["1"]["gain"].keys() == {"all", "filtered", "novel", "far"}
        assert of["1"]["ms_per_token"]["1"] > 0
    # REPLUG with one neighbour is one stream, RETRO encodes half as much.
    for name in ("replug", "retro"):
        assert (
            with_one[name]["1"]["gflops_per_token"] < summary["methods"][name]["gflops_per_token"]
        )
    page = (work.compared("heldout") / "report.md").read_text()
    assert "replug, k = 1" in page


def test_several_trainings_are_means_and_widen_the_intervals(compared, tmp_path):
    """The second one is trained, with the next seed; what the first one said is not asked again."""
    work, found, summary = compared
    for stage in ("prepare", "train", "scores"):
        (tmp_path / stage).symlink_to(work.root / stage)
    WorkDir(tmp_path, work.experiment).save()
    before = (work.scored("heldout", "rag") / "tokens.parquet").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "ROWS", (1,))
        words = ["compare", str(tmp_path), "--methods=retro,rag", "--seeds=2", "--k=1"]
        assert cli.main(words) == 0
    assert (work.scored("heldout", "rag") / "tokens.parquet").stat().st_mtime_ns == before
    out = tmp_path / "compare" / "heldout"
    both, two = rows.load(out / "tokens.parquet"), json.loads((out / "summary.json").read_text())
    np.testing.assert_array_equal(both.nats["rag"], found.nats["rag"])
    assert (both.nats["retro@1"] != both.nats["retro"]).mean() > 0.9
    assert (tmp_path / "seeds" / "1" / "train" / "retro").is_dir()
    for name in ("language_model", "retro", "rag"):
        each = two["methods"][name]["seeds"]
        assert each[0] == pytest.approx(summary["methods"][name]["all"]["bits_per_byte"])
        assert two["methods"][name]["all"]["bits_per_byte"] == pytest.approx(sum(each) / 2)
    for name in ("retro", "rag"):  # what fewer neighbours change is of the first training
        less = [s["methods"][name]["fewer"]["1"]["bits_per_byte"] for s in (summary, two)]
        all_ = [s["methods"][name]["all"]["bits_per_byte"] for s in (summary, two)]
        assert less[0] - all_[0] == pytest.approx(less[1] - all_[1])
    one = signals.effect_over(beside.trainings(both)[:1], "language_model", "retro")
    assert one["value"] == pytest.approx(summary["methods"]["retro"]["all"]["gain"]["value"])


def test_of_trainings_that_differ_the_interval_is_at_least_as_wide(compared):
    """Two trainings, of which one gains and one loses as much: the interval holds both."""
    _, found, _ = compared
    zero = np.zeros(len(found))
    gains = [rows.Rows(found.facts, {"a": zero, "b": zero - x}, found.columns) for x in (1.0, -1.0)]
    each = [signals.effect_over([g], "a", "b") for g in gains]
    both = signals.effect_over(gains, "a", "b")
    assert abs(both["value"]) < 1e-9
    assert both["low"] < 0.9 * each[1]["value"]
    assert both["high"] > 0.9 * each[0]["value"]


def test_variants_are_compared_where_they_are_asked_for(small):
    e = altered(small, train={"length": 192})
    usual, every = ({m.name for m in compare.chosen(e, names)} for names in (None, "all"))
    assert every == set(METHODS)
    variants = every - usual
    assert {METHODS[n].variant_of for n in variants} <= usual
    assert "rag_once" in variants
    named = [m.name for m in compare.chosen(e, "rag_once,retro")]
    assert named == ["language_model", "rag_once", "retro"]


@pytest.mark.parametrize("k", ["0", "2", "x", "1,"])
def test_a_number_of_neighbours_that_cannot_be_is_refused(compared, k, capsys):
    assert cli.main(["compare", str(compared[0].root), "--methods=retro", f"--k={k}"]) == 2
    assert f"--k={k}: must be numbers above 0 and below config field" in capsys.readouterr().err


def test_a_trained_retriever_has_neighbours_of_its_own(compared):
    """Better ones or the same, for documents that it was not trained on; live it finds what was scored."""
    work, found, _ = compared
    manifest = artefact.read(work.datastore("replug_lsr"))
    assert manifest["counts"]["chunks"] == 16
    before, after = manifest["counts"]["loss"]["apart"]
    assert after <= before
    differ = found.nats["replug_lsr"] != found.nats["replug"]
    assert differ[found["position"] >= found.facts["chunk"]].mean() > 0.5
    method = method_of(work.experiment, "replug_lsr")
    method.prepare(work)
    table, queries = Prepared(work).table("heldout"), Prepared(work).queries("heldout")
    ids, distances = method.neighbours(work, queries.rows(slice(0, 20)), table)
    live = method.retriever(work).retrieve(table.tokens[:20])
    np.testing.assert_allclose(live.distances, distances, rtol=1e-4)
    np.testing.assert_array_equal(live.ids, ids)


def test_a_retriever_of_its_own_is_small_and_its_index_is_made_again(compared):
    work, _, _ = compared
    counts = artefact.read(work.datastore("replug_lsr_full"))["counts"]
    assert counts["parameters"] <= 1_000_000
    assert len(counts["loss"]) == 2
    for before, after in counts["loss"]:  # of documents that it was not trained on
        assert after <= before
    method = method_of(work.experiment, "replug_lsr_full")
    method.prepare(work)
    table = Prepared(work).table("heldout")
    ids, distances = method.neighbours(work, None, table)
    live = method.retriever(work)
    found = live.retrieve(table.tokens[:20])
    np.testing.assert_array_equal(found.ids, ids[:20])
    np.testing.assert_allclose(found.distances, distances[:20], atol=1e-4)
    with pytest.raises(UserError, match="an index of its own"):
        live.retrieve(table.tokens[:1], databases=("prepared", "mine"))


def test_what_is_trained_on_begins_with_the_language_model(compared):
    """And its FLOPs count: a language model twice as long has twice as many, and rag_tuned at least."""
    work, _, summary = compared
    flops = {name: of["training_flops"] for name, of in summary["methods"].items()}
    costliest = max(f for n, f in flops.items() if n != "language_model_longer")
    assert flops["language_model_longer"] == pytest.approx(costliest, rel=0.1)  # of whole steps
    assert flops["rag_tuned"] > 2 * flops["language_model"]  # its rows are longer here
    assert flops["rag"] == flops["knn_lm"] == flops["language_model"]
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        base = restore_trained(work, method_of(work.experiment, "language_model"), mesh)
        for name in ("rag_tuned", "language_model_longer"):
            params = restore_trained(work, method_of(work.experiment, name), mesh)
            moved = [float(jnp.abs(params[n] - base[n]).max()) for n in base]
            assert 0 < max(moved) < 1  # fresh weights would be elsewhere altogether
            np.testing.assert_allclose(params["embedding"], base["embedding"], atol=0.1)


def test_what_is_tuned_is_said(compared):
    work, found, summary = compared
    assert set(summary["tuned"]) == {"replug", "replug_lsr", "replug_lsr_full", "knn_lm"}
    for name, chosen in summary["tuned"].items():
        choices = [vars(s) for s in method_of(work.experiment, name).choices()]
        assert [c in choices for c in chosen] == [True, True]
    # A datastore's values permuted are worth less than nothing.
    assert found.nats["knn_lm random"].sum() > found.nats["knn_lm"].sum()


def test_a_choice_is_made_without_the_half_that_is_scored(tmp_path):
    rng = np.random.default_rng(0)
    column = Column("m", SimpleNamespace(name="m", choices=lambda: [One(0), One(1)]), None, True)
    ids = ["b", "a", "c"]  # the halves are (a, c) and (b)
    facts = {"documents": [{"id": id} for id in ids]}
    schema = likelihood.schema([column], 0, 0, facts)
    schema = pa.schema([schema.field("document"), schema.field("logp_m")], schema.metadata)
    documents = np.repeat([0, 1, 2], 4)
    logp = np.where(documents == 0, -1.0, -2.0)[:, None] * [1.0, 1.0] + rng.normal(size=(12, 2)) / 9
    logp[documents == 0, 1] += 0.5  # b is for the second choice, a and c for the first
    logp[documents != 0, 0] += 0.5
    raw = pa.array(list(logp.astype(np.float32)), schema.field("logp_m").type)
    pq.write_table(pa.Table.from_arrays([pa.array(documents, pa.int32()), raw], schema=schema),
                   tmp_path / "raw.parquet")  # fmt: skip
    tuning.settle(tmp_path / "raw.parquet", tmp_path / "out.parquet", [column])
    out = pq.read_table(tmp_path / "out.parquet")
    expected = np.where(documents == 0, logp[:, 0], logp[:, 1])
    np.testing.assert_allclose(out["logp_m"].to_numpy(), expected, rtol=1e-6)
    facts = json.loads(out.schema.metadata[b"retro_jax"])
    assert facts["tuned"] == {"m": [{"x": 1}, {"x": 0}]}


def test_a_second_time_nothing_is_made(compared, capfd):
    work, _, _ = compared
    file = work.root / "compare" / "heldout" / "tokens.parquet"
    before = file.stat().st_mtime_ns
    scores = (
        work.root / "scores" / "heldout" / "rag"
    )  # as of a call that was killed while it made them again
    scores.rename(scores.with_name(".rag.before"))
    assert cli.main(["compare", str(work.root), ASKED]) == 0
    assert file.stat().st_mtime_ns == before
    said = capfd.readouterr()
    assert "compare/heldout: complete" in said.err
    assert "replug" in said.out
    assert "Deploy " in said.out
    page = (work.root / "compare" / "heldout" / "report.html").read_text()
    assert "Which method?" in page
    assert page.count("<svg") == 7
    for name in ("rag_tuned", "knn_lm", "language_model_longer"):
        assert name in page


def test_a_task_by_several_methods_is_one_table(compared, tmp_path, capfd):
    work, _, _ = compared
    file = tmp_path / "last.jsonl"
    file.write_text("".join(json.dumps({"text": f"def f(x): return x + {n}"}) + "\n" for n in "12"))
    flags = ["--methods=knn_lm", f"--task=lambada:{file}"]
    assert cli.main(["compare", str(work.root), *flags]) == 0
    said = capfd.readouterr().out
    for name in ("language_model", "knn_lm"):
        assert name in said
        made = json.loads(work.task(f"last-{name}").read_text())
        assert made["items"] == 2
        assert f"{made['all']['log p']['off']['value']:.2f}"[:4] in said
    alone, near = (
        json.loads(work.task(f"last-{n}").read_text()) for n in ("language_model", "knn_lm")
    )
    assert alone["results"][0]["off"]["logp"] != near["results"][0]["off"]["logp"]


def test_what_cannot_be_compared_is_said_first(compared, capfd):
    work, _, _ = compared
    for flags, message in (
        (["--methods=rag,rug"], "'rug': must be one of"),
        (
            [
                "--methods=rag,replug",
                "--config.method_settings.rag.budget=window",
                "--config.train.length=256",
            ],
            "only methods of one budget",
        ),
        (["--task=lambada:none.jsonl"], "none.jsonl"),
        (["--may=logit"], "--may=logit: must be one of train, logits, none"),
        (["--latency-ms=-1"], "--latency-ms=-1.0: must be 0 (any) or more"),
        (["--methods=rag", "--config.method_settings.rag.budget=window"], "leave no room"),
    ):
        assert cli.main(["compare", str(work.root), *flags]) == 2
        assert message in capfd.readouterr().err.splitlines()[-1]
