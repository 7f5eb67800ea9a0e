"""Files that are no archive of torch.save's, or an archive of lies."""

import pickle
import zipfile
from pathlib import Path

import pytest
from pickles import program, refused, tensor, write

from retro_jax.interop import torch_file


def archive_with(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def good(tmp_path):
    """A file with one tensor."""
    path = write(tmp_path / "good.pt", program(tensor(0, (2, 2), (2, 1))))
    assert torch_file.read(path).shape == (2, 2)
    return path


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_other_formats_are_refused(tmp_path):
    torch, path = pytest.importorskip("torch"), tmp_path / "x.pt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    refused(
        path, r"not torch's zip format; if torch before 1\.6 wrote it, torch\.save\(torch\.load"
    )
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    refused(path, r"is compressed, as torch\.save never does")


def test_what_is_no_archive_is_refused(tmp_path, good):
    refused(tmp_path / "none.pt", "cannot be opened")
    refused(tmp_path, "cannot be opened")
    refused(archive_with(b"", tmp_path / "x.pt"), "cannot be opened")
    tar = bytes(257) + b"ustar" + bytes(300)
    for data in (b"\x80\x02}q\0.", pickle.dumps({}), tar, b"PK"):
        refused(archive_with(data, tmp_path / "x.pt"), "not torch's zip format")
    whole = good.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        refused(archive_with(whole[:size], tmp_path / "x.pt"), "truncated; copy the file again")
    refused(archive_with(whole + b"\0", tmp_path / "x.pt"), "truncated")


def test_entries_are_stored_plainly_once_each(tmp_path):
    path, data = tmp_path / "x.pt", program(b"}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", data + bytes(10**6))
    refused(path, "'a/data.pkl' is compressed")
    write(path, data)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(10**6))
    refused(path, "'archive/data/9' is compressed")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", data)
    refused(path, "'a/data.pkl' is there twice")
    write(path, data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", data)
    refused(path, "2 entries are named data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data", data)
    refused(path, "0 entries are named data.pkl")
    refused(write(path, data, byteorder=b"big"), "byte order is b'big'")
    refused(write(path, data, byteorder=bytes(10**5)), "has 100000 bytes")


def fields_of(data: bytes) -> tuple[int, int]:
    """Where the directory's first entry is, and the end record."""
    return data.index(b"PK\1\2"), data.rindex(b"PK\5\6")


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (8, b"\1\0", "is encrypted"),
        (10, b"\x08\0", "is compressed"),
        (20, b"\1\0\0\0", "is compressed"),
        (20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f", "reaches into what comes after"),
        (20, b"\xff" * 8, "directory is damaged"),
        (24, b"\0\0\0\0", "is compressed"),
        (28, b"\xff\xff", "can't decode|damaged|another name"),
        (42, b"\xff\xff\xff\x7f", "directory is damaged"),
        (42, b"\1\0\0\0", "directory is damaged"),
        (46, b"\xff", "utf-8"),
        (46, b"b", "another name where it lies"),
    ],
)
def test_a_directory_of_lies_is_refused(good, tmp_path, at, value, why):
    data = bytearray(good.read_bytes())
    begin, _ = fields_of(data)
    data[begin + at : begin + at + len(value)] = value
    refused(archive_with(data, tmp_path / "x.pt"), why)


@pytest.mark.parametrize(("at", "value"), [
    (4, b"\1\0"), (8, b"\1\0"), (8, b"\xff" * 4), (8, b"\7\0\7\0"), (12, b"\xff\xff\xff\x7f"),
    (16, b"\0\0\0\0"), (16, b"\xff\xff\xff\x7f"), (16, b"\xff" * 4), (12, b"\0\0\0\0"),
])  # fmt: skip
def test_an_end_record_of_lies_is_refused(good, tmp_path, at, value):
    data = bytearray(good.read_bytes())
    _, end = fields_of(data)
    data[end + at : end + at + len(value)] = value
    refused(archive_with(data, tmp_path / "x.pt"), "directory")


def test_entries_that_overlap_are_refused(tmp_path):
    # Entry 2's record lies in entry 1, as in a bomb whose entries all show the same bytes.
    inner = tmp_path / "inner.zip"
    write(inner, program(b"}"))
    path = write(tmp_path / "x.pt", program(b"}"), {"0": inner.read_bytes()})
    assert torch_file.read(path) == {}
    data = bytearray(path.read_bytes())
    begin = data.rindex(b"PK\1\2", 0, data.rindex(b"archive/data.pkl", 0, -60))
    inside = data.index(b"PK\3\4", data.index(b"archive/data/0"))
    data[begin + 42 : begin + 46] = inside.to_bytes(4, "little")
    refused(archive_with(data, tmp_path / "y.pt"), "reaches into what comes after")
