"""Retrieval for a model that exists: through every stage, and out again."""

import dataclasses
import json
import shutil
from pathlib import Path

import foreign
import jax
import numpy as np
import pytest
from conftest import altered, make_mesh, write_corpus
from safetensors.numpy import load_file, save_file

from retro_jax.cli import main as cli
from retro_jax.cli.config_file import load
from retro_jax.config import MeshConfig
from retro_jax.errors import UserError
from retro_jax.methods.method import method_of
from retro_jax.model import functional
from retro_jax.store.workdir import WorkDir
from retro_jax.train import loop, restore
from retro_jax.weights import directory, export
from retro_jax.weights.card import Card
from retro_jax.weights.placement import place

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "model.reading.chunk": 16, "model.reading.retrieved": 32, "model.reading.cca_layers": "(2,)",
    "model.encoder.layers": 1,
    "train.length": 64, "train.batch": 8, "train.steps": 6, "train.warmup": 2, "train.log_every": 1,
    "train.learning_rate": 1e-2, "train.checkpoint_every": 3, "methods": "('retro','language_model')",
    "evaluate.stride": 32, "evaluate.batch": 8, "evaluate.generated": 4, "corpus.heldout": 0.2,
    "evaluate.conditions": "('random',)", "retrieval.settings.tfidf.dim": 16, "generate.tokens": 20,
    "mesh.data": 4, "mesh.model": 2,
}  # fmt: skip


def arguments(base, corpus, workdir, **changes) -> list[str]:
    """What follows a stage's name on the command line; a change's name has __ for the point."""
    fields = SMALL | {"corpus.source": f"text:{corpus}/*.txt"}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return [
        f"--config={ROOT}/experiments/retrofit.py:{base}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("texts")
    write_corpus(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama with its tokenizer, as others save it."""
    directory = tmp_path_factory.mktemp("base")
    foreign.two_layers().save_pretrained(directory)
    foreign.save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def fitted(base, corpus, tmp_path_factory):
    """A working directory in which every stage has run."""
    root = tmp_path_factory.mktemp("fitted")
    assert cli.main(["run", *arguments(base, corpus, root)]) == 0
    return root


def parsed(given):
    config, _, *fields = given
    return load(config.removeprefix("--config="), fields)


def counts(root, stage="evaluate/heldout") -> dict:
    return json.loads((root / stage / "manifest.json").read_text())["counts"]


def test_without_neighbours_it_is_the_base_to_the_last_bit(fitted):
    """The language model of a frozen base is the base; decay, clipping and moments leave it alone (traps 25, 26)."""
    bits = counts(fitted)["bits_per_byte"]
    assert bits["off"] == bits["language_model"]
    assert bits["on"] != bits["off"]
    assert counts(fitted, "train/language_model") | {"parameters": 0} == {
        "complete": True, "parameters": 0, "steps": 0, "tokens_per_second": None, "best": None,
        "planned": 0,
    }  # fmt: skip


def test_a_base_that_is_used_as_it_is_is_not_made_again(fitted):
    """Or all that was scored with it would be, too. Nor does it matter how long others are trained."""
    manifest, e = fitted / "train/language_model/manifest.json", WorkDir(fitted).experiment
    before = manifest.read_bytes()
    for steps in (e.train.steps, e.train.steps + 1):
        other = dataclasses.replace(e, train=dataclasses.replace(e.train, steps=steps))
        loop.train(WorkDir(fitted, other), method_of(other, "language_model"))
        assert manifest.read_bytes() == before


def test_checkpoints_hold_what_was_trained_and_nothing_of_the_base(fitted, base, corpus):
    e = parsed(arguments(base, corpus, fitted))
    about = fitted / "train" / "retro" / "checkpoints" / "6" / "state" / "_METADATA"
    leaves = [
        [part["key"] for part in leaf["key_metadata"]]
        for leaf in json.loads(about.read_text())["tree_metadata"].values()
    ]
    given = directory.open_directory(base)
    added = method_of(e, "retro").added(given.vocab)
    assert {leaf[-1] for leaf in leaves if leaf[0] == "params"} == added
    assert {leaf[-1] for leaf in leaves if leaf[0] == "opt_state" and "." in leaf[-1]} == added
    assert {leaf[0] for leaf in leaves if "." in leaf[-1]} == {"params", "opt_state"}


def test_it_resumes_and_another_base_is_refused(base, corpus, fitted, tmp_path, capsys):
    work, own = tmp_path / "work", tmp_path / "base"
    shutil.copytree(base, own)
    work.mkdir()
    shutil.copytree(fitted / "prepare", work / "prepare")
    tokenizer = base / "tokenizer.json"
    changes = {"methods": "('retro',)", "evaluate__conditions": "('random',)"}
    given = arguments(own, corpus, work, corpus__tokenizer=tokenizer, **changes)
    e = parsed(given)
    checkpoints = fitted / "train" / "retro" / "checkpoints"
    shutil.copytree(checkpoints / "3", work / "train" / "retro" / "checkpoints" / "3")
    settings = json.loads((fitted / "train" / "retro" / "manifest.json").read_text())
    settings["counts"] = {"planned": 6}
    (work / "train" / "retro" / "manifest.json").write_text(json.dumps(settings))
    assert cli.main(["train", *given]) == 0
    assert "continues from step 3" in capsys.readouterr().err
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        one, other = (
            restore.restore_trained(WorkDir(root, e), method_of(e, "retro"), mesh)
            for root in (work, fitted)
        )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    file = own / "model.safetensors"  # as large as before, and with other numbers
    save_file({n: v + 1 for n, v in load_file(file).items()}, file, metadata={"format": "pt"})
    assert cli.main(["evaluate", *given]) == 2
    assert "was trained on other weights than train.base now holds" in capsys.readouterr().err
    (own / "config.json").write_text((own / "config.json").read_text() + " ")
    assert cli.main(["train", *given]) == 2
    assert "train.base was" in capsys.readouterr().err


def test_what_does_not_fit_the_base_is_said(base, corpus, fitted, tmp_path, capsys):
    def says(message, **changes):
        assert cli.main(["train", *arguments(base, corpus, tmp_path / "w", **changes)]) == 2
        assert message in capsys.readouterr().err

    shutil.copytree(fitted / "prepare", tmp_path / "w" / "prepare")
    says("config field model.decoder.heads = 8: the weights of train.base", model__decoder__heads=8)
    says("no such directory of a pre-trained model", train__base=str(tmp_path / "no"))
    given = arguments(base, corpus, tmp_path / "new", model__decoder__d=128)
    assert cli.main(["prepare", *given]) == 2  # before hours are spent on a corpus
    assert (
        "config field model.decoder.d = 128: the weights of train.base" in capsys.readouterr().err
    )
    assert not (tmp_path / "new").exists()
    given = arguments(base, corpus, tmp_path / "new", corpus__source="")
    assert cli.main(["prepare", *given]) == 2
    assert "config field corpus.source = '': must be python:, text:GLOB" in capsys.readouterr().err
    says("must be at least 1", train__steps=0, train__base="")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokenizer + "\n")
    says("was prepared with another tokenizer than", train__base=str(other))
    (other / "tokenizer.json").unlink()
    says("no tokenizer.json or tokenizer.model there", train__base=str(other))
    assert not (tmp_path / "w" / "train").exists()
    assert cli.main(["train", f"--config={ROOT}/experiments/retrofit.py"]) == 2
    assert "name the base" in capsys.readouterr().err


def test_a_thawed_base_learns_slowly_and_cannot_predict_what_is_no_token(
    base, corpus, fitted, tmp_path
):
    """Its weights move by about base_rate of what the new ones do; rows of no token stay 0."""
    shutil.copytree(fitted / "prepare", tmp_path / "prepare")
    changes = {"train__freeze": False, "train__base_rate": 0.01, "methods": "('retro',)"}
    changes |= {"train__weight_decay": 0.0, "model__reading__cca_zero": True}
    given = arguments(base, corpus, tmp_path, **changes)
    assert cli.main(["train", *given]) == 0
    e, held = parsed(given), directory.open_directory(base)
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        after = restore.restore_trained(WorkDir(tmp_path, e), method_of(e, "retro"), mesh)
        before = place(held, e.model, False, mesh)
        fresh = functional.init(e.model, held.vocab, e.train.seed)
    # Adam's first steps are of the learning rate's size, whatever the gradient's.
    moved = {n: np.abs(np.asarray(after[n]) - before[n]).max() for n in before}
    new = {n: np.abs(np.asarray(after[n]) - fresh[n]).max() for n in fresh if n not in before}
    assert moved.pop("readout_bias") == 0
    assert 0 < max(moved.values()) < 0.02 * max(new.values())
    unused = held.read("readout_bias") < 0
    assert unused.sum() > 4
    assert not np.asarray(after["embedding"])[unused].any()


def test_export_gives_the_same_weights_back(fitted, base, corpus, tmp_path, monkeypatch):
    """The whole, in several files; then as a base that is not trained."""
    given = arguments(base, corpus, fitted)
    monkeypatch.setattr(export, "SHARD", 100_000)
    assert cli.main(["export", *given, f"--to={tmp_path}/whole"]) == 0
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 2
    e = parsed(given)
    read, mesh = directory.open_directory(tmp_path / "whole"), make_mesh(1, 4, 2)
    assert read.retrieval
    with jax.set_mesh(mesh):
        params = restore.restore_trained(WorkDir(fitted, e), method_of(e, "retro"), mesh)
        back = place(read, read.model, True, mesh)
    assert back.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(value, back[name])
    text = (tmp_path / "whole" / "README.md").read_text()
    bits = counts(fitted)["bits_per_byte"]
    assert f"| on | {bits['on']:.4f} |" in text
    assert f"base_model: {base.name}" in text
    work = tmp_path / "again"
    again = arguments(tmp_path / "whole", corpus, work, train__steps=0)
    for stage in ("prepare", "train", "evaluate"):
        assert cli.main([stage, *again]) == 0
    for name, value in counts(work)["bits_per_byte"].items():
        assert value == bits[name], name


def test_the_decoder_of_a_frozen_base_is_exported_as_it_came(
    fitted, base, corpus, tmp_path, capsys
):
    given = arguments(base, corpus, fitted)
    to = tmp_path / "decoder"
    assert cli.main(["export", *given, "--decoder", f"--to={to}"]) == 0
    before, after = (load_file(d / "model.safetensors") for d in (base, to))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    ids = np.random.default_rng(0).integers(3, 259, (2, 20))
    theirs = foreign.hf.AutoModelForCausalLM.from_pretrained(to)
    np.testing.assert_array_equal(
        foreign.logits(theirs, ids), foreign.logits(foreign.two_layers(), ids)
    )
    assert cli.main(["export", *given, f"--to={to}"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", *given]) == 2
    assert "--to is missing" in capsys.readouterr().err
    assert cli.main(["export", *given, "--method=atlas", f"--to={tmp_path}/atlas"]) == 2
    assert "the network of atlas is one of its own" in capsys.readouterr().err


def exported(work, name, to) -> dict:
    """The decoder of a trained method, in Hugging Face's layout; its config."""
    method, mesh = method_of(work.experiment, name), make_mesh(1, 8, 1)
    with jax.set_mesh(mesh):
        params = restore.restore_trained(work, method, mesh)
    about = Card(work.experiment, method.reads, {}, "")
    return export.export(about, params, work.prepared("tokenizer"), to, True)


TRAINED_HERE = {
    "llama": {"norm": "rms", "gated": True, "activation": "silu", "tied": False, "kv_heads": 1},
    "gpt_neox": {"norm": "layer", "norm_bias": True, "qkv_bias": True, "out_bias": True,
                 "ffw_bias": True, "tied": False, "rotary_share": 0.5, "activation": "gelu_exact"},
    "gpt2": {"norm": "layer", "norm_bias": True, "qkv_bias": True, "out_bias": True, "ffw_bias": True,
             "positions": "learned", "max_length": 64},
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAINED_HERE)
def test_a_decoder_trained_here_computes_the_same_with_transformers(
    kind, small, finished, tmp_path, capsys
):
    """Export in the family's layout; read again it is the same weights, with the same tokens."""
    fields = {"positions": "rotary", "scale_embedding": False, "norm_eps": 1e-5}
    model = altered(small.model, decoder=fields | TRAINED_HERE[kind])
    train = dataclasses.replace(small.train, steps=2)
    e = dataclasses.replace(small, model=model, train=train, mesh=MeshConfig(data=8))
    shutil.copytree(finished / "prepare", tmp_path / "prepare")
    loop.train(WorkDir(tmp_path, e), method_of(e, "language_model"))
    config = exported(WorkDir(tmp_path, e), "language_model", tmp_path / "out")
    assert config["model_type"] == kind
    given, mesh = directory.open_directory(tmp_path / "out"), make_mesh(1, 8, 1)
    with jax.set_mesh(mesh):
        params = restore.restore_trained(WorkDir(tmp_path, e), method_of(e, "language_model"), mesh)
        back = place(given, model, False, mesh)
        for name, value in params.items():
            np.testing.assert_array_equal(value, back[name])
        ids = np.random.default_rng(0).integers(4, given.vocab, (8, 30)).astype(np.int32)
        got = np.asarray(jax.jit(functional.apply, static_argnums=0)(model, params, ids))
    theirs = foreign.hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(got, foreign.logits(theirs, ids.astype(np.int64)), atol=1e-4)


def test_positions_of_the_papers_have_no_family(small, finished, tmp_path, capsys):
    with pytest.raises(
        UserError, match=r"model\.decoder\.positions = 'relative'(.|\n)*export without --decoder"
    ):
        exported(WorkDir(finished, small), "retro", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_describe_says_what_a_base_is(base, fitted, corpus, tmp_path, capsys):
    assert cli.main(["describe", str(base)]) == 0
    text = capsys.readouterr().out
    assert "a decoder, llama" in text
    assert "model.decoder.positions" in text
    assert "encoder" not in text
    given = arguments(base, corpus, fitted)
    assert cli.main(["export", *given, f"--to={tmp_path}/whole"]) == 0
    assert cli.main(["describe", str(tmp_path / "whole")]) == 0
    assert "a whole RETRO, retro_jax" in capsys.readouterr().out
