"""The safetensors files of a directory as named arrays that lie on disk: what is not used is not read."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from retro_jax.errors import UserError

KINDS = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
INDEX = "model.safetensors.index.json"


class Tensors(Mapping):
    """Name -> array of a directory with one `*.safetensors` or several, which an index may name.

    An array is memory-mapped: slicing it, turning it or reshaping it reads nothing yet.

    Raises:
      UserError: no file, one that is damaged, cut off or missing, a name that two files have. A name's
        array: it holds numbers that are no float32, float16 or bfloat16.
    """

    def __init__(self, directory: Path):
        self._found = {}  # name -> (file, kind, shape, first byte)
        for file in _files(Path(directory)):
            for name, where in _header(file).items():
                if name in self._found:
                    raise UserError(
                        f"{file}: the tensor {name} is in {self._found[name][0].name} too; keep one of them"
                    )
                self._found[name] = (file, *where)

    def __getitem__(self, name: str) -> np.ndarray:
        file, kind, shape, begin = self._found[name]
        if kind not in KINDS:
            raise UserError(
                f"{file}: {name} is of type {kind}; known: {', '.join(KINDS)} (no quantised weights)"
            )
        if 0 in shape:
            return np.zeros(shape, KINDS[kind])
        return np.memmap(file, KINDS[kind], "r", begin, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, without opening it."""
        return self._found[name][2]


def _files(directory: Path) -> list[Path]:
    """Those of the index, where there is one; else all."""
    index = directory / INDEX
    if not index.exists():
        if (one := directory / "model.safetensors").is_file():  # others may be copies of it
            return [one]
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise UserError(
                f"{directory}: no *.safetensors there; save the model with save_pretrained, or convert its "
                "pytorch_model.bin (which is not read: a pickle can run anything)"
            )
        return files
    try:
        names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: no index of shards ({error}); fetch it again") from error
    for name in sorted(names):
        if Path(name).name != name:
            raise UserError(f"{index}: names {name!r}, which is no file of this directory")
        if not (directory / name).is_file():
            raise UserError(f"{directory / name}: missing, though {INDEX} names it; fetch it again")
    return [directory / name for name in sorted(names)]


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Kind, shape and first byte of each tensor of a file."""
    try:
        # It checks that the header is sound, and the file as long as that says.
        with safe_open(file, "np"):
            pass
        with file.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        header.pop("__metadata__", None)
        return {
            name: (h["dtype"], tuple(h["shape"]), 8 + size + h["data_offsets"][0])
            for name, h in header.items()
        }
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: damaged or cut off ({error}); fetch or save it again") from error
