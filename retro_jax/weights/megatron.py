"""Checkpoints of Megatron-LM's legacy GPT model with a retriever: shards put together, tensor by tensor.

NVIDIA published InstructRetro in this format: `release/mp_rank_00` to `mp_rank_07`, in each a
`model_optim_rng.pt` with a tensor-parallel shard of every weight. Names and merging rules are those
of Megatron-LM's tag InstructRetro.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from retro_jax.errors import UserError
from retro_jax.weights import megatron_file

_ALL = "copy all shards of one checkpoint there"  # a remedy
FILE = "model_optim_rng.pt"
_TRACKER = "latest_checkpointed_iteration.txt"
_MOST_NAMES, _LONGEST = 100_000, 1000  # of the model, which has some thousand
# What must be the same in every shard, besides the names, shapes and dtypes of its tensors.
_SAME = ("iteration", "hidden_size", "num_layers", "padded_vocab_size", "swiglu")


def _rows(shards: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(shards, axis=0)


def _columns(shards: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(shards, axis=1)


def _halves(shards: list[np.ndarray]) -> np.ndarray:
    """A shard is [gate; up], and so is the whole."""
    halves = [np.split(shard, 2) for shard in shards]
    return np.concatenate([half[part] for part in (0, 1) for half in halves])


def _replicated(shards: list[np.ndarray]) -> np.ndarray:
    """The first: each shard has the whole. Those of unlike training are told from rounding."""
    first = shards[0].astype(np.float32)
    for shard in shards[1:]:
        if not np.allclose(first, shard.astype(np.float32), rtol=0.05, atol=0.05):
            raise ValueError("differs between shards, each of which should have the whole")
    return shards[0]


_MATRICES = {
    "self_attention.query_key_value": _rows,
    "self_attention.dense": _columns,
    "inter_attention.query": _rows,
    "inter_attention.key_value": _rows,
    "inter_attention.dense": _columns,
    "mlp.dense_h_to_4h": _halves,
    "mlp.dense_4h_to_h": _columns,
}
_NORMS = ("input_norm", "post_attention_norm", "post_inter_attention_norm")
_PARTS = ("weight", "bias")
_LAYER = {f"{name}.weight": rule for name, rule in _MATRICES.items()} | {
    f"{name}.{part}": _replicated for name in _NORMS for part in _PARTS
}
_TOP = {f"final_norm.{part}": _replicated for part in _PARTS} | {
    "embedding.word_embeddings.weight": _rows,
    "output_layer.weight": _rows,
}
_NUMBER = "(?:0|[1-9][0-9]{0,3})"
_IN_LAYER = re.compile(rf"layers\.{_NUMBER}\.(?:retriever\.layers\.{_NUMBER}\.)?(.+)")


def read(directory: str | PathLike) -> tuple[dict, "Tensors"]:
    """(args, tensors) of a checkpoint.

    args: what Megatron was started with, of the first shard: numbers, strings, None, lists and
    dicts; of anything else (a dtype, a member of an enum) its repr, or its type's name.

    Args:
      directory: of a checkpoint (with latest_checkpointed_iteration.txt or release/), of an
        iteration of it, or of the folders mp_rank_*.

    Raises:
      UserError: torch is not installed; no checkpoint there; another format; files that name what
        Megatron-LM does not write; pipeline parallelism; shards that are missing, or do not belong
        together; tensors of unknown names.
    """
    paths = _files(Path(directory))
    args, shards = None, {}
    for path in paths:
        own, shards[path] = _shard(path)
        parallel = own.get("tensor_model_parallel_size")
        if parallel != len(paths):
            raise UserError(
                f"{path}: args.tensor_model_parallel_size is {parallel!r:.60}, but there are "
                f"{len(paths)} folders mp_rank_*; {_ALL}"
            )
        args = own if args is None else args
        for name in _SAME:
            if own.get(name) != args.get(name):
                raise UserError(
                    f"{path}: args.{name} is {own.get(name)!r:.60}, but {args.get(name)!r:.60} in "
                    f"{paths[0]}; {_ALL}"
                )
    return args, Tensors(shards, swiglu=bool(args.get("swiglu", True)))


def is_one(directory: Path) -> bool:
    """Whether a directory looks like such a checkpoint, damaged perhaps."""
    places = (directory, directory / "release")
    return (directory / _TRACKER).is_file() or any(any(p.glob("mp_rank_*")) for p in places)


class Tensors(Mapping):
    """Megatron's name of a tensor -> the whole tensor, put together when it is asked for.

    Names are as in `layers.0.self_attention.query_key_value.weight`, with `norm` for `layernorm`. With
    one shard a tensor is a mapped, read-only array; with several it is a copy in memory, but for
    norms, of which each shard has the whole.

    Args:
      shards: by file, the tensors in it.
      swiglu: whether mlp.dense_h_to_4h has a gate.

    Raises:
      UserError: on making, if shards differ in names, shapes or dtypes, or a tensor has another
        number of axes than its like; on asking, if a norm is not the same in every shard.
    """

    def __init__(self, shards: dict[Path, dict[str, np.ndarray]], swiglu: bool):
        self._shards, self._swiglu = shards, swiglu
        self._first, first = next(iter(shards.items()))
        for path, shard in shards.items():
            for name in sorted(first.keys() | shard.keys()):
                ours, other = (_kind(tensors.get(name)) for tensors in (first, shard))
                if ours != other:
                    raise UserError(
                        f"{path}: {name} is {other}, but in {self._first} it is {ours}; {_ALL}"
                    )
        self._shapes = {name: self._shape(name, tensor) for name, tensor in first.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor, without reading it."""
        return self._shapes[name]

    def _rule(self, name: str) -> Callable:
        rule = _rule(name)
        return _rows if rule is _halves and not self._swiglu else rule

    def _shape(self, name: str, shard: np.ndarray) -> tuple[int, ...]:
        rule, shape = self._rule(name), list(shard.shape)
        if shard.ndim != (1 if rule is _replicated else 2) or (rule is _halves and shape[0] % 2):
            raise UserError(
                f"{self._first}: {name} has the shape {shape}, which no RETRO of Megatron-LM has; "
                "give another checkpoint"
            )
        if rule is not _replicated:
            shape[1 if rule is _columns else 0] *= len(self._shards)
        return tuple(shape)

    def __getitem__(self, name: str) -> np.ndarray:
        parts = [shard[name] for shard in self._shards.values()]
        if len(parts) == 1:
            return parts[0]
        try:
            return self._rule(name)(parts)
        except ValueError as error:
            raise UserError(f"{self._first.parent.parent}: {name} {error}; {_ALL}") from error

    def __contains__(self, name: object) -> bool:  # Mapping's own would put the tensor together
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _kind(tensor: np.ndarray | None) -> str:
    return "missing" if tensor is None else megatron_file.kind(tensor)


def _rule(name: str) -> Callable | None:
    """How shards of a tensor are put together, or None for a tensor that is not known."""
    layer = _IN_LAYER.fullmatch(name)
    return _LAYER.get(layer[1]) if layer else _TOP.get(name)


def _files(directory: Path) -> list[Path]:
    """The file of every rank, in order."""
    folder = _iteration(directory)
    names = sorted(path.name for path in folder.glob("mp_rank_*"))
    parallel = [name for name in names if re.fullmatch("mp_rank_[0-9]+(_[0-9]+)+", name)]
    if parallel:
        raise UserError(
            f"{folder / parallel[0]}: a shard of pipeline parallelism, which is not read; "
            "merge the checkpoint to pipeline size 1 with Megatron-LM's tools/checkpoint"
        )
    ranks = [name for name in names if re.fullmatch("mp_rank_[0-9]+", name)]
    files = [folder / f"mp_rank_{rank:02d}" / FILE for rank in range(max(1, len(ranks)))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: missing, of {len(files)} shards mp_rank_*; {_ALL}")
    return files


def _iteration(directory: Path) -> Path:
    """The folder that has the folders mp_rank_*."""
    if any(directory.glob("mp_rank_*")):
        return directory
    tracker, folder = directory / _TRACKER, directory / "release"
    if tracker.is_file():
        with tracker.open("rb") as file:
            text = file.read(100).strip()
        if re.fullmatch(rb"\d{1,18}", text):
            folder = directory / f"iter_{int(text):07d}"
        elif text != b"release":
            raise UserError(f"{tracker}: {text!r} is no iteration; put one there, or 'release'")
    if not any(folder.glob("mp_rank_*")):
        raise UserError(
            f"{directory}: no Megatron-LM checkpoint ({folder}/mp_rank_00/{FILE} is missing); "
            "give the folder that has release/ in it"
        )
    return folder


def _shard(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(args, flat name -> tensor) of a file."""
    found = megatron_file.load(path)
    found = found if isinstance(found, dict) else {}
    args, version = found.get("args"), found.get("checkpoint_version")
    if type(args) is not Namespace:
        raise UserError(f"{path}: no args of Megatron-LM in it; give a checkpoint of Megatron-LM")
    # Before 2 the rows of query_key_value stood in another order.
    if not isinstance(version, int | float) or version not in (2, 3):
        shown = version if isinstance(version, int | float) else type(version).__name__
        raise UserError(
            f"{path}: checkpoint_version is {shown}, and 2 and 3 are read; save it anew with a later "
            "Megatron-LM"
        )
    args = megatron_file.plain(args, path)
    if not args:
        raise UserError(f"{path}: args are empty; give a checkpoint of Megatron-LM")
    pipeline = args.get("pipeline_model_parallel_size", 1)
    if pipeline != 1:
        raise UserError(
            f"{path}: args.pipeline_model_parallel_size is {pipeline!r:.60}, and 1 is read; "
            "merge the checkpoint with Megatron-LM's tools/checkpoint"
        )
    return args, _flat(found.get("model"), path)


def _inside(name: str, value: dict, limit: int, path: Path) -> list[tuple[str, object]]:
    """A dict's values with their names. It may hold itself, or another dict thousands of times."""
    short = all(isinstance(key, str) and len(key) < _LONGEST for key in value)
    if len(value) > limit or len(name) > _LONGEST or not short:
        raise UserError(f"{path}: model has too many or too long names; give another checkpoint")
    return [(f"{name}.{key}" if name else key, item) for key, item in value.items()]


def _flat(model: object, path: Path) -> dict[str, np.ndarray]:
    """{"language_model": {"encoder": {"layers.0...": tensor}, ...}} -> name -> tensor."""
    if not isinstance(model, dict) or "language_model" not in model:
        raise UserError(
            f"{path}: no model.language_model in it; Megatron-LM's legacy GPT model is read, not "
            "Megatron-Core's: convert it with Megatron-LM's tools/checkpoint"
        )
    tensors, unknown, queue = {}, [], [("", model)]
    for name, value in queue:  # it grows while it is walked
        if name.endswith("_extra_state"):  # of Transformer Engine: scales of float8
            continue
        if isinstance(value, dict):
            queue += _inside(name, value, _MOST_NAMES - len(queue), path)
            continue
        short = name.removeprefix("language_model.").removeprefix("encoder.")
        short = short.replace("layernorm", "norm")  # older files
        if short in tensors or not _rule(short):
            unknown.append(short)
            continue
        try:
            tensors[short] = megatron_file.array(value)
        except ValueError as error:
            raise UserError(f"{path}: {short} {error}; give another checkpoint") from error
    if unknown or not tensors:
        names = ", ".join(map(ascii, sorted(unknown)[:5]))
        raise UserError(
            f"{path}: {len(tensors)} tensors that are known, {len(unknown)} that are not, or are "
            f"there twice ({names}); a RETRO as InstructRetro's is read, without biases and learned "
            "positions"
        )
    return tensors
