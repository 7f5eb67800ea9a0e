import struct

import google_crc32c
import grain
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from retro_jax.errors import UserError
from retro_jax.store import records


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield {
            "tokens": rng.integers(0, 60_000, 300).astype(np.uint16),
            "ids": rng.integers(-1, 2**40, (3, 2)),
            "distances": rng.random((3, 2)).astype(np.float32),
            "number": np.array([i], np.int32),
        }


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_SHARD_BYTES", 4000)  # several shards
    assert records.write(tmp_path, examples(20)) == 20
    return tmp_path


def test_records_come_back_in_any_order(directory):
    assert len(list(directory.glob("*.tfrecord"))) > 2
    opened = records.Records(directory)
    assert len(opened) == 20
    expected = list(examples(20))
    for i in (19, 0, 7, 7):
        for name, value in expected[i].items():
            got = opened[i][name]
            assert got.dtype == value.dtype
            np.testing.assert_array_equal(got, value)
    with pytest.raises(IndexError):
        opened[20]


def tf_example():
    """tf.train.Example, built from its public definition with protobuf itself."""
    f = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name, *fields):
        m = f.message_type.add(name=name)
        for number, (field, kind, label) in enumerate(fields, 1):
            added = m.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = 11, kind
            else:
                added.type = kind
        return m

    message("BytesList", ("value", 12, 3))
    message("Feature", ("bytes_list", ".t.BytesList", 1))
    features = message("Features", ("feature", ".t.Features.FeatureEntry", 3))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".t.Feature")
    message("Example", ("features", ".t.Features", 1))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(f)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def test_other_readers_of_tfrecord_read_them(directory):
    """Framing by grain's own TFRecord reader, payload by protobuf: neither is code of ours."""
    read = []
    for shard in sorted(directory.glob("*.tfrecord")):
        read += list(grain.experimental.TFRecordIterDataset(str(shard)))
    assert len(read) == 20
    example = tf_example()
    for payload, expected in zip(read, examples(20)):
        parsed = example.FromString(payload).features.feature
        assert set(parsed) == set(expected)
        for name, value in expected.items():
            (raw,) = parsed[name].bytes_list.value
            np.testing.assert_array_equal(
                np.frombuffer(raw, value.dtype).reshape(value.shape), value
            )


def test_checksums_are_tensorflows(directory):
    """The mask of TFRecord's format: rotate right by 15, add 0xa282ead8."""
    data = (directory / "00000.tfrecord").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    for checksum, covered in (
        (data[8:12], data[:8]),
        (data[12 + length : 16 + length], data[12 : 12 + length]),
    ):
        crc = google_crc32c.value(covered)
        masked = ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
        assert struct.unpack("<I", checksum)[0] == masked
    assert google_crc32c.value(b"123456789") == 0xE3069283


def test_a_damaged_record_is_reported_and_not_returned(directory):
    path = directory / "00000.tfrecord"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    opened = records.Records(directory)
    with pytest.raises(UserError, match=r"00000\.tfrecord: record 0 of the file is damaged"):
        opened[0]
    opened[1]


def test_truncated_and_missing_shards_are_reported_on_opening(directory):
    path = directory / "00000.tfrecord"
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(UserError, match="truncated"):
        records.Records(directory)
    for missing in (lambda: path.write_bytes(b""), path.unlink):
        missing()
        with pytest.raises(UserError, match=r"layout\.json says 20|truncated"):
            records.Records(directory)


def test_records_of_different_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="another layout"):
        records.write(tmp_path, [{"a": np.zeros(3)}, {"a": np.zeros(4)}])
