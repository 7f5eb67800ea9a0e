"""torch's files read without torch: what torch writes comes back, and a wrong file is refused."""

import gc
import random
import re
import subprocess
import sys
from pathlib import Path

import kinds
import numpy as np
import pytest
from pickles import name, number, program, refused, storage, tensor, text, tuple_of, write

from retro_jax.interop import torch_file
from retro_jax.interop.inert_pickle import Opaque


@pytest.fixture
def torch():
    """Only to write files: the product does not know it."""
    return pytest.importorskip("torch")


@pytest.fixture
def saved(torch, tmp_path):
    """From an object to what is read of it."""

    def save(value, **options):
        torch.save(value, tmp_path / "x.pt", **options)
        return torch_file.read(tmp_path / "x.pt")

    return save


# What torch writes.


def check_kinds(read: dict):
    base = np.arange(6, dtype=np.float32)
    for dtype, value in read["dtypes"].items():
        assert value.dtype.name == dtype
        expected = base != 0 if dtype == "bool" else base
        if dtype == "float8_e8m0fnu":
            expected = np.array(
                [2.0**-127, 1, 2, 4, 4, 4]
            )  # the nearest powers of 2, as torch has it
        np.testing.assert_array_equal(value.astype(np.complex128), expected.reshape(2, 3))
        assert not value.flags.writeable
    np.testing.assert_array_equal(read["transposed"], base.reshape(2, 3).T)
    assert read["transposed"].strides == (4, 12)
    np.testing.assert_array_equal(read["every second"], [1, 3, 5])
    assert read["scalar"].shape == ()
    assert read["scalar"] == 3
    assert read["empty"].shape == (0, 3)
    for key in ("parameter", "with fields"):
        np.testing.assert_array_equal(read[key], [0, 1])
    assert list(read["state"]) == ["weight"]
    assert read["state"]["weight"].dtype.name == "bfloat16"
    args = read["args"]
    assert args.function == "argparse.Namespace"
    assert repr(args.state.pop("params_dtype")) == "torch.bfloat16"
    assert args.state == {"lr": 0.5, "data_path": ["a", None]}
    assert read["size"] == (2, 3)
    assert read["plain"] == [1, -(2**40), 0.5, "naïve", (True, ()), {3: None}]
    assert repr(read["device"]) == "torch.device('cuda', 0)"


def test_a_file_of_torch_is_read_where_torch_is_not():
    check_kinds(torch_file.read(kinds.FILE))
    code = f"""
import sys
sys.modules["torch"] = None
from retro_jax.interop import torch_file
torch_file.read({str(kinds.FILE)!r})
assert not any(name.split(".")[0] in ("torch", "jax") for name in sys.modules if sys.modules[name])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_writes_now_is_read(torch, saved, protocol):
    check_kinds(saved(kinds.make(torch), pickle_protocol=protocol))


def test_values_of_every_dtype_are_bit_for_bit(torch, saved):
    noise = torch.randint(0, 256, (1600,), dtype=torch.uint8)
    made = {n: noise.clone().view(getattr(torch, n)) for n in kinds.DTYPES if n != "bool"}
    for dtype, value in saved(made).items():
        assert value.dtype.name == dtype
        assert value.tobytes() == noise.numpy().tobytes()


def test_tensors_that_share_a_storage_share_memory(torch, saved):
    whole = torch.arange(24.0).reshape(4, 6)
    views = [whole, whole[1:, 2:], whole.T, whole[::2, ::3], whole[3], whole.view(-1)]
    read = saved(views)
    for array, view in zip(read, views):
        np.testing.assert_array_equal(array, view.numpy())
        assert array.strides == tuple(n * 4 for n in view.stride())
        assert np.shares_memory(array, read[0])


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_saved_storage_is_an_array(torch, saved):
    np.testing.assert_array_equal(saved(torch.arange(3.0).storage()), [0, 1, 2])
    np.testing.assert_array_equal(saved(torch.arange(3.0).untyped_storage())[4:8], [0, 0, 128, 63])


def test_arrays_outlive_the_opened_file(torch, saved):
    array = saved([torch.ones(3), torch.zeros(3)])[0]
    gc.collect()
    np.testing.assert_array_equal(array, 1)


def test_what_is_not_known_is_a_record_of_names_and_arguments(torch, saved):
    generator = random.Random(0)
    read = saved(
        {
            "numpy": [np.float64(0.5), np.arange(3), np.random.RandomState(0).get_state()],
            "random": generator.getstate(),
            "sparse": torch.eye(2).to_sparse(),
            "set": {1, 2},
            "path": Path("/a"),
            "bytes": b"xy",
        }
    )
    assert read["random"] == generator.getstate()
    assert read["set"].function == "__builtin__.set"
    assert read["set"].args == ([1, 2],)
    assert repr(read["bytes"]) == "_codecs.encode('xy', 'latin1')"
    assert read["path"].args == ("/", "a")
    for value in (*read["numpy"][:2], read["sparse"], read["path"]):
        assert isinstance(value, Opaque)
        assert repr(value)


def test_an_entry_beyond_4_gib(torch, tmp_path):
    path = tmp_path / "x.pt"
    with torch.serialization.skip_data():  # leaves holes
        torch.save([torch.empty(2**32 + 3, dtype=torch.uint8), torch.empty(2)], path)
    assert path.stat().st_blocks * 512 < 2**20
    large, small = torch_file.read(path)
    assert large.shape == (2**32 + 3,)
    assert large[-1] == 0
    np.testing.assert_array_equal(small, 0)


def anonymous_and_mapped() -> list[int]:
    """Bytes of this process's memory that are its own, and those that show a file."""
    status = Path("/proc/self/status").read_text()
    return [int(re.search(rf"{row}:\s+(\d+)", status)[1]) * 1024 for row in ("RssAnon", "RssFile")]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_a_tensor_is_read_and_not_the_file(torch, tmp_path):
    path = tmp_path / "x.pt"
    with torch.serialization.skip_data():
        torch.save([torch.empty(50 * 2**18) for _ in range(4)], path)  # 4 of 50 MiB
    before = anonymous_and_mapped()
    read = torch_file.read(path)
    opened = anonymous_and_mapped()
    assert read[2].max() == 0
    after = anonymous_and_mapped()
    anonymous, mapped = np.subtract(opened, before)
    assert max(anonymous, mapped) < 5 * 2**20
    anonymous, mapped = np.subtract(after, before)
    assert anonymous < 5 * 2**20
    assert 40 * 2**20 < mapped < 70 * 2**20


# Tensors that do not lie in their storage of 4 numbers.


@pytest.mark.parametrize(("offset", "size", "stride"), [
    (0, (5,), (1,)), (1, (4,), (1,)), (4, (1,), (1,)), (0, (2, 2), (3, 1)), (0, (2,), (4,)),
    (-1, (2,), (1,)), (0, (-2,), (1,)), (3, (2,), (-1,)), (0, (2, 2), (1,)), (0, (2,), ()),
    (2**62, (1,), (1,)), (2**64, (2,), (1,)), (0, (2**62,), (1,)), (0, (2**32, 2**32), (1, 1)),
    (0, (2**31, 2**33, 2), (0, 0, 0)), (0, (5,), (0,)), (0, (2,), (2**62,)), (0, (2,), (2**64,)),
    (0, (1,) * 65, (1,) * 65), (0, (0, 2**62, 2**62), (1, 1, 1)), (0, (2**900,), (0,)),
])  # fmt: skip
def test_tensors_that_leave_their_storage_are_refused(tmp_path, offset, size, stride):
    refused(
        write(tmp_path / "x.pt", program(tensor(offset, size, stride))),
        "a tensor (leaves|shows)|sizes or strides|[01] strides|array is too big",
    )


def test_an_axis_of_one_may_have_any_stride(tmp_path):
    path = write(tmp_path / "x.pt", program(tensor(0, (1, 4), (2**80, 1))))
    assert torch_file.read(path).shape == (1, 4)


@pytest.mark.parametrize(("store", "why"), [
    (storage(key="1"), "the storage '1' is missing"),
    (storage(key="../0"), "is missing"),
    (storage(key="a" * 10**6), "no short text"),
    (storage(count=3), "has 16 bytes"), (storage(count=5), "has 16 bytes"),
    (storage(count=2**64 + 4), "has 16 bytes"), (storage(count=-4), "has 16 bytes"),
    (storage("DoubleStorage"), "has 16 bytes"), (storage("QInt8Storage"), "torch.QInt8Storage"),
    (storage("Size"), "torch.Size"), (text("0"), "a str, not a storage"),
    (tuple_of() + b"Q", "not enough values"), (b"NQ", "NoneType"), (b"}Q", "not enough values"),
    (tuple_of(text("module"), name("torch", "FloatStorage"), text("0"), text(""), number(4)) + b"Q",
     "not known"),
    (tuple_of(text("storage"), b"]", text("0"), text("cpu"), number(4)) + b"Q", "list"),
    (tuple_of(text("storage"), name("torch", "FloatStorage"), b"]", text(""), number(4)) + b"Q",
     "no short text"),
    (tuple_of(tensor(0, (4,), (1,)), name("torch", "FloatStorage"), b"]", b"N", b"N") + b"Q",
     "not known"),
    (tensor(0, (2,), (2,)), "BINPUT|contiguous|last axis"),
])  # fmt: skip
def test_storages_that_are_not_there_as_said_are_refused(tmp_path, store, why):
    refused(write(tmp_path / "x.pt", program(tensor(0, (2,), (1,), store))), why)
