"""The pipeline on Apache Beam's direct runner makes what `retro prepare` makes, bit for bit."""

import dataclasses
import uuid

import numpy as np
import pytest
from conftest import altered, small_experiment, write_corpus
from upath import UPath

from retro_jax.cli import main as cli
from retro_jax.config import RetrievalConfig
from retro_jax.corpus import sources
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.pipeline import prepare, sequences, verify
from retro_jax.pipeline.beam import run
from retro_jax.pipeline.steps import chunk_blocks, embeddings
from retro_jax.pipeline.steps import neighbours as neighbours_step
from retro_jax.retrieval import division, neighbours, routing
from retro_jax.retrieval.indexes import scann
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.store import artefact, columns, records
from retro_jax.store.workdir import WorkDir


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """With a database of its own, another held-out corpus, and documents shorter than a chunk."""
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory / "train", 50)
    write_corpus(directory / "database", 70, seed=1)
    write_corpus(directory / "other", 3, seed=2)
    (directory / "train" / "short.txt").write_text("kara")
    base = small_experiment(directory / "train")
    corpus = dataclasses.replace(
        base.corpus,
        bad_documents="skip",
        heldout_sources=(f"other=text:{directory}/other/*.txt",),
    )
    retrieval = RetrievalConfig(
        embedder="tfidf",
        settings={"tfidf": {"dim": 16}},
        candidates=5,
        source=f"text:{directory}/database/*.txt",
        index_shard=300,
        index="exact",
    )
    return dataclasses.replace(base, corpus=corpus, retrieval=retrieval)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 7)
    monkeypatch.setattr(chunk_blocks, "BLOCK", 50)
    monkeypatch.setattr(neighbours, "BLOCK", 40)
    monkeypatch.setattr(records, "_SHARD_BYTES", 20_000)


def contents(root):
    """File -> bytes, but for manifests, which have times, the config and locks; and their counts."""
    root = UPath(root)
    files = [p for p in root.rglob("*") if p.is_file()]
    name = {p: str(p)[len(str(root)) :] for p in files}
    changing = ("manifest.json", "config.json")
    data = {
        name[p]: p.read_bytes() for p in files if p.name not in changing and ".locks" not in name[p]
    }
    manifests = [p.parent for p in files if p.name == "manifest.json"]
    return data, {name[p / "manifest.json"]: artefact.read(p)["counts"] for p in manifests}


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ("folder", {}),
        ("bucket", {"embedder": "lexical"}),
        ("folder", {"rerank": "none"}),
        ("bucket", {"embedder": "words", "index": "bm25", "index_shard": 12}),
    ],
)
def test_its_output_is_that_of_one_machine(experiment, small_blocks, tmp_path, where, fields):
    e = dataclasses.replace(
        experiment, retrieval=dataclasses.replace(experiment.retrieval, **fields)
    )
    prepare.prepare(WorkDir(tmp_path / "one", e))
    many = tmp_path / "many" if where == "folder" else UPath(f"memory://{uuid.uuid4()}")
    run.run(WorkDir(many, e))
    one, many = contents(tmp_path / "one" / "prepare"), contents(many / "prepare")
    assert one[0].keys() == many[0].keys()
    assert [n for n in one[0] if one[0][n] != many[0][n]] == []
    assert one[1] == many[1]
    assert sum(n.endswith(".tfrecord") for n in one[0]) > 4
    assert sum("/index/0" in n for n in one[0]) >= 4


def test_partitions_too(experiment, small_blocks, tmp_path, monkeypatch):
    """Exact search in them, because no two ScaNN indexes are the same."""
    monkeypatch.setattr(Exact, "approximate", True)
    monkeypatch.setattr(Exact, "Settings", scann.Settings)
    monkeypatch.setattr(routing, "BLOCK", 100)
    monkeypatch.setattr(neighbours_step, "_MANY", 30)  # blocks that do not reach every partition
    settings = experiment.retrieval.settings | {"exact": {"min_recall": 0.9}}
    retrieval = dataclasses.replace(experiment.retrieval, settings=settings)
    e = dataclasses.replace(experiment, retrieval=retrieval)
    prepare.prepare(WorkDir(tmp_path / "one", e))
    assert artefact.read(tmp_path / "one" / "prepare" / "index")["counts"]["probes"] > 0
    many = UPath(f"memory://{uuid.uuid4()}")
    finish = division.Division.finish

    def killed(made):
        raise KeyboardInterrupt

    monkeypatch.setattr(division.Division, "finish", killed)  # when all partitions are built
    with pytest.raises(KeyboardInterrupt):
        run.run(WorkDir(many, e))
    monkeypatch.setattr(division.Division, "finish", finish)
    monkeypatch.setattr(routing, "fit", None)  # the centres are there
    run.run(WorkDir(many, e))
    one, many = contents(tmp_path / "one" / "prepare"), contents(many / "prepare")
    assert one[0].keys() == many[0].keys()
    assert [n for n in one[0] if one[0][n] != many[0][n]] == []
    assert one[1] == many[1]
    compared = verify.verify(WorkDir(tmp_path / "one", e), share=0.2)
    assert compared["index"][0] > 5


def test_what_is_there_is_not_made_again(experiment, small_blocks, tmp_path, monkeypatch):
    """Killed after the workers are done and before their parts are joined."""
    embedded, make, join = [], embeddings.Embed.make, columns.join

    def counted(step, *args):
        embedded.append(step.split)
        return make(step, *args)

    monkeypatch.setattr(embeddings.Embed, "make", counted)

    def killed(directory, *rest):
        if directory.parts[-2:] == ("embeddings", "other"):
            raise KeyboardInterrupt
        join(directory, *rest)

    monkeypatch.setattr(columns, "join", killed)
    work = WorkDir(tmp_path, experiment)
    with pytest.raises(KeyboardInterrupt):
        run.run(work)
    monkeypatch.setattr(columns, "join", join)
    before = len(embedded)
    run.run(work)
    assert set(embedded[before:]) == {"database"}  # what comes after it, and none of it
    made = contents(tmp_path)
    run.run(work)
    assert contents(tmp_path) == made


def test_parts_of_another_config_are_not_joined(experiment, small_blocks, tmp_path, monkeypatch):
    """Killed while tokenizing, then run with chunks of another length."""
    join = columns.join

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(columns, "join", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run(WorkDir(tmp_path / "many", experiment))
    monkeypatch.setattr(columns, "join", join)
    model = altered(experiment.model, reading={"chunk": 32, "retrieved": 64})
    other = dataclasses.replace(experiment, model=model)
    run.run(WorkDir(tmp_path / "many", other))
    prepare.prepare(WorkDir(tmp_path / "one", other))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_record_reads_what_it_holds_and_no_more():
    """Its padding must not make it read a bucket's column from the first row on."""
    read = []

    class Counting(columns.Ranges):
        def _read(self, begin, end):
            read.append(end - begin)
            return np.zeros((end - begin, *self.shape[1:]), self.dtype)

    def column(dtype, *shape):
        return Counting(None, np.dtype(dtype), (1000, *shape))

    table = object.__new__(ChunkTable)
    table.tokens, table.document = column("<u2", 4), column("<i4")
    record = sequences.record(
        table, lambda ids: np.zeros((*ids.shape, 8)), np.array([998, 999, -1, -1]), 0,
        column("<i8", 2), column("<f4", 2),
    )  # fmt: skip
    assert record["documents"].tolist() == [0, 0, -1, -1]
    assert read
    assert max(read) == 2


def test_the_command_prepares_and_training_goes_on_from_it(tmp_path):
    arguments = [
        "--config=experiments/quickstart.py", f"--workdir={tmp_path}/w",
        "--config.corpus.source=text:retro_jax/**/*.py", "--config.retrieval.settings.tfidf.dim=32",
        "--config.corpus.vocab=600", "--config.corpus.heldout=0.2", "--config.train.steps=1",
    ]  # fmt: skip
    assert cli.main(["beam", *arguments, "--", "--runner=DirectRunner"]) == 0
    before = contents(tmp_path / "w")
    made = [artefact.read(p.parent) for p in (tmp_path / "w").rglob("manifest.json")]
    assert made
    assert all(m["seconds"] > 0 for m in made)  # the summary of a run adds them up
    assert cli.main(["prepare", *arguments]) == 0  # everything is there
    assert contents(tmp_path / "w") == before


def test_the_command_says_what_is_missing(capsys):
    assert cli.main(["beam", "--config=experiments/nothing.py"]) == 2
    assert "experiments/nothing.py" in capsys.readouterr().err
    assert cli.main(["beam"]) == 2
    assert "--config" in capsys.readouterr().err


def test_a_runner_that_is_none_is_refused_before_the_first_step(tmp_path, capsys):
    arguments = ["--config=experiments/quickstart.py", f"--workdir={tmp_path}/w"]
    assert cli.main(["beam", *arguments, "--", "--runner=NoRunner"]) == 2
    assert "Beam does not take --runner=NoRunner" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
