"""Hostile pickles: nothing of them is imported or called, and none takes long, or much memory."""

import os
import pickle
import resource
import subprocess
import sys
import time

import pytest
from pickles import called, name, number, program, refused, tensor, text, tuple_of, write

from retro_jax.interop import torch_file
from retro_jax.interop.inert_pickle import Opaque


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


class Reducing:
    """An object whose pickle is a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def dumped(canary: str) -> dict[str, bytes]:
    """What the module pickle writes of objects that make the file `canary` when they are loaded."""
    code, system = f"open({canary!r}, 'w').close()", Reducing(os.system, f"touch {canary}")
    values = {
        "os.system": system,
        "eval": Reducing(eval, code),
        "exec": Reducing(exec, code),
        "check_call": Reducing(subprocess.check_call, ["touch", canary]),
        "loads": Reducing(pickle.loads, pickle.dumps(system)),
        "inside": {"model": [(system,)]},
        "setstate": Setting(f"touch {canary}"),
    }
    return {
        f"{key} {protocol}": pickle.dumps(value, protocol)
        for key, value in values.items()
        for protocol in (0, 2, 4, 5)
    }


def handmade(canary: str) -> dict[str, bytes]:
    """The same by opcodes that the module pickle executes, though it would not write them."""
    touch = text(f"touch {canary}")
    argument, making = tuple_of(touch), name(__name__, "Making")
    getting = called("builtins", "getattr", name("os", "path"), text("os"))
    system = called("builtins", "getattr", getting, text("system"))
    dotted = b"\x80\x04" + text("os") + text("path.os.system") + b"\x93"
    return {
        "getattr": program(system, argument, b"R"),
        "dotted": dotted + argument + b"R.",
        "memo": program(name("os", "system"), b"q\1", b"0", b"h\1", argument, b"R"),
        "newobj": program(making, argument, b"\x81"),
        "newobj_ex": b"\x80\x04" + making + b")}" + text("command") + touch + b"s\x92.",
        "inst": b"(" + touch + b"ios\nsystem\n.",
        "obj": b"(" + name("os", "system") + touch + b"o.",
        "import": program(name("never_imported", "f")),
        "thrown away": program(called("os", "system", touch), b"0N"),
        "as a key": program(b"}", called("os", "system", touch), b"Ns"),
    }


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A path that is there once something was executed, or the module never_imported imported."""
    path, folder = tmp_path / "canary", tmp_path / "modules"
    folder.mkdir()
    (folder / "never_imported.py").write_text(f"open({str(path)!r}, 'w').close()\ndef f(): pass\n")
    monkeypatch.syspath_prepend(folder)
    yield path
    sys.modules.pop("never_imported", None)


@pytest.mark.parametrize("kind", sorted(dumped("") | handmade("")))
def test_what_pickle_would_execute_is_not(tmp_path, canary, kind):
    attack = (dumped(str(canary)) | handmade(str(canary)))[kind]
    path = write(tmp_path / "x.pt", attack)
    if kind in ("inst", "obj") or kind.endswith(" 0"):
        refused(path, "an opcode that torch does not write")
    else:
        torch_file.read(path)
    assert not canary.exists()
    assert "never_imported" not in sys.modules
    pickle.loads(attack)  # it is one
    assert canary.exists()


def read(tmp_path, *parts: bytes) -> object:
    return torch_file.read(write(tmp_path / "x.pt", program(*parts)))


@pytest.mark.parametrize(("module", "attribute"), [
    ("torch", "load"), ("torch.hub", "load"), ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("numpy", "load"), ("numpy", "memmap"), ("numpy.core.multiarray", "_reconstruct"),
    ("builtins", "open"), ("builtins", "getattr"), ("builtins", "__import__"), ("__main__", "x"),
    ("torch.storage", "_load_from_bytes"), ("collections", "OrderedDict.fromkeys"), ("", ""),
    ("retro_jax.interop.torch_file", "read"), ("retro_jax.interop.inert_pickle", "Opaque"),
    ("argparse", "Namespace"), ("argparse", "FileType"), ("io", "BytesIO"), ("_codecs", "encode"),
])  # fmt: skip
def test_an_unknown_global_is_its_name(tmp_path, module, attribute):
    function = name(module, attribute)
    made = read(tmp_path, function, tuple_of(text("a"), b"]"), b"R", b"}", text("x"), b"Nsb")
    assert type(made) is Opaque
    assert (made.function, made.args, made.state) == (
        f"{module}.{attribute}",
        ("a", []),
        {"x": None},
    )
    assert repr(made) == f"{module}.{attribute}('a', ...)"


def test_a_state_is_no_attribute(tmp_path):
    state = b"}" + b"".join(
        text(key) + b"]s" for key in ("__class__", "__dict__", "__repr__", "function", "__reduce__")
    )
    for made in (called("a", "b"), name("a", "b"), name("argparse", "Namespace") + b")\x81"):
        opaque = read(tmp_path, made, state, b"b")
        assert type(opaque) is Opaque
        assert isinstance(opaque.function, str)
        assert opaque.state["__class__"] == []
    ordered = read(tmp_path, called("collections", "OrderedDict"), state, b"b")
    assert type(ordered) is dict
    assert not ordered


def test_results_of_calls_that_are_called_are_records(tmp_path):
    chain = read(tmp_path, called("builtins", "getattr", name("os", "path"), text("os")), b")R)R")
    assert chain.function.function.args[1] == "os"
    assert repr(chain) == "(...)()"
    rebuilt = called(
        "torch._tensor", "_rebuild_from_type_v2",
        name("os", "system"), name("builtins", "object"), tuple_of(text("true")), b"}",
    )  # fmt: skip
    assert repr(read(tmp_path, rebuilt)) == "os.system('true')"
    items = read(tmp_path, called("collections", "deque"), b"(NNeNN", b"s")
    assert items.items == [None, None, (None, None)]


REFUSED = {
    "": "empty", "N0": "empty", "0": "pop from empty", "h\0": "BINGET", "a": "APPEND",
    "t": "TUPLE", "e": "APPENDS", "NNa": "added to a NoneType", "](NNu": "set in a list",
    "}(Nu": "1 keys and values", "}]Ns": "a key of a dictionary is a list",
    "})Ns": "a key of a dictionary is a tuple", "]Nb": "a list is given a state",
    "N)R": "a NoneType is called", "ca\nb\nNR": "called with a NoneType", "N)\x81": "is called",
    "NN\x93": "name of a global is no text", "ca\x1b[2J\nb\n": "name of a global is 'b' of",
    "2": "DUP", "N2": "DUP", "\x82\1": "EXT1", "\x83\1\0": "EXT2", "\x84\1\0\0\0": "EXT4",
    "P1\n": "PERSID", "I1\n": "INT", "L1L\n": "LONG", "F1\n": "FLOAT", "S'a'\n": "STRING",
    "Va\n": "UNICODE", "g0\n": "GET", "(l": "LIST", "(d": "DICT", "\x97": "NEXT_BUFFER",
    "\x96" + "\0" * 8: "BYTEARRAY8", "\xff": "opcode", "\x8b\2\0\0\0\1\1": "LONG4",
    "\x8b\xff\xff\xff\xff": "byte count < 0", "\x8b\xff\xff\xff\x7f": "not enough data",
    "X\xff\xff\xff\xff": "expected 4294967295", "\x8e" + "\xff" * 7 + "\x3f": "expected 46116",
    "\x8e" + "\xff" * 8: "expected|exceed|size", "\x8d" + "\xff" * 7 + "\x3f": "expected 46116",
    "X\3\0\0\0\xed\xb2\x80": "surrogates not allowed", "X\1\0\0\0\xff": "can't decode",
    "ctorch\nSize\n)R": "argument", "ctorch\nSize\n]\x85R": "sizes or strides are no tuple",
    "ctorch\nSize\n)R" + "0" * 3: "argument", "ctorch\nSize\nN\x85\x85R": "natural numbers",
    "ccollections\nOrderedDict\n]\x85R": "argument", "(((": "empty",
}  # fmt: skip


@pytest.mark.parametrize("opcodes", REFUSED)
def test_wrong_pickles_are_refused(tmp_path, opcodes):
    refused(write(tmp_path / "x.pt", program(opcodes.encode("latin1"))), REFUSED[opcodes])


def test_a_pickle_without_an_end_is_refused(tmp_path):
    refused(write(tmp_path / "x.pt", b"\x80\x02}"), "exhausted before seeing STOP")
    refused(write(tmp_path / "x.pt", b""), "exhausted before seeing STOP")


# Small files that would take long, much memory, or the C stack.

MANY, REBUILD = 400_000, name("torch._tensor", "_rebuild_from_type_v2")
BOMBS = {
    "a far memo": (b"Nr\xff\xff\xff\xff", ""),
    "a large frame": (b"\x95" + b"\xff" * 7 + b"\x3fN", ""),
    "deep tuples": (b")" + b"\x85" * MANY, ""),
    "deep lists": (b"]" * MANY + b"a" * (MANY - 1), ""),
    "deep calls": (name("a", "b") + b")R" * MANY, ""),
    "deep arguments": (b")" + b"q\0" + (name("a", "b") + b"h\0R\x85q\0") * (MANY // 5), ""),
    "deep key": (b"}" + b")" + b"\x85" * MANY + b"Ns", "a key of a dictionary is a tuple"),
    "deep member": (b"\x8f(" + b")" + b"\x85" * MANY + b"\x90", "a tuple"),
    "deep rebuilding": (REBUILD + (b"(" + REBUILD + b"N") * 9000 + b")" + b"Nt" * 9000 + b"R", ""),
    "laughs": (b"]q\0" + b"](h\0h\0eq\0" * 10_000, ""),
    "itself": (b"]q\0h\0a}q\1" + text("a") + b"h\1s\x86", ""),
    "a long name": (
        text("a" * 10**6) + b"q\0" + text("b") + b"\x93" + b"h\0h\0\x93" * MANY, "has 1000001",
    ),
    "one hash": (
        b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, MANY)) + b"u", "60 bits",
    ),
    "many arguments": (
        name("torch", "Size") + b"q\1(" + b"N" * MANY + b"tq\0" + b"h\1h\0R" * MANY, "arguments",
    ),
    "many sizes": (b"(" + b"K\1" * MANY + b"t\x85q\0" + b"ctorch\nSize\nh\0R", "at most 64"),
    "large sizes": (tensor(0, (2**2000,) * 64, (2**2000,) * 64), "leaves its storage"),
    "many opcodes": (b"N0" * 10**6, "more than 2000000 opcodes"),
    "many bytes": (text("a" * 2**23), "8388616 bytes, more than"),
    "many lists": (b"]" * 1_999_990, ""),
    "many names": (b"ca\nb\n" * 10**6, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_no_pickle_takes_long_or_much_memory(tmp_path, kind):
    opcodes, why = BOMBS[kind]
    path = write(tmp_path / "x.pt", program(opcodes))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if why:
        refused(path, why)
    else:
        torch_file.read(path)
    assert time.process_time() - start < 30  # 5 at most
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
