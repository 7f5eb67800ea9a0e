"""Databases that change: what is added is found, what is deleted is not, and a kill changes nothing."""

import json
import shutil
import threading

import live
import nfs
import numpy as np
import pytest
from live import M, chunk_of, documents_of, found, prose

from retro_jax.cli import main as cli
from retro_jax.config import to_config_dict
from retro_jax.corpus.document import BadDocument, Document
from retro_jax.corpus.tokenizer import BOS, PAD
from retro_jax.errors import UserError
from retro_jax.store import files


@pytest.fixture(scope="module", params=live.KINDS)
def made(request, tmp_path_factory):
    return live.made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def work(made, tmp_path):
    return live.Work(made, tmp_path)


@pytest.mark.parametrize("name", ["prepared", "notes"])
def test_what_is_added_is_the_nearest_of_its_own_text_however_short(work, name):
    documents = [Document("long", "zebra " + prose(1000)), Document("note", "kara zebra quagga")]
    counts = work.databases.add(name, documents)
    assert (counts["documents"], counts["replaced"], counts["skipped"]) == (2, 0, {})
    for reader in work.readers:
        for document in documents:
            near = found(reader, document.text, name)
            assert (near[0], len(near)) == (document.id, 2)
        tokens = reader.retrieve(chunk_of(reader, "kara zebra quagga"), databases=[name]).tokens[
            0, 0
        ]
        assert work.databases.prepared.tokenizer.decode(tokens.tolist()) == "kara zebra quagga"
        assert (tokens[M:] == PAD).all()


def test_the_continuation_of_what_is_added_is_of_its_document(work):
    text = "zebra " + prose(1000)
    work.databases.add("notes", [Document("a", text), Document("b", "other " + prose(1))])

    def retrieve(chunk):
        return work.retriever.retrieve(chunk, k=1, databases=["notes"])

    ids = [BOS, *work.databases.prepared.tokenizer.encode(text)]
    assert retrieve(np.array([ids[:M]])).tokens[0, 0].tolist() == ids[: 2 * M]
    source = work.retriever.source_of(retrieve(np.array([ids[M : 2 * M]])).ids[0, 0])
    assert (source["document"], source["chunk"], source["offset"]) == ("a", 1, M - 1)
    assert source["database"] == "notes"


def test_replacing_returns_only_the_new_text(work):
    id = work.table.documents[0]["id"]
    for text in ("zebra quagga " + prose(1000), "tapir " + prose(2000)):
        before = work.counts("prepared")["documents"]
        counts = work.databases.add("prepared", [Document(id, text), Document("x", prose(7))])
        assert counts["replaced"] == (1 if text.startswith("zebra") else 2)
        after = work.counts("prepared")["documents"]
        assert after - before == (1 if text.startswith("zebra") else 0)
    for reader in work.readers:
        query = [chunk_of(reader, text) for text in ("tapir", "zebra quagga")]
        near = reader.retrieve(np.concatenate(query), k=10**4)
        own = np.array(
            [
                [reader.source_of(i)["document"] == id if i >= 0 else False for i in row]
                for row in near.ids
            ]
        )
        texts = [
            work.databases.prepared.tokenizer.decode(c) for c in near.tokens[own][:, :M].tolist()
        ]
        assert any("tapir" in text for text in texts)
        assert not any("quagga" in text for text in texts)


def test_what_is_deleted_is_never_returned_and_others_take_its_place(work):
    work.databases.add("prepared", [Document("new", "zebra " + prose(1000))])
    opened = work.readers
    full = work.retriever.retrieve(work.queries, k=10**4)
    names = documents_of(work.retriever, full)
    gone = {"new", *(name for row in names for name in row[:2])}
    another = work.reopened().databases  # as of another process
    assert another.delete("prepared", gone) == {"documents": len(gone)}
    for reader in (*opened, work.reopened()):
        near = reader.retrieve(work.queries, k=3)
        assert not gone & {name for row in documents_of(reader, near) for name in row}
        for row, of in enumerate(names):
            left = [d for name, d in zip(of, full.distances[row]) if name not in gone][:3]
            assert near.distances[row].tolist() == left
    assert documents_of(work.retriever, full) == names  # what was handed out is still known
    before = work.counts("prepared")
    assert (before["deleted"], before["segments"]) == (len(gone) - 1, 0)
    left = next(d["id"] for d in work.table.documents if d["id"] not in gone)
    with pytest.raises(UserError, match=r"no document 'new'.*nothing was deleted"):
        work.databases.delete("prepared", [left, "new"])
    assert work.counts("prepared") == before


def test_a_database_of_which_everything_is_deleted_returns_nothing(work):
    work.databases.add("notes", [Document("a", "kara lopo")])
    work.databases.delete("notes", ["a"])
    for reader in work.readers:
        near = reader.retrieve(work.queries, databases=["notes"])
        assert (near.ids == -1).all()
        assert np.isposinf(near.distances).all()
        assert (near.tokens == PAD).all()
    work.databases.add("notes", [Document("b", "kara lopo")])
    assert found(work.retriever, "kara lopo", "notes") == ["b"]
    segments = [p.name for p in (work.root / "databases" / "notes").iterdir() if p.is_dir()]
    assert segments == ["000002"]


@pytest.mark.parametrize("on_nfs", [False, True])
def test_many_small_changes_leave_few_segments_and_the_same_documents(work, monkeypatch, on_nfs):
    if on_nfs:  # where readers have segments open that others take over
        nfs.behaves(monkeypatch)
    for i in range(20):
        work.databases.add(
            "notes", [Document(f"n{i}", f"zebra{i} {prose(i, 6)}", {"date": str(i)})]
        )
    work.databases.delete("notes", ["n3", "n19"])
    work.databases.add("notes", [Document("n5", "kara okapi")])
    counts = work.counts("notes")
    assert counts["documents"] == 18
    assert counts["segments"] <= 5
    for reader in work.readers:
        chunk = chunk_of(reader, " ".join(live.WORDS))
        near = reader.retrieve(
            np.concatenate([chunk, chunk_of(reader, "kara")]), k=100, databases=["notes"]
        )
        names = {name for row in documents_of(reader, near) for name in row}
        assert names == {f"n{i}" for i in range(20)} - {"n3", "n19"}
        assert found(reader, "kara okapi", "notes")[0] == "n5"
        dates = {s["document"]: s["metadata"].get("date")
                 for s in (reader.source_of(i) for i in near.ids[near.ids >= 0])}  # fmt: skip
        assert dates == {n: None if n == "n5" else n[1:] for n in names}


class KilledError(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("when", ["documents", "index", "rename", "state"])
def test_a_killed_add_leaves_what_was_there_and_the_next_one_works(work, when, monkeypatch):
    work.databases.add("notes", [Document("a", "kara lopo minel")])
    directory = work.root / "databases" / "notes"
    state = (directory / "state.json").read_bytes()
    write = files.write_json

    def kill(*arguments):
        raise KilledError

    def documents():
        yield Document("a", "zebra okapi")
        if when == "documents":
            kill()

    def kill_state(path, value):
        return kill() if path.name == "state.json" else write(path, value)

    with monkeypatch.context() as patch:
        if when == "index":
            patch.setattr("retro_jax.retrieval.division.build", kill)
        elif when == "rename":
            patch.setattr("retro_jax.store.artefact.files.replace", kill)
        elif when == "state":
            patch.setattr(files, "write_json", kill_state)
        with pytest.raises(KilledError):
            work.databases.add("notes", documents())
    assert len(list(directory.iterdir())) == 3  # the state, its segment, and what was left behind
    assert (directory / "state.json").read_bytes() == state
    for reader in work.readers:
        assert found(reader, "kara lopo minel", "notes") == ["a"]
    (directory / ".000009.partial").mkdir()
    work.databases.add("notes", [Document("b", "okapi tapir")])
    assert not [p for p in directory.iterdir() if "partial" in p.name]
    for reader in work.readers:
        assert found(reader, "okapi tapir", "notes")[0] == "b"
        assert found(reader, "kara lopo minel", "notes")[0] == "a"


def test_readers_go_on_while_others_change(work):
    work.databases.add("notes", [Document("fixed", "kara lopo minel"), Document("n", "x")])
    stop, failed = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                near = found(work.retriever, "kara lopo minel", "notes")
            except Exception as error:
                near = [error]
            if near[0] != "fixed":
                failed.append(near)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    another = work.reopened().databases
    for i in range(12):
        another.add("notes", [Document("n", f"zebra {i}"), Document(f"n{i}", f"okapi {i}")])
        another.delete("notes", [f"n{i}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([Document("a", "x y"), Document("a", "z")], "a: an earlier document has this id"),
        (
            [BadDocument("a", "empty", "the document is empty")],
            "a: the document is empty; mend or remove",
        ),
        ([], "nothing to add"),
    ],
)
def test_what_cannot_be_added_changes_nothing(work, documents, message):
    with pytest.raises(UserError, match=message):
        work.databases.add("notes", documents)
    assert work.databases.names() == ["prepared"]
    assert not list((work.root / "databases").glob("*/*"))


def test_segments_of_another_prepare_are_refused(work):
    work.databases.add("notes", [Document("a", "kara lopo")])
    step = "statistics" if work.e.retrieval.embedder == "words" else "embedder"
    manifest = work.base / step / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(UserError, match=rf"notes was made with another `prepare`.*{step}"):
        work.databases.add("notes", [Document("b", "x")])
    with pytest.raises(UserError, match=rf"notes was made with another `prepare`.*{step}"):
        work.reopened().retrieve(work.queries, databases=["notes"])


@pytest.fixture
def retro(work, tmp_path, capfd):
    """`retro database`: arguments to (exit status, stdout, stderr)."""
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({to_config_dict(work.e).to_dict()!r})\n"
    )

    def run(*arguments):
        status = cli.main(["database", f"--config={config}", f"--workdir={work.root}", *arguments])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("zebra quagga")
    (tmp_path / "notes" / "two.txt").write_text("kara lopo " + prose(5))
    return tmp_path / "notes"


def test_the_command_adds_replaces_deletes_and_lists(work, retro, notes):
    status, _, log = retro("--database=notes", f"--add=text:{notes}/*.txt")
    assert status == 0, log
    assert "notes: 2 documents added in" in log
    assert found(work.retriever, "zebra quagga", "notes")[0] == "one.txt"
    (notes / "one.txt").write_text("okapi")
    assert retro("--database=notes", "--list")[1].split() == ["one.txt", "two.txt"]
    log = retro("--database=notes", f"--add=text:{notes}/one.txt")[2]
    assert "notes: 1 document added in 1 chunk, 1 of them in place of older ones" in log
    assert retro("--database=notes", "--delete=two.txt")[2] == "notes: 1 document deleted\n"
    assert retro("--database=notes", "--list")[1].split() == ["one.txt"]
    held = work.databases.prepared.table("heldout").documents[0]
    (notes / "held.jsonl").write_text(json.dumps({"id": held["id"], "text": "okapi"}))
    log = retro("--database=notes", f"--add=jsonl:{notes}/held.jsonl")[2]
    assert "notes: 1 document of these held out for evaluation" in log
    assert "held out" not in retro("--database=notes", f"--add=text:{notes}/one.txt")[2]
    assert retro("--database=notes", f"--delete={held['id']}")[0] == 0
    id = work.table.documents[0]["id"]
    assert retro(f"--delete={id}")[0] == 0
    status, out, _ = retro()
    assert status == 0
    assert "prepared" in out
    assert "notes" in out
    assert "prepared" not in retro("--database=notes")[1]
    assert found(work.retriever, "okapi zebra quagga", "notes") in (["one.txt"], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--database=other"], "no database 'other': there are prepared; `retro database"),
        (["--database=", "--add=text:NOTES/one.txt"], "database '': a name is"),
        (["--database=", "--delete=a"], "no database ''"),
        (["--database="], "no database ''"),
        (["--database=a/b", "--add=text:NOTES/one.txt"], "database 'a/b': a name is"),
        (["--delete=nothing,x"], "database 'prepared' has no document 'nothing', 'x'; nothing was"),
        (["--add=text:NOTES/*.none"], "no file matches"),
        (["--add=glob:x"], "--add = 'glob:x': must be python:"),
        (["--add=text:NOTES/*"], "bad.bin: the document is binary"),
        (["--delete=,"], "--delete=,: names no document"),
        (["--delete=a", "--add=text:NOTES/*.txt"], "give one at a time"),
    ],
)
def test_what_the_command_refuses(work, retro, notes, arguments, message):
    (notes / "bad.bin").write_bytes(b"a\0")
    status, _, error = retro(*(a.replace("NOTES", str(notes)) for a in arguments))
    assert status == 2
    assert message in error.splitlines()[-1]
    assert not list((work.root / "databases").glob("*/*"))


def test_the_command_needs_what_prepare_makes(work, retro):
    shutil.rmtree(work.base / "index")
    status, _, error = retro()
    assert (status, error.count("\n")) == (2, 1)
    assert "`retro prepare`" in error
