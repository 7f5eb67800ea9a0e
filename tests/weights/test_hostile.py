"""Directories that are damaged, cut off, mismatched or made to harm: one clear message, and nothing else."""

import json
import random
import shutil
import struct

import foreign
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from retro_jax.config import DecoderConfig, EncoderConfig, ModelConfig, ReadingConfig
from retro_jax.errors import UserError
from retro_jax.weights import exported, pretrained
from retro_jax.weights.directory import open_directory

OWN = ModelConfig(
    decoder=DecoderConfig(d=16, layers=2, heads=2, head_size=8),
    encoder=EncoderConfig(d=16, layers=1, heads=2, head_size=8),
    reading=ReadingConfig(cca_layers=(2,), chunk=8, retrieved=16),
)


@pytest.fixture(scope="module", params=["gpt2", "qwen3", "own"])
def sound(request, tmp_path_factory):
    """A directory without fault."""
    directory = tmp_path_factory.mktemp("sound")
    if request.param == "own":
        shapes = pretrained.shapes(OWN, 64, True)
        draw = np.random.default_rng(0).normal
        held = {n: draw(size=shape).astype(np.float32) for n, shape in shapes.items()}
        save_file(held, directory / "model.safetensors")
        config = exported.describe(OWN, 64, True, "float32")
        (directory / "config.json").write_text(json.dumps(config))
    else:
        foreign.make(request.param).save_pretrained(directory)
    return directory


def read_all(directory):
    given = open_directory(directory)
    for name in given.names():
        np.asarray(given.read(name)).sum()


def what_is_said(directory) -> str:
    """By the message that refuses it; nothing, if all of it is read. Any other exception is a fault."""
    try:
        read_all(directory)
    except UserError as error:
        return str(error)
    return ""


def test_whatever_befalls_a_file_it_is_read_or_refused(sound, tmp_path):
    """Flipped bits, bytes and fields, pieces cut out or doubled, ends cut off: 150 of them, by a fixed seed."""
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for trial in range(150):
        directory = tmp_path / str(trial)
        shutil.copytree(sound, directory)
        name = rng.choice(("config.json", "model.safetensors"))
        file = directory / name
        data = bytearray(file.read_bytes())
        header = 8 + int.from_bytes(data[:8], "little") if name != "config.json" else len(data)
        at = rng.randrange(header)
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                del data[at : at + rng.randrange(1, 40)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
            case 4:
                del data[rng.randrange(len(data)) :]
        file.write_bytes(data)
        said = what_is_said(directory)
        outcomes["refused" if said else "read"] += 1
        assert "\n" not in said
        assert not said or str(directory) in said
        shutil.rmtree(directory)
    assert outcomes["refused"] > 50, outcomes


def test_whatever_a_field_says_it_is_read_or_refused(sound, tmp_path):
    """Every field of config.json with every kind of value."""
    shutil.copytree(sound, tmp_path / "d")
    file = tmp_path / "d" / "config.json"
    config = json.loads(file.read_text())
    changes = [(config, name) for name in config]
    model = config.get("model", {})
    parts = [part for part in model.values() if isinstance(part, dict)]
    changes += [(fields, name) for fields in (model, *parts) for name in fields]
    for fields, name in changes:
        kept = fields[name]
        for value in (None, -1, 0, 10**30, 1e300, "x", [], {}, True, [1], float("nan")):
            fields[name] = value
            file.write_text(json.dumps(config))
            said = what_is_said(tmp_path / "d")
            assert not said or str(tmp_path) in said, name
        fields[name] = kept


def says(directory, message):
    with pytest.raises(UserError, match=message):
        read_all(directory)


def test_headers_that_lie_are_refused(sound, tmp_path):
    """Offsets past the end or over one another, sizes that overflow, a header of terabytes."""
    for change in (
        lambda h, n: h[n].update(data_offsets=[0, 2**62]),
        lambda h, n: h[n].update(data_offsets=[-4, 0]),
        lambda h, n: h[n].update(shape=[2**32, 2**32]),
        lambda h, n: h[n].update(shape=[-1, 4]),
        lambda h, n: h[n].update(shape="many"),
        lambda h, n: h[n].update(dtype="OBJECT"),
        lambda h, n: h.update({n: [1, 2]}),
    ):
        directory = tmp_path / "d"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(sound, directory)
        file = directory / "model.safetensors"
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        change(header, next(n for n in header if n != "__metadata__"))
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        says(directory, "damaged or cut off")
    file.write_bytes(struct.pack("<Q", 2**60) + data[8:])
    says(directory, "damaged or cut off")
    file.unlink()
    says(directory, "no .*safetensors there")


def test_an_index_cannot_name_files_elsewhere(sound, tmp_path):
    directory = tmp_path / "d"
    shutil.copytree(sound, directory)
    names = list(load_file(directory / "model.safetensors"))
    index = directory / "model.safetensors.index.json"
    for name, message in (
        ("../secret.safetensors", "is no file of this directory"),
        ("/etc/passwd", "is no file of this directory"),
        ("model-2.safetensors", "missing, though"),
    ):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
        says(directory, message)
    for text in ("[]", "{", '{"weight_map": 3}', "[" * 100_000):
        index.write_text(text)
        says(directory, "no index of shards")
    index.unlink()
    shutil.copy(directory / "model.safetensors", directory / "consolidated.safetensors")
    read_all(directory)  # the one that everybody reads
    (directory / "model.safetensors").rename(directory / "copy.safetensors")
    says(directory, "is in consolidated.safetensors too; keep one of them")


def test_kinds_of_numbers_that_no_weight_has(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "d")
    file = tmp_path / "d" / "model.safetensors"
    held = load_file(file)
    save_file({n: v.astype(np.int8) for n, v in held.items()}, file, metadata={"format": "pt"})
    says(tmp_path / "d", "is of type I8; known: F32, F16, BF16")


def test_a_directory_of_pickles_is_refused_and_none_is_read(tmp_path):
    """pytorch_model.bin can run anything when it is read; so it is not."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    says(tmp_path, "no .*safetensors there.*a pickle can run anything")
    says(tmp_path / "nowhere", "no such directory of a pre-trained model")
    (tmp_path / "config.json").unlink()
    says(tmp_path, "a model's directory has a config.json")
