"""Reading training shards: our reader beside grain's and tf.data, and what a train step needs.

    pip install -e .
    python benchmarks/reading.py --tensorflow-python=PATH
    python benchmarks/reading.py --smoke      # does it run? few records

The same shards, of records as the 172M model trains on them (2,048 tokens, k = 2, random content, all
features). Readers are processes of their own that take turns, round by round; each goes through all
records once. Printed are medians of examples a second. The files are in the page cache, so that no
disk is measured. TensorFlow is not ours to install: it runs in this interpreter if it is here, else in
the one of --tensorflow-python, which needs nothing but tensorflow.

  batches      train/data.py, what training reads: random order, checksums, tokens and neighbours as
               int32 [8, ...], two threads
  Records      records.Records alone: random order, checksums, every feature as an array
  grain        grain's own TFRecord reader, every feature as an array: order of the file, no checksum
  tf.data      TFRecordDataset, parse_single_example and decode_raw of tokens and neighbours as int32
               [8, ...], parallel calls and prefetching on AUTOTUNE: order of the file

What training needs is computed: the 172M model's step reads STEP_TOKENS tokens a second on two CPU
threads (README); on an accelerator three forward passes as `sizes.forward_flops` counts them at MFU of PEAK.
"""

import json
import sys
import tempfile
from pathlib import Path

import common  # not even numpy: a TensorFlow of its own may stand alone

LENGTH, K, CHUNK, BATCH = 2048, 2, 64, 8
STEP_TOKENS = 59  # tokens/s of a train step of the 172M model, 2 threads of an AMD EPYC (README)
PEAK, MFU = 197e12, 0.4  # FLOP/s of a TPU v5e in bfloat16, and a share that is often reached
FORMATS = {"examples/s": ",.3f", "of ours": ".3g", "times what the TPU needs": ",.4g"}


def write(directory: Path, count: int):
    """Records with the features of `sequences.record`."""
    import numpy as np

    from retro_jax.store import records

    chunks = LENGTH // CHUNK

    def example(i):
        rng = np.random.default_rng(i)
        return {
            "tokens": rng.integers(1, 60_000, LENGTH).astype(np.uint16),
            "documents": rng.integers(0, 2**30, chunks).astype(np.int32),
            "neighbour_ids": rng.integers(0, 2**40, (chunks, K)),
            "distances": rng.random((chunks, K), np.float32),
            "neighbours": rng.integers(1, 60_000, (chunks, K, 2 * CHUNK)).astype(np.uint16),
            "first_scored": np.zeros(1, np.int32),
        }

    records.write(directory, map(example, range(count)))


def batches(directory: Path, count: int) -> int:
    """What training reads."""
    import itertools

    from retro_jax.config import ModelConfig, TrainConfig
    from retro_jax.methods.retro import Retro
    from retro_jax.store.records import Records
    from retro_jax.train import data

    config, method = TrainConfig(length=LENGTH, batch=BATCH), Retro(ModelConfig(), K)
    read = data.batches(Records(directory), config, method, 0)
    return sum(len(b["tokens"]) for b in itertools.islice(read, count // BATCH))


def random_records(directory: Path, count: int) -> int:
    """One record after the other, in a random order."""
    import numpy as np

    from retro_jax.store.records import Records

    opened = Records(directory)
    return sum(len(opened[i]["tokens"]) > 0 for i in np.random.default_rng(0).permutation(count))


def grains(directory: Path, count: int) -> int:
    """grain's reader; features stand where ours find them."""
    import grain
    import numpy as np

    from retro_jax.store.records import Records

    opened, seen = Records(directory), 0
    for path in sorted(directory.glob("*.tfrecord")):
        for payload in grain.experimental.TFRecordIterDataset(str(path)):
            for name, (dtype, shape) in opened.features.items():
                at = opened._offsets[name]
                np.frombuffer(payload, dtype, int(np.prod(shape)), at).reshape(shape).copy()
            seen += 1
    return seen


def tensorflow(directory: Path, count: int) -> int:
    """tf.data; uses nothing of ours."""
    import tensorflow as tf

    layout = json.loads((directory / "layout.json").read_text())["features"]
    wanted = {n: layout[n]["shape"] for n in ("tokens", "neighbours")}
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in wanted}

    def parse(record):
        found = tf.io.parse_single_example(record, features)
        return {
            name: tf.cast(tf.reshape(tf.io.decode_raw(found[name], tf.uint16), shape), tf.int32)
            for name, shape in wanted.items()
        }

    dataset = tf.data.TFRecordDataset([str(p) for p in sorted(directory.glob("*.tfrecord"))])
    dataset = dataset.map(parse, tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return sum(len(b["tokens"]) for b in dataset.as_numpy_iterator())


READERS = {
    "batches": batches,
    "Records": random_records,
    "grain": grains,
    "tf.data": tensorflow,
}


def needed() -> dict[str, float]:
    """Examples a second that the 172M model's train step reads, by machine."""
    from retro_jax.model import sizes

    (model,) = (model for _, name, model in sizes.PAPER if name == "172M")
    flops = sizes.forward_flops(model, sizes.VOCAB, LENGTH, K)
    return {
        "needed on 2 CPU threads": STEP_TOKENS / LENGTH,
        "needed on a TPU v5e": PEAK * MFU / (3 * flops),
    }


def main():
    parser = common.parser(__doc__, corpus=False)
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tensorflow-python", metavar="PATH", help="an interpreter that has it")
    parser.add_argument("--worker", nargs=3, help="for itself")
    args = common.parse(parser, records=16)
    if args.worker:
        name, directory, count = args.worker
        return common.serve({"read": lambda: READERS[name](Path(directory), int(count))})
    count = max(1, args.records // BATCH) * BATCH
    tf_python = args.tensorflow_python
    if not tf_python and common.installed("tf.data", "tensorflow"):
        tf_python = sys.executable
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), count)
        pythons = dict.fromkeys(READERS, sys.executable) | {"tf.data": tf_python}
        workers = {
            name: common.Worker("--worker", name, directory, str(count), python=python)
            for name, python in pythons.items()
            if python
        }
        answers = common.in_turns(workers, "read", args.rounds)
        for worker in workers.values():
            worker.close()
    assert {a["result"] for a in answers.values()} == {count}
    rate = {name: count / a["seconds"] for name, a in answers.items()} | needed()
    tpu = rate["needed on a TPU v5e"]
    rows = [
        {
            "reader": name,
            "examples/s": value,
            "of ours": value / rate["batches"],
            "times what the TPU needs": value / tpu,
        }
        for name, value in rate.items()
    ]
    title = f"{count:,} records of {LENGTH} tokens, k = {K}, medians of {args.rounds}"
    return common.show({title: rows}, FORMATS, args.json)


if __name__ == "__main__":
    main()
