"""The estimate is what preparing costs: right where it can be checked, and it grows as it should."""

import pytest

from retro_jax.cli import main as cli
from retro_jax.errors import UserError
from retro_jax.pipeline import estimate
from retro_jax.store import artefact


@pytest.fixture(scope="module")
def sample():
    """The manifests of the sample that `one` is estimated from."""
    return {}


@pytest.fixture(scope="module")
def one(small, sample):
    def prepare(work, before=estimate.prepare):
        sample.update(before(work))
        return sample

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "prepare", prepare)
        return estimate.estimate(small, 1e9)


def test_counts_and_sizes_are_those_of_the_real_thing(one, finished):
    prepared = finished / "prepare"
    counts = {s: artefact.read(prepared / "chunks" / s)["counts"] for s in ("train", "heldout")}
    corpus = artefact.read(prepared / "corpus")["counts"]
    scale = 1e9 / sum(corpus[f"{s}_bytes"] for s in counts)
    for name in ("chunks", "tokens"):
        real = scale * sum(c[name] for c in counts.values())
        assert one[name] == pytest.approx(real, rel=0.02)
    for step in ("corpus", "chunks", "embeddings", "neighbours", "shards"):
        files = [p for p in (prepared / step).rglob("*") if p.is_file()]
        assert one["steps"][step]["bytes"] == pytest.approx(
            scale * sum(p.stat().st_size for p in files), rel=0.3
        )


def test_hours_are_those_of_the_sample_for_so_much_more_text(small, one, sample):
    text = sum(sample["corpus"]["counts"][f"{s}_bytes"] for s in ("train", "heldout"))
    hours = dict.fromkeys(one["steps"], 0.0)
    for name, manifest in sample.items():
        step = name.partition("/")[0]
        fixed = step in ("tokenizer", "statistics", "embedder")
        hours[step] += manifest["cpu_seconds"] / 3600 * (1 if fixed else 1e9 / text)
    index, database = one["index"], one["chunks"] * (1 - small.corpus.heldout)
    hours["neighbours"] = one["chunks"] * index["cpu_seconds_a_query"] / 3600
    hours["index"] = database * index["build_cpu_seconds_a_vector"] / 3600
    found = {name: cost["vcpu_hours"] for name, cost in one["steps"].items()}
    assert found == pytest.approx(hours)
    assert one["vcpu_hours"] == pytest.approx(sum(hours.values()))
    assert min(hours.values()) > 0


def test_ten_times_the_text_costs_ten_times_but_for_what_is_fitted_and_searched(small, one):
    ten = estimate.estimate(small, 1e10)
    for name, cost in one["steps"].items():
        factor = 1 if name in ("tokenizer", "embedder") else 10
        assert ten["steps"][name]["bytes"] == pytest.approx(factor * cost["bytes"], rel=0.05)
    assert ten["index"]["shards"] > 5 * one["index"]["shards"]
    assert (
        ten["index"]["visited"] > 2 * one["index"]["visited"]
    )  # each chunk is sent to more partitions


@pytest.mark.parametrize("size", ["", "0", "TB", "-5", "1XB"])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(UserError, match=r"--estimate=.*for example --estimate=1TB"):
        estimate.parse_size(size)
    assert estimate.parse_size("1.5TB") == 1.5e12
    assert estimate.parse_size("300 kB") == estimate.parse_size("3e5") == 3e5


def test_it_is_shown_as_a_table_and_for_prepare_only(capsys, finished):
    config = "--config=experiments/quickstart.py"
    source = "--config.corpus.source=text:retro_jax/**/*.py"
    arguments = [
        config,
        source,
        "--config.retrieval.settings.tfidf.dim=32",
        "--config.corpus.vocab=600",
    ]
    assert cli.main(["prepare", *arguments, "--estimate=1TB"]) == 0
    shown = capsys.readouterr().out
    assert "1 TB of text" in shown
    assert "vCPU hours" in shown
    assert cli.main(["train", *arguments, "--estimate=1TB"]) == 2
    assert "not understood: --estimate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "share", "told"), [("scann", 3, True), ("scann", 0.5, False), ("bm25", 3, False)]
)
def test_who_pays_for_the_search_hears_of_words(one, capsys, kind, share, told):
    rest = sum(c["vcpu_hours"] for n, c in one["steps"].items() if n != "neighbours")
    steps = one["steps"] | {"neighbours": {"vcpu_hours": share * rest, "bytes": 0.0}}
    index = one["index"] | {"kind": kind}
    estimate.show(one | {"steps": steps, "index": index, "vcpu_hours": (1 + share) * rest})
    assert ("--config.retrieval.index=bm25" in capsys.readouterr().out) == told
