"""Shards are what they look like to others: a TFDS data set, and TFRecord files for plain tf.data."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from retro_jax.store.records import Records

SPLITS = ("train", "heldout")


@pytest.fixture
def shards(finished):
    return finished / "prepare" / "shards"


def test_tfds_knows_the_features_and_splits(shards):
    info = tfds.builder_from_directory(shards).info
    for split in SPLITS:
        records = Records(shards / split)
        assert info.splits[split].num_examples == len(records)
        assert info.splits[split].shard_lengths == records.shard_lengths
        for name, value in records[0].items():
            assert (info.features[name].shape, info.features[name].np_dtype) == (
                value.shape,
                value.dtype,
            )


def test_tfds_reads_every_record_in_order(shards):
    pytest.importorskip("tensorflow", reason="tensorflow decodes TFRecord for TFDS")
    builder = tfds.builder_from_directory(shards)
    for split in SPLITS:
        records, count = Records(shards / split), 0
        for count, example in enumerate(tfds.as_numpy(builder.as_dataset(split)), 1):
            expected = records[count - 1]
            assert example.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(example[name], value)
                assert example[name].dtype == value.dtype
        assert count == len(records)


def test_plain_tf_data_reads_them(shards):
    tf = pytest.importorskip("tensorflow", reason="the reader that is compared with")
    records = Records(shards / "train")
    files = sorted(map(str, (shards / "train").glob("*.tfrecord")))
    for record, raw in zip(records, tf.data.TFRecordDataset(files), strict=True):
        parsed = tf.train.Example.FromString(raw.numpy()).features.feature
        for name, value in record.items():
            assert parsed[name].bytes_list.value[0] == value.tobytes()
