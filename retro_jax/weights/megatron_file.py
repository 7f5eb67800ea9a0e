"""One file of a Megatron-LM checkpoint (model_optim_rng.pt), read by torch.load with weights_only and mmap.

torch's reader makes tensors and plain data, and calls nothing that is not on its list. Here
argparse.Namespace is added to that list, which holds Megatron's arguments, and for the few other
classes that Megatron writes a stand-in that does nothing. A file that names anything else is refused.
"""

import pickle
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from os import PathLike

import ml_dtypes
import numpy as np

from retro_jax.errors import UserError

_MOST_VALUES, _DEEPEST = 100_000, 20  # of args, which are some hundred


class StandIn:
    """An object of a class that is not made here: its name and arguments, to be shown to people."""

    def __new__(cls, *args: object):
        made = super().__new__(cls)
        made.args = args
        return made

    def __setstate__(self, state: object):
        """Nothing: without this torch would set the file's attributes."""

    def __repr__(self) -> str:
        shown = (repr(a)[:100] if isinstance(a, str | int | float) else "..." for a in self.args)
        return f"{type(self).__module__}.{type(self).__qualname__}({', '.join(shown)})"


# What Megatron-LM writes besides plain data, in one version of it or another: enums among its
# arguments, the random state of NumPy, what Transformer Engine keeps of float8.
_STAND_INS = [
    type(name, (StandIn,), {"__module__": module})
    for module, names in {
        "megatron.model.enums": ("ModelType", "LayerType", "AttnType", "AttnMaskType"),
        "megatron.core.enums": ("ModelType", "Fp8Recipe"),
        "megatron.core.transformer.enums": (
            *("ModelType", "LayerType", "AttnType", "AttnMaskType", "AttnBackend"),
            "CudaGraphScope",
        ),
        "megatron.core.rerun_state_machine": ("RerunDiagnostic", "RerunMode", "RerunState"),
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "_io": ("BytesIO",),
        "pathlib": ("PosixPath",),
        "pathlib._local": ("PosixPath",),  # as Python 3.13 calls it
        "signal": ("Signals",),
        "types": ("SimpleNamespace",),
    }.items()
    for name in names
]


def load(path: str | PathLike) -> object:
    """The object that was saved: plain data, tensors that show the mapped file, Namespaces, `StandIn`s.

    The file must stay as it is while tensors of it are in use: to read from a mapped file that was
    cut short ends the process.

    Raises:
      UserError: torch is not installed; no such file; damaged, cut off or in another format; it
        names what Megatron-LM does not write.
    """
    torch = _torch()
    try:
        # Mapped, compressed numbers would be taken for others.
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
        with torch.serialization.safe_globals([Namespace, *_STAND_INS]):
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if not refused:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can make torch raise anything
        raise UserError(
            f"{path}: not a file of torch.save that can be read ({_why(error)}); copy it again, or "
            "write it anew with torch.save of torch 1.6 or later"
        ) from error
    names = ", ".join(ascii(name[:100])[1:-1] for name in sorted(refused)[:5])
    raise UserError(
        f"{path}: it names {names}, which Megatron-LM's arguments and tensors do not need; nothing "
        "of it was run. If you trust it, load it where it was made, and torch.save its args, "
        "checkpoint_version and model alone"
    )


def _torch():
    """The module. Imported on use only: it is optional, and takes seconds and much memory."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "Megatron-LM's checkpoints are read with torch: pip install 'retro_jax[megatron]'"
        ) from error
    return torch


def _why(error: Exception) -> str:
    """One short line. torch's own goes on for several, and advises to read the file unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle is damaged, or holds more than plain data and tensors"
    line = str(error).split("\n")[0][:150]
    return f"{type(error).__name__}: {ascii(line)[1:-1]}"


def kind(value: object) -> str:
    """What a value is, for messages: "float32 [2, 3]" of a tensor or an array, else its type."""
    if isinstance(value, np.ndarray | _torch().Tensor) and not getattr(value, "is_nested", False):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__


def array(value: object) -> np.ndarray:
    """A tensor as a read-only array that shows the same memory; bfloat16 is that of ml_dtypes.

    Raises:
      ValueError: no tensor; not of float16, bfloat16, float32 or float64; not in plain memory.
    """
    torch = _torch()
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise ValueError(f"is {kind(value)}, no tensor of floating-point numbers")
    ordinary = value.layout == torch.strided and value.device.type == "cpu"
    if not ordinary or value.is_nested or value.is_neg():
        raise ValueError("is sparse, nested, without memory, or to be negated: no plain tensor")
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"is {kind(value)}, no tensor of floating-point numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError("shows the same numbers more than once, which no weight does")
    halves = value.dtype == torch.bfloat16  # which NumPy has not: as 16 bits of another name
    shown = (value.detach().view(torch.int16) if halves else value.detach()).numpy()
    shown = shown.view(ml_dtypes.bfloat16) if halves else shown
    shown.flags.writeable = False
    return shown


def plain(args: Namespace, path: str | PathLike) -> dict:
    """Megatron's arguments as JSON would have them; what is no plain data becomes its repr.

    Raises:
      UserError: more of them, or deeper ones, than Megatron has.
    """
    return _plain(vars(args), path, iter(range(_MOST_VALUES)))


def _plain(value: object, path: str | PathLike, steps: Iterator, depth: int = 0) -> object:
    """One of `steps` for each value, for a list may hold itself."""
    if next(steps, None) is None or depth > _DEEPEST:
        raise UserError(f"{path}: args are nested too deep or too many; give another checkpoint")
    inner, torch = (path, steps, depth + 1), _torch()
    match value:
        case None | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item, *inner) for item in value]
        case dict():
            return {str(_plain(key, *inner)): _plain(item, *inner) for key, item in value.items()}
        case set():
            return sorted((_plain(item, *inner) for item in value), key=repr)
        case bytes() | bytearray():
            return repr(value[:100])
        case StandIn() | torch.dtype() | torch.device() | complex():
            return repr(value)
    return kind(value)
