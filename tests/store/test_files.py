"""Files and directories get their names when they are on the disk, and not before."""

import os

import pytest

from retro_jax.store import files


@pytest.fixture
def events(monkeypatch):
    """What is forced to the disk and what is renamed, in order."""
    seen, fsync, replace = [], os.fsync, os.replace

    def forced(descriptor):
        seen.append(("force", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source, target):
        seen.append(("rename", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


def test_all_of_a_directory_is_forced_before_it_gets_its_name(tmp_path, events):
    made, path = tmp_path / "made", tmp_path / "named"
    (made / "deep").mkdir(parents=True)
    inside = [made, made / "deep", made / "a.bin", made / "deep" / "b.bin"]
    for file in inside[2:]:
        file.write_bytes(b"x")
    files.replace(made, path)
    at = events.index(("rename", str(path)))
    assert {where for what, where in events[:at]} == set(map(str, inside))
    assert events[at + 1 :] == [("force", str(tmp_path))]


def test_a_file_is_forced_before_and_its_folder_after(tmp_path, events):
    files.write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    names = [(what, os.path.basename(where)) for what, where in events]
    folder = ("force", tmp_path.name)
    assert names == [
        ("force", ".a.partial"), ("rename", "a"), folder, ("force", ".b.partial"), ("rename", "b"), folder,
    ]  # fmt: skip


def test_the_names_of_new_directories_are_forced(tmp_path, events):
    files.make_directory(tmp_path / "a" / "b" / "c")
    assert [where for _, where in events] == [
        str(tmp_path),
        *(str(tmp_path / p) for p in ("a", "a/b")),
    ]
    files.make_directory(tmp_path / "a" / "b" / "c")
    assert len(events) == 3
