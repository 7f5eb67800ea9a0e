"""A database of its own, held-out corpora beside the split, and copies: what is retrieved for whom."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import altered, small_experiment, write_corpus

from retro_jax.cli.training import run_all
from retro_jax.corpus import collect
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.errors import UserError
from retro_jax.pipeline import prepare, verify
from retro_jax.store.records import Records
from retro_jax.store.workdir import WorkDir


def write_lines(path, documents):
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in documents.items()))


def retrieved(texts):
    """The training documents too: as they are, under another id, or under another id and edited."""
    kinds = (
        lambda n: (f"copy of {n}", texts[n]),
        lambda n: (n, texts[n]),
        lambda n: (f"edited {n}", texts[n] + " edited"),
    )
    return dict(kinds[i % 3](n) for i, n in enumerate(texts))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """id -> text of 90 documents: 40 to train on and hold out, all of them to retrieve."""
    directory = tmp_path_factory.mktemp("texts")
    write_corpus(directory, documents=90)
    return {p.name: p.read_text() for p in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def experiment(texts, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sources")
    names = list(texts)
    write_lines(directory / "train.jsonl", {n: texts[n] for n in names[:40]})
    write_lines(directory / "database.jsonl", retrieved(texts))
    write_lines(directory / "other.jsonl", {f"other {n}": texts[n][::-1] for n in names[:3]})
    base = small_experiment(directory)  # trained as `finished`: compiled once
    return dataclasses.replace(
        base,
        corpus=dataclasses.replace(
            base.corpus,
            source=f"jsonl:{directory}/train.jsonl",
            heldout_sources=(f"other=jsonl:{directory}/other.jsonl",),
        ),
        retrieval=dataclasses.replace(base.retrieval, source=f"jsonl:{directory}/database.jsonl"),
    )


@pytest.fixture(scope="module")
def prepared(experiment, tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    prepare.prepare(WorkDir(root, experiment))
    return root


def test_the_database_is_the_retrieval_corpus_less_what_is_held_out(prepared, experiment, texts):
    """Neither under its own id nor under another."""
    database = ChunkTable(prepared / "prepare" / "chunks" / "database")
    share = experiment.corpus.heldout
    held_out = {t for n, t in list(texts.items())[:40] if collect.is_heldout(n, share)}
    expected = {id for id, text in retrieved(texts).items() if text not in held_out}
    assert {d["id"] for d in database.documents} == expected
    assert len(expected) < len(texts)
    for split in ("train", "heldout", "other"):
        records = Records(prepared / "prepare" / "shards" / split)
        assert len(records) > 0
        for record in records:
            np.testing.assert_array_equal(
                record["neighbours"], database.values(record["neighbour_ids"])
            )


def test_a_training_document_is_never_its_own_neighbour_under_whatever_id(prepared, texts):
    """By the texts themselves, in sequences that are packed of several documents."""
    base = prepared / "prepare"
    table, database = (
        ChunkTable(base / "chunks" / "train"),
        ChunkTable(base / "chunks" / "database"),
    )
    checked = 0
    for record in Records(base / "shards" / "train"):
        own = {texts[table.documents[int(d)]["id"]] for d in record["documents"] if d >= 0}
        for id in record["neighbour_ids"][record["neighbour_ids"] >= 0]:
            name = database.documents[int(database.document[id])]["id"]
            assert retrieved(texts)[name] not in own
            checked += 1
    assert checked > 100


def test_held_out_documents_that_the_database_nearly_repeats_are_dropped(prepared, texts):
    """An edited copy under another id stays in the database; its original is no longer held out."""
    base = prepared / "prepare"
    held_out = {d["id"] for d in ChunkTable(base / "chunks" / "heldout").documents}
    database = {d["id"] for d in ChunkTable(base / "chunks" / "database").documents}
    dropped = json.loads((base / "corpus" / "near_duplicates.json").read_text())
    edited = {n: other for n, other in dropped.items() if other == f"edited {n}"}
    assert edited
    assert set(edited.values()) <= database
    assert held_out
    assert not held_out & edited.keys()


def test_a_held_out_corpus_can_be_added_and_uses_the_same_index(prepared, experiment, tmp_path):
    shutil.copytree(prepared, tmp_path / "w")
    write_lines(tmp_path / "more.jsonl", {"x": "kara lopo minel tenis surra " * 40})
    corpus = dataclasses.replace(
        experiment.corpus,
        heldout_sources=(*experiment.corpus.heldout_sources, f"more=jsonl:{tmp_path}/more.jsonl"),
    )
    before = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "w" / "prepare").rglob("*") if p.is_file()
    }
    more = dataclasses.replace(experiment, corpus=corpus)
    prepare.prepare(WorkDir(tmp_path / "w", more))
    changed = {
        p.relative_to(tmp_path / "w" / "prepare").as_posix()
        for p, time in before.items()
        if p.stat().st_mtime_ns != time
    }
    assert changed == {"shards/dataset_info.json", "shards/features.json"}
    record = Records(tmp_path / "w" / "prepare" / "shards" / "more")[0]
    assert (record["neighbour_ids"][0] >= 0).all()
    assert all(n for n, _ in verify.verify(WorkDir(tmp_path / "w", more), share=0.3).values())


def test_a_changed_setting_makes_again_what_depends_on_it_if_asked_to(
    experiment, prepared, tmp_path, capfd
):
    shutil.copytree(prepared, tmp_path / "w")
    retrieval = dataclasses.replace(experiment.retrieval, neighbours=3)
    other = dataclasses.replace(experiment, retrieval=retrieval)
    with pytest.raises(UserError, match=r"retrieval\.neighbours was 2.*--rebuild"):
        prepare.prepare(WorkDir(tmp_path / "w", other))
    steps_made = {p: p.read_bytes() for p in (tmp_path / "w" / "prepare").rglob("manifest.json")}
    (tmp_path / "w" / "train").mkdir()
    prepare.prepare(WorkDir(tmp_path / "w", other), rebuild=True)
    said = capfd.readouterr().err
    assert f"made from what was there before: {tmp_path}/w/train; delete" in said
    changed = {
        p.parent.relative_to(tmp_path / "w" / "prepare").parts[0]
        for p, data in steps_made.items()
        if p.read_bytes() != data
    }
    assert changed == {"index", "neighbours", "shards"}
    record = Records(tmp_path / "w" / "prepare" / "shards" / "train")[0]
    assert record["neighbours"].shape[1] == 3


def test_a_rebuild_for_which_files_are_missing_deletes_nothing(experiment, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "w")

    def files():
        return sorted(p for p in (tmp_path / "w").rglob("*"))

    before = files()
    bert = {"embedder": "bert", "settings": {"bert": {"directory": str(tmp_path)}}}
    for fields in (
        {"corpus": {"source": f"text:{tmp_path}/*.nothing"}},
        {"corpus": {"tokenizer": f"{tmp_path}/tokenizer.json"}},
        {"retrieval": {"source": f"text:{tmp_path}/*.nothing"}},
    ):
        with pytest.raises(UserError, match=str(tmp_path)):
            prepare.prepare(WorkDir(tmp_path / "w", altered(experiment, **fields)), True)
    changed = dataclasses.replace(experiment.retrieval, **bert)
    other = dataclasses.replace(experiment, retrieval=changed)
    with pytest.raises(UserError, match=str(tmp_path)):
        prepare.prepare(WorkDir(tmp_path / "w", other), True)
    assert files() == before


def test_every_later_stage_works_on_them(prepared, experiment, tmp_path, capfd):
    shutil.copytree(prepared, tmp_path / "w")
    run_all(WorkDir(tmp_path / "w", experiment))
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert summary["violations"] == 0
    assert summary["heldout_sources"]["other"]["documents"] == 3
    assert "other: bits per byte" in capfd.readouterr().out


def test_exact_copies_in_the_training_corpus_are_no_neighbours_and_can_be_dropped(texts, tmp_path):
    documents = {n: texts[n] for n in list(texts)[:40]}
    first = next(n for n in documents if not collect.is_heldout(n, 0.2))
    # Enough copies to fill every first fetch of candidates.
    copies = {f"copy {i}": documents[first] for i in range(40)}
    copies = {n: t for n, t in copies.items() if not collect.is_heldout(n, 0.2)}
    write_lines(tmp_path / "all.jsonl", documents | copies)
    base = small_experiment(tmp_path)
    corpus = dataclasses.replace(base.corpus, source=f"jsonl:{tmp_path}/all.jsonl")
    kept = prepare.prepare(WorkDir(tmp_path / "kept", dataclasses.replace(base, corpus=corpus)))
    assert kept["corpus"]["counts"]["exact_duplicates_in_train"] == len(copies) > 20
    table = ChunkTable(tmp_path / "kept" / "prepare" / "chunks" / "train")
    same = {i for i, d in enumerate(table.documents) if d["id"] in copies or d["id"] == first}
    for record in Records(tmp_path / "kept" / "prepare" / "shards" / "train"):
        if same & set(record["documents"].tolist()):
            ids = record["neighbour_ids"]
            assert not same & set(table.document[ids[ids >= 0]].tolist())
            assert (ids[record["documents"] >= 0] >= 0).all()  # others were found in their place
    dropped = dataclasses.replace(corpus, exact_duplicates="drop")
    less = prepare.prepare(WorkDir(tmp_path / "dropped", dataclasses.replace(base, corpus=dropped)))
    assert less["corpus"]["counts"]["train_documents"] == (
        kept["corpus"]["counts"]["train_documents"] - len(copies)
    )
    ids = {
        d["id"] for d in ChunkTable(tmp_path / "dropped" / "prepare" / "chunks" / "train").documents
    }
    assert first in ids
    assert not ids & copies.keys()


@pytest.mark.parametrize(
    ("value", "reason"),
    [("peps", "NAME=SOURCE"), ("Train=text:x", "NAME=SOURCE"), ("train=text:x", "differ"),
     ("../x=text:x", "NAME=SOURCE")],
)  # fmt: skip
def test_names_of_held_out_corpora_are_checked(value, reason):
    base = small_experiment("x")
    with pytest.raises(UserError, match=rf"corpus\.heldout_sources = .*{reason}"):
        dataclasses.replace(base, corpus=dataclasses.replace(base.corpus, heldout_sources=(value,)))


def test_where_something_is_trained_something_is_held_out():
    with pytest.raises(
        UserError, match=r"corpus\.heldout = 0\.0: must be more than 0 where something is trained"
    ):
        altered(small_experiment("x"), corpus={"heldout": 0.0})
