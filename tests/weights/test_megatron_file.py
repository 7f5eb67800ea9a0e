"""One of Megatron's files: hostile ones run nothing, damaged ones are one line, tensors stay mapped."""

import argparse
import io
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from retro_jax.errors import UserError
from retro_jax.weights import megatron_file

torch = pytest.importorskip("torch")  # writes the files, and reads them


def refused(path, match: str):
    """In one line that begins with the file's name, and leaves torch as it was."""
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(UserError, match=match) as caught:
        megatron_file.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 900 + len(str(path))
    assert set(torch.serialization.get_safe_globals()) == before


def write(path, data: bytes):
    """A file of torch's with this pickle, and a storage "0" of 16 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", bytes(16))
        archive.writestr("x/byteorder", b"little")
        archive.writestr("x/version", b"3\n")


# What would run something, if the module pickle read it.


class Reducing:
    """An object whose pickle is a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Setting:
    """An object whose state runs a command."""

    def __init__(self, command):
        self.command = command

    def __setstate__(self, state):
        os.system(state["command"])


class Making:
    """An object that cannot be made without running a command."""

    def __new__(cls, command):
        os.system(command)
        return super().__new__(cls)

    def __getnewargs__(self):
        return (self.command,)


def attacks(canary: str) -> dict[str, tuple[object, str]]:
    """Objects that make the file `canary` when they are read, and what a refusal names of them.

    In names torch keeps Python 2's modules, as protocol 2 has them.
    """
    code, system = f"open({canary!r}, 'w').close()", Reducing(os.system, f"touch {canary}")
    making = object.__new__(Making)
    making.command = f"touch {canary}"
    found = Reducing(getattr, Reducing(__import__, "os"), "system")
    late = types.SimpleNamespace()
    late.f = Setting(f"touch {canary}")
    return {
        "os.system": (system, "posix.system"),
        "eval": (Reducing(eval, code), "builtins.eval"),
        "exec": (Reducing(exec, code), "builtins.exec"),
        "check_call": (Reducing(subprocess.check_call, ["touch", canary]), "commands.check_call"),
        "loads": (Reducing(pickle.loads, pickle.dumps(system)), "pickle.loads"),
        "setstate": (Setting(f"touch {canary}"), "Setting"),
        "new": (making, "Making"),
        "getattr": ([found, system], "builtins.__import__, builtins.getattr, posix.system"),
        "in the args": ({"args": argparse.Namespace(a=system)}, "posix.system"),
        "in the state of one on the list": ({"args": late}, "Setting"),
        "as a key": ({"model": {system: 1}}, "posix.system"),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", attacks(""))
def test_what_pickle_would_run_is_not(tmp_path, kind, protocol):
    canary, path = tmp_path / "canary", tmp_path / "x.pt"
    attack, named = attacks(str(canary))[kind]
    data = pickle.dumps(attack, protocol)
    write(path, data)
    # Of the other protocols torch knows not every opcode, and reads none of them.
    refused(
        path, f"it names .*{named}.*nothing of it was run" if protocol == 2 else "its pickle is"
    )
    assert not canary.exists()
    pickle.loads(data)  # it is one
    assert canary.exists()


@pytest.mark.parametrize("module", ["posix", "os", "sys"])
def test_a_global_that_is_not_on_the_list_is_not_imported(tmp_path, monkeypatch, module):
    canary = tmp_path / "canary"
    (tmp_path / "never_imported.py").write_text(f"open({str(canary)!r}, 'w').close()\ndef f(): 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = f"\x80\x02(cnever_imported\nf\nc{module}\na\x1b[2J\nt.".encode("latin1")
    write(tmp_path / "x.pt", data)
    refused(tmp_path / "x.pt", rf"names never_imported.f, {module}\.a\\x1b\[2J, which")
    assert not canary.exists()
    with pytest.raises(AttributeError):
        pickle.loads(data)
    assert canary.exists()
    sys.modules.pop("never_imported")


@pytest.mark.parametrize("identity", [
    ("module", "os", "system"), ("storage", "os", "0", "cpu", 4), ("storage",), (), 3, "storage",
])  # fmt: skip
def test_persistent_ids_of_another_kind_are_refused(tmp_path, identity):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return identity if isinstance(value, Reducing) else None

    file = io.BytesIO()
    Pickler(file, 2).dump({"model": Reducing(os.system, "true")})
    write(tmp_path / "x.pt", file.getvalue())
    refused(tmp_path / "x.pt", "not a file of torch.save that can be read")


def test_a_state_does_not_change_what_is_on_the_list(tmp_path):
    name, state = b"cmegatron.core.transformer.enums\nAttnBackend\n", b"}"
    for key in (b"__class__", b"args", b"x"):
        state += b"X" + len(key).to_bytes(4, "little") + key + b"K\0s"
    write(tmp_path / "x.pt", b"\x80\x02" + name + b"K\1\x85R" + state + b"b.")
    found = megatron_file.load(tmp_path / "x.pt")
    assert isinstance(found, megatron_file.StandIn)
    assert repr(found) == "megatron.core.transformer.enums.AttnBackend(1)"
    assert not hasattr(found, "x")


# What Megatron writes.


def test_what_megatron_writes_besides_plain_data_is_shown_by_its_name(tmp_path):
    numpy = re.escape(np.random.RandomState(0).get_state()[1].__reduce__()[0].__module__)
    for value, shown in (
        (io.BytesIO(b"scales"), r"_io\.BytesIO\(\)"),
        (np.arange(3), rf"{numpy}\._reconstruct\(\.\.\., \.\.\., \.\.\.\)"),
        (np.float32(2), rf"{numpy}\.scalar\(\.\.\., .*\)"),
        # Python 3.13 has another module for it, and pickles the path as one text.
        (
            pathlib.PosixPath("/a/b"),
            r"pathlib\.PosixPath\('/', 'a', 'b'\)|pathlib\._local\.PosixPath\('/a/b'\)",
        ),
        (signal.SIGTERM, r"signal\.Signals\(15\)"),
        (types.SimpleNamespace(a=1), r"types\.SimpleNamespace\(\)"),
        (torch.bfloat16, r"torch\.bfloat16"),
        (torch.device("cuda", 0), "cuda:0|device.*"),
        (torch.ones(2).untyped_storage(), "TypedStorage"),
        (1 + 2j, r"\(1\+2j\)"),
        (b"x" * 200, "b'x{100}'"),
        (bytearray(b"xy"), r"bytearray\(b'xy'\)"),
    ):
        torch.save(argparse.Namespace(value=value), tmp_path / "x.pt")
        args = megatron_file.load(tmp_path / "x.pt")
        assert re.fullmatch(shown, megatron_file.plain(args, "x")["value"])


def test_every_dtype_that_is_read_comes_back_as_a_mapped_array(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        whole = base.to(getattr(torch, dtype))
        views = [whole, whole.T, whole[1, ::2], whole[1, 2], torch.nn.Parameter(whole)]
        torch.save(views, tmp_path / "x.pt")
        for view, read in zip(views, megatron_file.load(tmp_path / "x.pt")):
            array = megatron_file.array(read)
            expected = view.detach().double().numpy().astype(array.dtype)
            np.testing.assert_array_equal(array, expected, strict=True)
            assert array.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
            assert array.ctypes.data == read.data_ptr()
            assert not array.flags.writeable
        del view, read, array


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype", "ignore:TypedStorage")
def test_a_nested_tensor_is_no_array(tmp_path):
    torch.save(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), tmp_path / "x.pt")
    nested = megatron_file.load(tmp_path / "x.pt")
    assert megatron_file.kind(nested) == "Tensor"
    with pytest.raises(ValueError, match="nested"):
        megatron_file.array(nested)


def anonymous_and_mapped() -> np.ndarray:
    """Bytes of this process's memory that are its own, and those that show a file."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = [re.search(rf"{row}:\s+(\d+)", status)[1] for row in ("RssAnon", "RssFile")]
    return np.array(found, int) * 1024


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_is_read_and_not_the_file(tmp_path, dtype):
    with torch.serialization.skip_data():  # leaves holes
        torch.save([torch.empty(50 * 2**18, dtype=dtype) for _ in range(4)], tmp_path / "x.pt")
    megatron_file.load(tmp_path / "x.pt")  # torch's own memory of a first time
    before, size = anonymous_and_mapped(), 50 * 2**18 * dtype.itemsize
    arrays = [megatron_file.array(tensor) for tensor in megatron_file.load(tmp_path / "x.pt")]
    assert (anonymous_and_mapped() - before).max() < 5 * 2**20
    assert arrays[2].view(np.uint8).max() == 0
    anonymous, mapped = anonymous_and_mapped() - before
    assert anonymous < 5 * 2**20
    assert 0.8 * size < mapped < 1.4 * size


# Other files.


def test_damaged_and_other_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "x.pt"
    refused(path, "FileNotFoundError")
    refused(tmp_path, "IsADirectoryError")
    state = {"a": torch.ones(1000), "b": torch.ones(1000)}
    torch.save(state, path)
    whole = path.read_bytes()
    for data in (b"", b"PK\3\4", b"not a checkpoint", whole[:-1], whole[:3000], whole[3000:]):
        path.write_bytes(data)
        refused(path, "not a file of torch.save that can be read .*copy it again")
    torch.save(state, path, _use_new_zipfile_serialization=False)
    refused(path, "BadZipFile.*write it anew with torch.save of torch 1.6 or later")
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    refused(path, "it is compressed")
    for lost in ("data.pkl", "data/1"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                if not name.endswith(lost):
                    archive.writestr(name, part)
        refused(path, "RuntimeError: PytorchStreamReader")
    for data in (b"", b"\x80\x02", b"\x80\x02}", b"\x80\x02h\0.", b"\x80\x02\xff."):
        write(path, data)
        refused(path, "not a file of torch.save that can be read")


def test_a_storage_that_is_smaller_than_its_tensor_is_refused(tmp_path):
    torch.save(torch.arange(4.0), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        data = archive.read("x/data.pkl")
    assert data.count(b"K\4\x85") == 1
    for size in (b"K\5\x85", b"M\0\xff\x85"):
        write(tmp_path / "x.pt", data.replace(b"K\4\x85", size))
        refused(tmp_path / "x.pt", "RuntimeError: .*storage")


def test_without_torch_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'retro_jax\[megatron\]'"):
        megatron_file.load(tmp_path / "x.pt")
