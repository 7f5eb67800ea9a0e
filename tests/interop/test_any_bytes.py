"""Any bytes at all are read or refused: nothing else is raised, and nothing hangs."""

import random

import kinds
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pickles import called, name, number, program, storage, tensor, text, tuple_of, write

from retro_jax.errors import UserError
from retro_jax.interop import torch_file
from retro_jax.interop.inert_pickle import Opaque


def outcome(path, data: bytes) -> bool:
    """Whether a file was read; if it was, all that was read of it can be looked at."""
    path.write_bytes(data)
    try:
        todo = [torch_file.read(path)]
    except UserError:
        return False
    for value in todo:
        if isinstance(value, np.ndarray):
            value.tobytes()
        elif isinstance(value, Opaque):
            repr(value)
            todo += [value.args, value.state]
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
        if len(todo) > 10_000:
            break
    return True


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_files_are_read_or_refused(tmp_path):
    rng, whole = random.Random(0), kinds.FILE.read_bytes()
    pickled = whole.index(b"\x80\x02"), whole.index(b"PK\7\x08")
    spans = [(0, len(whole)), pickled, pickled, (whole.index(b"PK\1\2"), len(whole))]
    read = 0
    for _ in range(2000):
        data = bytearray(whole)
        begin, end = rng.choice(spans)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at, size = rng.randrange(begin, end), rng.choice((1, 1, 1, 4, 30))
            match rng.randrange(5):
                case 0:
                    data[at : at + size] = rng.randbytes(size)
                case 1 | 2:
                    data[at] ^= 1 << rng.randrange(8)
                case 3:  # keeps what comes after where it is
                    other = rng.randrange(begin, end - size)
                    data[at : at + size] = data[other : other + size]
                case 4:
                    del data[at : rng.choice((at + size, len(data)))]
            if len(data) < end:
                break
        read += outcome(tmp_path / "x.pt", bytes(data))
    assert 100 < read < 1900


PARTS = (
    *(b"N", b"\x88", b")", b"]", b"}", b"\x8f", b"(", b"t", b"e", b"u", b"a", b"s", b"\x90"),
    *(b"0", b"1", b"b", b"R", b"\x81", b"\x92", b"\x93", b"\x94", b"Q", b"\x85", b"\x86", b"\x91"),
    *(b"q\0", b"q\1", b"h\0", b"h\1", b"K\0", b"K\2", b"J" + b"\xff" * 4, b"G\x7f\xf8" + bytes(6)),
    *(text("storage"), text("0"), text(""), number(4), number(2**63), number(-(2**70))),
    *(storage(), tensor(0, (2,), (1,)), tuple_of(number(2), number(2)), called("a", "b")),
    *(name("torch", "FloatStorage"), name("torch", "float8_e5m2"), name("os", "system")),
    *(name("torch", "Size"), name("collections", "OrderedDict"), name("argparse", "Namespace")),
    *(name("torch._utils", f"_rebuild_{x}") for x in ("tensor_v2", "tensor_v3", "parameter")),
    name("torch._tensor", "_rebuild_from_type_v2"),
)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(opcodes=st.lists(st.sampled_from(PARTS), max_size=25))
def test_any_pickle_is_read_or_refused(tmp_path_factory, opcodes):
    path = tmp_path_factory.getbasetemp() / "any.pt"
    outcome(path, write(path, program(*opcodes)).read_bytes())


@settings(max_examples=700, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_arguments_of_the_known_functions_are_read_or_refused(tmp_path_factory, data):
    function = data.draw(st.sampled_from([part for part in PARTS if part[:1] == b"c"]))
    # Of _rebuild_tensor_v3, as they should be, which the others' are much like.
    right = [storage(), number(0), tuple_of(number(2)), tuple_of(number(1)), b"\x89", b"}"]
    right += [name("torch", "float32"), b"}"]
    wrong = st.sampled_from([part for part in PARTS if part[:1] in b"N)]}KJGX(\x88\x8ac"])
    drawn = [data.draw(st.just(part) | wrong) for part in right[: data.draw(st.integers(0, 8))]]
    path = tmp_path_factory.getbasetemp() / "any.pt"
    outcome(path, write(path, program(function, tuple_of(*drawn), b"R")).read_bytes())
