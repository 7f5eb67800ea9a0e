"""Bad input: one line that names the field or file and the remedy, exit status 2, nothing left."""

import json
import resource
import subprocess
import sys

import pytest
from conftest import write_corpus

from retro_jax import __version__
from retro_jax.cli import main as cli
from retro_jax.cli.commands import COMMANDS
from retro_jax.store import artefact

CONFIG = "experiments/quickstart.py"


def retro(capfd, *arguments):
    """(exit status, the lines on stderr)."""
    status = cli.main([*map(str, arguments)])
    return status, capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "is no working directory"),
        (["run", "--config=nowhere.py"], "nowhere.py"),
        (["run", f"--config={CONFIG}", "--config.train.stepz=3"], "did you mean train.steps?"),
        (["run", f"--config={CONFIG}", "--config.train.steps=many"], "steps"),
        (["run", f"--config={CONFIG}", "--config.train.steps=0"], "train.steps = 0: must be at least 1"),
        (["run", f"--config={CONFIG}", "--config.train.length=100"], "train.length = 100: must be a"),
        (["run", f"--config={CONFIG}", "--config.evaluate.stride=256"], "below train.length = 256"),
        (["run", f"--config={CONFIG}", "--config.model.encoder.d=64"], "model.encoder.share_embedding"),
        (["run", f"--config={CONFIG}", "--config.retrieval.embedder=glove"], "retrieval.embedder = 'glove'"),
        (["run", "extra", f"--config={CONFIG}", "more"], "not understood: more"),
        (["run", f"--config={CONFIG}", "--workdri=x"], "workdri"),
        (["run", f"--config={CONFIG}", "--workdir=memory://bucket/run"], "must be a folder, local or mounted"),
        (["run", f"--config={CONFIG}", "--config.retrieval.embedder=words"], "retrieval.index"),
        (["sizes", "--config=x"], "not understood: --config=x"),
    ],
)  # fmt: skip
def test_bad_arguments(capfd, tmp_path, monkeypatch, arguments, message):
    if "run" in arguments and "--workdri=x" not in arguments:
        arguments = [*arguments[:1], f"--workdir={tmp_path}/w", *arguments[1:]]
    status, error = retro(capfd, *arguments)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "w").exists()


def test_an_unknown_field_in_the_file_is_named_with_the_nearest(capfd, tmp_path):
    file = tmp_path / "c.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'train': {'learning_rat': 1.0}})\n"
    )
    status, error = retro(capfd, "prepare", f"--config={file}", f"--workdir={tmp_path}/w")
    assert (status, error.count("\n")) == (2, 1)
    assert "no field train.learning_rat: did you mean train.learning_rate?" in error


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("{'train': {'steps': '100'}}", "train.steps = '100': must be of type int"),
        ("{'train': {'steps': 10.0}}", "train.steps = 10.0: must be of type int"),
        ("{'train': 3}", "train = 3: must be of type TrainConfig"),
        (
            "{'model': {'reading': {'cca_layers': 2}}}",
            "model.reading.cca_layers = 2: must be of type",
        ),
        ("{'train': {'learning_rate': -1.0}}", "train.learning_rate = -1.0: must not be negative"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named(capfd, tmp_path, fields, message):
    file = tmp_path / "c.py"
    file.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({fields})\n"
    )
    status, error = retro(capfd, "prepare", f"--config={file}", f"--workdir={tmp_path}/w")
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


def bad_corpus(tmp_path, name, data):
    write_corpus(tmp_path / "corpus")
    if name:
        (tmp_path / "corpus" / name).write_bytes(data)
    return [
        "prepare", f"--config={CONFIG}", f"--workdir={tmp_path}/w", "--config.corpus.vocab=320",
        f"--config.corpus.source=text:{tmp_path}/corpus/*.txt", "--config.retrieval.settings.tfidf.dim=8",
        "--config.corpus.heldout=0.2", "--config.corpus.bad_documents=refuse",
        "--config.corpus.largest_document=9000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.txt", b"", "empty"),
        ("binary.txt", b"\x7fELF\0\0", "binary"),
        ("latin.txt", b"caf\xe9 au lait", "not UTF-8"),
        ("short.txt", b"kara lopo", "fewer than a chunk of 64"),
        ("large.txt", b"kara lopo " * 1000, "more than 9,000 bytes"),
    ],
)
def test_documents_that_cannot_be_used(capfd, tmp_path, name, data, reason):
    arguments = bad_corpus(tmp_path, name, data)
    status, error = retro(capfd, *arguments)
    message = error.splitlines()[-1]
    assert status == 2
    assert message.startswith(f"retro: {name}: the document")
    assert reason in message
    assert "bad_documents=skip" in message
    assert not list((tmp_path / "w").rglob("*.partial"))
    # the remedy that the message names works, and counts what it left out
    status, error = retro(
        capfd, *arguments, "--config.corpus.bad_documents=skip", f"--workdir={tmp_path}/w2"
    )
    assert status == 0, error
    steps = ("corpus", "chunks/train", "chunks/heldout")
    manifests = [artefact.read(tmp_path / "w2" / "prepare" / step) for step in steps]
    counts = [m["counts"] for m in manifests]
    bad = sum(counts[0]["bad_documents"].values())
    assert bad + sum(c.get("short_documents_skipped", 0) for c in counts) == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("corpus.source", "text:{}/*.nothing", "no file matches"),
        ("corpus.source", "text:{}", "is a folder; write"),
        ("corpus.source", "", "must be python:"),
        ("retrieval.source", "1*python: + 1*text:{}/*.nothing", "no file matches"),
        ("corpus.heldout_sources", "('more=jsonl:{}/more.jsonl',)", "no file matches"),
        ("corpus.tokenizer", "{}/tokenizer.json", "tokenizer.json"),
        ("retrieval.settings.bert.directory", "{}", "no config.json there"),
    ],
)  # fmt: skip
def test_files_that_a_later_step_needs_are_looked_for_first(capfd, tmp_path, field, value, message):
    bert = ["--config.retrieval.embedder=bert", "--config.retrieval.index=auto"]
    retrieval = bert if "bert" in field else []
    status, error = retro(
        capfd, "run", f"--config={CONFIG}", f"--workdir={tmp_path}/w", *retrieval,
        f"--config.{field}={value.format(tmp_path)}",
    )  # fmt: skip
    assert (status, error.count("\n")) == (2, 1), error
    assert field in error or field == "corpus.tokenizer"
    assert message in error
    assert not (tmp_path / "w").exists()


def test_what_an_experiment_file_raises_is_one_line(capfd):
    status, error = retro(capfd, "train", "--config=experiments/retro.py:999m")
    assert (status, error.count("\n")) == (2, 1)
    assert "999m: choose one of 172m" in error
    assert "Traceback" not in error


def test_a_stage_before_its_time_names_the_stage_to_run(capfd, tmp_path):
    for stage, first in (("train", "prepare"), ("evaluate", "prepare"), ("generate", "prepare")):
        status, error = retro(capfd, stage, f"--config={CONFIG}", f"--workdir={tmp_path}/w")
        assert status == 2
        assert f"`retro {first}`" in error


def test_a_directory_that_cannot_be_written(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = bad_corpus(tmp_path, None, None)
    arguments[2] = f"--workdir={tmp_path}/file/w"
    status, error = retro(capfd, *arguments)
    assert status == 2
    assert "another working directory" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("bytes_a_file", "dim", "step"),
    [(40_000, 8, "corpus"), (150_000, 150, "embedder"), (150_000, 8, "shards/train")],
)
def test_a_full_disk_stops_with_one_line_and_no_half_artefact(tmp_path, bytes_a_file, dim, step):
    """A limit on the size of a file fails the write just as a full disk does."""
    vectors = {"embedder": "tfidf", "rerank": "none", "index": "auto", "settings.tfidf.dim": dim}
    arguments = [*bad_corpus(tmp_path, None, None)]
    arguments += [f"--config.retrieval.{name}={value}" for name, value in vectors.items()]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))

    done = subprocess.run(
        [sys.executable, "-m", "retro_jax.cli", *arguments],
        preexec_fn=limit, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    assert f"prepare/{step}: cannot be written" in message
    assert "another working directory" in message
    assert not (tmp_path / "w" / "prepare" / step).exists()
    # with room again, the same command goes on from what is complete
    assert cli.main(arguments) == 0
    assert not list((tmp_path / "w").rglob("*.partial"))


def test_sizes_as_json_is_a_list_of_objects(capfd):
    assert cli.main(["sizes", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert len(rows) == 8
    assert rows[0]["parameters_non_embedding"] == 132_120_576


def test_help_and_mistakes_do_not_wait_for_jax():
    """And `retro plan` has to choose JAX's platform before JAX is there."""
    script = """
import sys
from retro_jax.cli import main
assert main.main(["train", "--help"]) == 0
assert main.main(["train", "nowhere"]) == 2
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_has_a_page_with_an_example_on_each(capfd):
    assert cli.main(["--help"]) == 0
    text = capfd.readouterr().out
    for name, command in COMMANDS.items():
        assert name in text
        assert cli.main([name, "--help"]) == 0
        page = capfd.readouterr().out
        assert command.example in page
        assert command.leaves in page


def test_the_version_is_said_and_a_stored_config_is_no_experiment(capfd, finished):
    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out == f"retro_jax {__version__}\n"
    assert cli.main(["config", f"--config={finished}/config.json"]) == 2
    assert "is used by naming the directory" in capfd.readouterr().err
