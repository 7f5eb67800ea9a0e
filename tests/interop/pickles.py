"""Files of torch's zip format with any pickle in them, made without torch."""

import zipfile
from pathlib import Path

import pytest

from retro_jax.errors import UserError
from retro_jax.interop import torch_file


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode(errors="surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    """LONG1."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*values: bytes) -> bytes:
    """MARK ... TUPLE."""
    return b"(" + b"".join(values) + b"t"


def called(module: str, attribute: str, *values: bytes) -> bytes:
    """A global and REDUCE."""
    return name(module, attribute) + tuple_of(*values) + b"R"


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    """BINPERSID of a storage, as torch writes it."""
    values = (text("storage"), name("torch", kind), text(key), text("cpu"), number(count))
    return tuple_of(*values) + b"Q"


def tensor(offset: int, size: tuple, stride: tuple, store: bytes | None = None) -> bytes:
    """_rebuild_tensor_v2."""
    return called(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage() if store is None else store,
        number(offset),
        tuple_of(*map(number, size)),
        tuple_of(*map(number, stride)),
        b"\x89",
        called("collections", "OrderedDict"),
    )


def program(*parts: bytes) -> bytes:
    """PROTO 2 ... STOP."""
    return b"\x80\x02" + b"".join(parts) + b"."


def write(
    path: Path, pickle: bytes, storages: dict[str, bytes] | None = None, **others: bytes
) -> Path:
    """A file with this data.pkl, and a storage "0" of 16 bytes if none are given.

    others: further entries by name.
    """
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        for key, data in ({"0": bytes(16)} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", data)
        for key, data in ({"byteorder": b"little", "version": b"3\n"} | others).items():
            archive.writestr(f"archive/{key}", data)
    return path


def refused(path: Path, match: str):
    """Reading is refused in the one way there is: by one line that begins with the file's name."""
    with pytest.raises(UserError, match=match) as caught:
        torch_file.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 700 + len(str(path))
