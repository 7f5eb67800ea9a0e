"""`retro verify` and `retro describe`, on a finished working directory and on spoilt copies of it."""

import shutil

import numpy as np
import pytest
from conftest import tables

from retro_jax.cli import describe
from retro_jax.cli import main as cli
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.errors import UserError
from retro_jax.pipeline import prepare, verify
from retro_jax.pipeline.recipe import recipe
from retro_jax.store import records
from retro_jax.store.columns import Columns
from retro_jax.store.workdir import WorkDir

STEPS = [
    "corpus",
    *(f"{step}/{split}" for step in ("chunks", "embeddings") for split in ("train", "heldout")),
    "index",
    *(f"{step}/{split}" for step in ("neighbours", "shards") for split in ("train", "heldout")),
]


def test_what_prepare_made_is_the_same_when_it_is_made_again(finished, small):
    compared = verify.verify(WorkDir(finished, small), share=1.0)
    table = tables(finished)
    assert sorted(compared) == sorted(STEPS)
    for split in ("train", "heldout"):
        assert compared[f"chunks/{split}"] == (len(table[split].documents), "documents")
    assert all(n for n, _ in compared.values())


def every(count):
    return set(range(count))


def spoil_json(path):
    text = path.read_bytes()
    at = text.index(b"kara")
    path.write_bytes(text[:at] + b"lopo" + text[at + 4 :])


def spoil_dropped(path):
    np.save(path, np.append(np.load(path), 10**6))


def spoil_last_bytes(path):
    data = bytearray(path.read_bytes())
    data[-8:] = bytes(8) if any(data[-8:]) else b"\1" * 8
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("step", "file", "spoil"),
    [
        ("corpus", "corpus/train.jsonl", spoil_json),
        ("corpus", "corpus/heldout_dropped.npy", spoil_dropped),
        ("chunks", "chunks/train/document.bin", spoil_last_bytes),
        ("chunks", "chunks/train/continuation.bin", spoil_last_bytes),
        ("chunks", "chunks/heldout/texts.bin", spoil_last_bytes),
        ("embeddings", "embeddings/heldout/vectors.bin", spoil_last_bytes),
        ("index", "index/00000/vectors.npy", spoil_last_bytes),
        ("neighbours", "neighbours/train/distances.bin", spoil_last_bytes),
        ("shards", "shards/train/00000.tfrecord", spoil_last_bytes),
    ],
)
def test_what_was_changed_since_is_named(finished, small, tmp_path, step, file, spoil):
    """By its checksum; and, if that is not asked, by making the step again."""
    root = tmp_path / "spoilt"
    shutil.copytree(finished / "prepare", root / "prepare")
    spoil(root / "prepare" / file)
    name = file.rsplit("/", 1)[-1]
    with pytest.raises(UserError, match=rf"{step}/.*{name} h(as|olds) "):
        verify.verify(WorkDir(root, small), share=1.0)
    made = recipe(small, root / "prepare")
    name = next(n for n in made if file.startswith(f"{n}/"))
    if step == "shards":
        with pytest.raises(UserError, match=r"tfrecord: record .* damaged"):
            list(made[name].again(every))
    else:
        assert not all(same for _, same in made[name].again(every))


@pytest.mark.parametrize("name", records.INFO)
def test_what_tfds_reads_is_compared_too_and_made_again_where_it_is_missing(
    finished, small, tmp_path, name
):
    shutil.copytree(finished / "prepare", tmp_path / "w" / "prepare")
    file = tmp_path / "w" / "prepare" / "shards" / name
    before = file.read_bytes()
    file.write_bytes(before.replace(b"retro", b"other").replace(b"neighbours", b"neighbourz"))
    assert file.read_bytes() != before
    with pytest.raises(UserError, match=f"{name} is not what the shards give; delete it"):
        verify.verify(WorkDir(tmp_path / "w", small))
    file.unlink()
    prepare.prepare(WorkDir(tmp_path / "w", small))
    assert file.read_bytes() == before


def test_shards_are_shown_with_texts_and_their_neighbours(finished, capsys):
    describe.describe(finished / "prepare" / "shards" / "train", 2)
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("tokens", "neighbour_ids", "distances", "record 1", "record 0"):
        assert name in shown
    table, base = tables(finished)["train"], finished / "prepare"
    word = open_tokenizer(base / "tokenizer").decode(table.tokens[0].tolist()).split()[0]
    assert word in shown
    near = np.asarray(Columns(base / "neighbours" / "train")["ids"][0])
    entry = table.documents[int(table.document[near[0]])]
    assert f"chunk {int(near[0]) - entry['first']}" in shown


def test_a_working_directory_is_described_by_its_manifests(finished, capsys, tmp_path):
    assert cli.main(["describe", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "corpus.heldout" in shown
    assert "chunks/heldout" in shown
    assert "near_duplicates_dropped" in shown
    assert cli.main(["describe", str(tmp_path)]) == 2
    assert "neither shards, nor a working directory, nor a model's" in capsys.readouterr().err
    assert cli.main(["describe"]) == 2
    assert "for example" in capsys.readouterr().err
