"""TFRecord shards of fixed-size records: written here, read at random here, readable by TensorFlow.

A record is a tf.train.Example whose features are raw little-endian bytes, one bytes value each. The
sizes never vary, so record i of a shard starts at i x stride: random access needs no index, and no
TensorFlow. `layout.json` beside the shards gives dtype and shape of every feature.
"""

import itertools
import json
import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np

from retro_jax.errors import UserError
from retro_jax.store import files

_SHARD_BYTES = 128 * 2**20
_LAYOUT = "layout.json"


def describe(example: dict[str, np.ndarray]) -> dict:
    """{feature: {dtype, shape}} of an example."""
    return {
        name: {"dtype": value.dtype.newbyteorder("<").str, "shape": list(value.shape)}
        for name, value in sorted(example.items())
    }


def framed(example: dict[str, np.ndarray]) -> bytes:
    """A record as it stands in a shard."""
    return _frame(_example(example))


def per_shard(example: dict[str, np.ndarray]) -> int:
    """Records of a shard that all are like `example`."""
    return max(1, _SHARD_BYTES // len(framed(example)))


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"{number:05d}.tfrecord"


def _shard_files(directory: Path) -> list[Path]:
    """The shards in order; from 100,000 on their names are longer."""
    return sorted(directory.glob("*.tfrecord"), key=lambda path: (len(path.name), path.name))


def write_layout(directory: Path, layout: dict, count: int):
    """Writes what `count` records hold, once all shards are there."""
    text = {"format": "tf.train.Example", "features": layout, "records": count}
    files.write(directory / _LAYOUT, json.dumps(text, indent=2))


def write_shard(
    directory: Path, number: int, examples: Iterable[dict[str, np.ndarray]], layout: dict
):
    """Writes a shard, whole or absent, into an existing directory.

    layout: what every example must be like, see `describe`.
    """
    path = directory / shard_name(number)
    here = isinstance(path, Path)
    made = files.aside(path) if here else path
    with made.open("wb") as file:
        for count, example in enumerate(examples):
            if describe(example) != layout:
                raise ValueError(
                    f"record {count} of {path} has another layout: {describe(example)}"
                )
            file.write(framed(example))
    if here:
        files.replace(made, path)


def write(directory: Path, examples: Iterable[dict[str, np.ndarray]]) -> int:
    """Writes examples, all of the same dtypes and shapes, into an existing directory; returns how many."""
    rest = iter(examples)
    example = next(rest, None)
    if example is None:
        write_layout(directory, {}, 0)
        return 0
    layout, each, count = describe(example), per_shard(example), 0
    rest = itertools.chain([example], rest)
    for number in itertools.count():
        some = list(itertools.islice(rest, each))
        if not some:
            break
        write_shard(directory, number, some, layout)
        count += len(some)
    write_layout(directory, layout, count)
    return count


INFO = ("features.json", "dataset_info.json")  # what `write_tfds_info` writes


def write_tfds_info(directory: Path, splits: tuple[str, ...], out: Path):
    """Writes into `out`, a local directory, the files by which `tfds.builder_from_directory` loads a
    directory of such directories, one a split. It finds its shards where the files lie."""
    import tensorflow_datasets as tfds  # takes seconds
    from tensorflow_datasets.core import dataset_info, file_adapters

    features, infos = {}, []
    for split in splits:
        shapes, _ = _layout_of(directory / split)
        _, stride = _offsets(shapes)
        sizes = [path.stat().st_size for path in _shard_files(directory / split)]
        if not shapes:
            continue  # TFDS knows no split without records
        features = {
            name: tfds.features.Tensor(
                shape=shape, dtype=dtype.type, encoding=tfds.features.Encoding.BYTES
            )
            for name, (dtype, shape) in shapes.items()
        }
        template = tfds.core.ShardedFileTemplate(
            data_dir=out,
            template="{SPLIT}/{SHARD_INDEX}.{FILEFORMAT}",  # as `shard_name` has it
            dataset_name="retro",
            split=split,
            filetype_suffix="tfrecord",
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[size // stride for size in sizes],
                num_bytes=sum(sizes),
                filename_template=template,
            )
        )
    identity = dataset_info.DatasetIdentity(
        name="retro", version="1.0.0", data_dir=str(out), module_name=""
    )
    info = dataset_info.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        description="Sequences of tokens with the neighbours of their chunks (retro_jax).",
        disable_shuffling=True,  # records stand in the order of their documents
    )
    info.set_file_format(file_adapters.FileFormat.TFRECORD)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(out)


class Records:
    """Random access to the records of a directory; a source for grain.

    features: {name: (dtype, shape)}.

    Raises:
      UserError: on opening, if a shard is missing or of another size than the layout says; on
        reading, if a record is damaged.
    """

    def __init__(self, directory: Path):
        self.features, self._count = _layout_of(Path(directory))
        self._paths = _shard_files(Path(directory))
        self._offsets, self._stride = _offsets(self.features)
        self._shards, self._starts, total = [], [], 0
        for path in self._paths:
            data = np.memmap(path, np.uint8, "r") if path.stat().st_size else b"\0"
            if len(data) % self._stride:
                raise UserError(
                    f"{path}: {len(data)} bytes is no whole number of records; "
                    "the file is truncated: delete the shards and run prepare again"
                )
            self._shards.append(data)
            self._starts.append(total)
            total += len(data) // self._stride
        if total != self._count:
            raise UserError(
                f"{directory}: {total} records found, layout.json says {self._count}; "
                "delete the shards and run prepare again"
            )

    def __len__(self) -> int:
        return self._count

    @property
    def shard_lengths(self) -> list[int]:
        """Records of each shard."""
        return [len(data) // self._stride for data in self._shards]

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < self._count:
            raise IndexError(f"record {i} of {self._count}")
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        start = (i - self._starts[shard]) * self._stride
        record = bytes(self._shards[shard][start : start + self._stride])
        payload = record[12:-4]
        if struct.unpack("<I", record[-4:])[0] != _masked_crc(payload):
            raise UserError(
                f"{self._paths[shard]}: record {i - self._starts[shard]} of the file is damaged "
                "(checksum); delete the shards and run prepare again"
            )
        return {
            name: np.frombuffer(payload, dtype, int(np.prod(shape)), self._offsets[name])
            .reshape(shape)
            .copy()
            for name, (dtype, shape) in self.features.items()
        }


def _layout_of(directory: Path) -> tuple[dict, int]:
    """({feature: (dtype, shape)}, how many records)."""
    layout = files.read_json(directory / _LAYOUT, "delete the shards, and run prepare again")
    features = {n: (np.dtype(f["dtype"]), tuple(f["shape"])) for n, f in layout["features"].items()}
    return features, layout["records"]


def _offsets(features: dict) -> tuple[dict[str, int], int]:
    """Where each feature's bytes begin in a payload, and the length of a framed record."""
    names = sorted(features)
    sizes = [int(np.prod(features[n][1])) * features[n][0].itemsize for n in names]
    # A feature of marked bytes shows where the encoding puts it.
    offsets, payload = {}, _encode([(n, b"\0" * s) for n, s in zip(names, sizes)])
    for i, name in enumerate(names):
        marked = _encode(
            [(n, (b"\1" if j == i else b"\0") * s) for j, (n, s) in enumerate(zip(names, sizes))]
        )
        different = np.flatnonzero(
            np.frombuffer(payload, np.uint8) != np.frombuffer(marked, np.uint8)
        )
        offsets[name] = int(different[0]) if len(different) else 0
    return offsets, len(payload) + 16


def _example(example: dict[str, np.ndarray]) -> bytes:
    return _encode(
        [
            (n, np.ascontiguousarray(v, v.dtype.newbyteorder("<")).tobytes())
            for n, v in sorted(example.items())
        ]
    )


def _encode(features: list[tuple[str, bytes]]) -> bytes:
    """tf.train.Example{features: {feature: {key: Feature{bytes_list: {value}}}}} in wire format."""
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _field(1, _field(1, value))))
        for name, value in features
    )
    return _field(1, entries)


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    length, varint = len(data), b""
    while length >= 0x80:
        varint += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + varint + bytes([length]) + data


def _frame(payload: bytes) -> bytes:
    """TFRecord framing: length, its checksum, payload, its checksum."""
    length = struct.pack("<Q", len(payload))
    return (
        length
        + struct.pack("<I", _masked_crc(length))
        + payload
        + struct.pack("<I", _masked_crc(payload))
    )


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
