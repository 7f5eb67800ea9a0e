"""Files of torch.save (the zip format, torch 1.6 and later), read without torch.

`<name>/data.pkl` is a pickle in which a tensor is a call of torch._utils._rebuild_tensor_v2 with a
storage, an offset, sizes and strides; `<name>/data/<key>` are the storages' bytes. The pickle is read
by `inert_pickle`: whatever it names, nothing of the file is executed, and what is not a tensor or
plain data comes out as an `Opaque`. The bytes are mapped, not read: a tensor occupies memory only
once somebody computes with it, so a file may be larger than the memory.

Checksums are not compared: that would read every byte, and torch can be told to leave them out.
"""

import math
import mmap
from os import PathLike

import ml_dtypes
import numpy as np

from retro_jax.errors import UserError
from retro_jax.interop import inert_pickle
from retro_jax.interop.inert_pickle import Opaque
from retro_jax.interop.stored_zip import entries

_ANEW = (
    "torch.save(torch.load(old, weights_only=True), new) writes it in the format that is read here"
)
_DTYPES = {
    f"torch.{name}": np.dtype(name)
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
} | {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name))
    for name in (
        *("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}
_STORAGES = {
    f"torch.{kind}Storage": _DTYPES[f"torch.{name}"]
    for kind, name in {
        **{"Bool": "bool", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32"},
        **{"Long": "int64", "Half": "float16", "BFloat16": "bfloat16", "Float": "float32"},
        **{"Double": "float64", "ComplexFloat": "complex64", "ComplexDouble": "complex128"},
    }.items()
} | {"torch.storage.UntypedStorage": np.dtype("uint8")}


def read(path: str | PathLike) -> object:
    """The object that was saved.

    Dicts (OrderedDicts too), lists, tuples (torch.Size too), sets, str, bytes, numbers and None are
    themselves. Tensors and parameters are arrays, read-only and mapped, of the sizes and strides
    they had; bfloat16 and float8 are of ml_dtypes. Everything else is an `Opaque`: an argparse
    Namespace is one whose `state` is the dict of its fields, torch.float16 one whose repr is that.

    The file must stay as it is while arrays of it are in use: to read from a mapped file that was
    cut short ends the process.

    Raises:
      UserError: no such file; another format; truncated or damaged; written on a big-endian
        machine; a tensor that does not lie within its storage.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise UserError(f"{path}: cannot be opened ({error}); give a file of torch.save") from error
    if data[:4] != b"PK\3\4":
        raise UserError(
            f"{path}: not torch's zip format; if torch before 1.6 wrote it, {_ANEW}; "
            "if not, give a file of torch.save"
        )
    try:
        return _File(data).load()
    except ValueError as error:
        # One line, whatever the file made it say.
        why = " ".join(str(error)[:400].split())
        raise UserError(
            f"{path}: {why}; copy the file again, or if it is whole, {_ANEW}"
        ) from error


class _File:
    """A mapped file and the storages in it."""

    def __init__(self, data: mmap.mmap):
        self._data, self._entries = data, entries(data)
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} entries are named data.pkl, and not one")
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self._bytes("byteorder", 20)  # before torch 2.1 it is not there
        if order not in (None, b"little"):
            raise ValueError(f"the byte order is {order!r}, and only b'little' is read")

    def _bytes(self, name: str, limit: int) -> bytes | None:
        """An entry's bytes, or None if it is not there."""
        entry = self._entries.get(self._prefix + name)
        if entry is None:
            return None
        if entry.size > limit:
            raise ValueError(f"the entry {name} has {entry.size} bytes, more than {limit}")
        return self._data[entry.begin : entry.begin + entry.size]

    def load(self) -> object:
        data = self._bytes("data.pkl", inert_pickle.MOST_BYTES)
        return inert_pickle.load(data, _FUNCTIONS, self._storage)

    def _storage(self, identity: object) -> np.ndarray:
        """("storage", class, key, device, elements) -> [elements], mapped."""
        word, kind, key, _, count = identity
        dtype = _STORAGES.get(kind.function) if isinstance(kind, Opaque) else None
        if not isinstance(word, str) or word != "storage" or dtype is None:
            raise ValueError(f"a storage of a kind that is not known: {_named(kind)}")
        if not isinstance(key, str) or len(key) > 100:
            raise ValueError("the key of a storage is no short text")
        entry = self._entries.get(f"{self._prefix}data/{key}")
        if entry is None:
            raise ValueError(f"the storage {key!r} is missing")
        if not isinstance(count, int) or count * dtype.itemsize != entry.size:
            raise ValueError(
                f"the storage {key!r} has {entry.size} bytes, not what the pickle says"
            )
        return np.ndarray((count,), dtype, self._data, entry.begin)


def _named(value: object) -> str:
    """For messages: what is no Opaque can be endless."""
    return repr(value) if isinstance(value, Opaque) else type(value).__name__


def _size(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or len(sizes) > 64:  # NumPy's own limit
        raise ValueError(
            f"sizes or strides are no tuple of at most 64 but a {type(sizes).__name__}"
        )
    if not all(isinstance(n, int) and n >= 0 for n in sizes):
        raise ValueError("sizes or strides are not all natural numbers")
    return sizes


def _tensor(storage, offset, size, stride, kind: Opaque | None = None) -> np.ndarray:
    """A view of a storage; never of more elements than that has.

    kind: the dtype, where the storage is of bytes without one.
    """
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise ValueError(f"a tensor is made of a {type(storage).__name__}, not a storage")
    dtype = storage.dtype if kind is None else _DTYPES.get(getattr(kind, "function", ""))
    if dtype is None:
        raise ValueError(f"tensors of {_named(kind)} are not read")
    data, (offset,) = storage.view(np.uint8), _size((offset,))
    size, stride = _size(size), _size(stride)
    if len(size) != len(stride):
        raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    count = math.prod(size)
    if not count:
        return np.empty(size, dtype)
    # An axis of one element may have any stride, even one that no array could.
    stride = [0 if n == 1 else step for n, step in zip(size, stride)]
    end = offset + sum((n - 1) * step for n, step in zip(size, stride)) + 1
    if end * dtype.itemsize > len(data):
        raise ValueError(f"a tensor leaves its storage: its sizes are {list(size)}"[:200])
    if count * dtype.itemsize > len(data):
        raise ValueError(
            f"a tensor shows elements more than once: its sizes are {list(size)}"[:200]
        )
    steps = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, data, offset * dtype.itemsize, steps)


def _tensor_v2(storage, offset, size, stride, *rest) -> np.ndarray:
    return _tensor(storage, offset, size, stride)


def _tensor_v3(storage, offset, size, stride, requires_grad, hooks, kind, *rest) -> np.ndarray:
    return _tensor(storage, offset, size, stride, kind)


def _parameter(data, *rest) -> object:
    return data


def _of_type(function, kind, args, state) -> object:
    """A tensor or parameter that had fields of its own."""
    return inert_pickle.call(_REBUILDS, function, args)


_REBUILDS = {
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
# Not in _REBUILDS: it could call itself, without end.
_FUNCTIONS = _REBUILDS | {
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "collections.OrderedDict": lambda: {},
    "torch.Size": _size,
}
