"""A working directory on NFS, where what is open cannot be removed (see `nfs.py`)."""

import nfs
import numpy as np

from retro_jax.store import artefact, files


def test_what_is_still_read_is_made_anew_and_goes_when_it_is_closed(tmp_path, monkeypatch):
    nfs.behaves(monkeypatch)
    path = tmp_path / "work" / "x"

    def made(value: int):
        def make(out):
            (out / "deep").mkdir()
            np.save(out / "deep" / "a.npy", np.full(1000, value))
            return {}

        artefact.renew(path, {"value": value}, (), make)
        artefact.look(path, artefact.read(path))
        return np.load(path / "deep" / "a.npy", mmap_mode="r")

    first = made(1)
    second = made(2)
    assert (first[0], second[0]) == (1, 2)
    third = made(3)
    assert (first[0], second[0], third[0]) == (1, 2, 3)
    left = {p.name for p in path.parent.iterdir()}
    assert left == {"x", ".x.removed", ".1.x.removed"}
    del first, second
    made(4)
    assert {p.name for p in path.parent.iterdir()} == {"x", ".x.removed"}  # the third is open


def test_a_file_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    nfs.behaves(monkeypatch)
    path = tmp_path / "a.json"
    files.write_json(path, [1])
    with path.open() as reader:
        files.write_json(path, [2])
        assert reader.read() == "[\n  1\n]\n"
    assert files.read_json(path, "") == [2]
    assert len(list(tmp_path.glob(".nfs*"))) == 1  # of the simulation
