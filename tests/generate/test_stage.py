"""`retro generate`: the config's prompt, a file of prompts, a person who types."""

import dataclasses
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_jax.config.request import Request
from retro_jax.errors import UserError
from retro_jax.generate import interactive, show, stage
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator
from retro_jax.store.workdir import WorkDir

M = 16


@pytest.fixture
def root(finished, tmp_path):
    """A copy of the finished working directory."""
    shutil.copytree(finished, tmp_path / "w")
    return tmp_path / "w"


def test_the_configs_prompt_is_continued_and_what_was_read_is_kept(finished):
    result = json.loads((finished / "generate.json").read_text())
    assert result["prompt"] == "kara lopo minel "
    assert result["chunks"]
    assert set(result) == {f.name for f in dataclasses.fields(Completion)}


def test_a_file_of_prompts_is_continued_in_order(small, root, tmp_path, generator):
    file = tmp_path / "some.txt"
    prompts = ["kara lopo", "minel tenis surra", "lora", "kais mipo", "tenra"]
    file.write_text("\n\n".join(prompts))
    out = stage.generate_file(WorkDir(root, small), file, rows=2)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [m["prompt"] for m in made] == prompts
    for m in made:
        assert m["tokens"] == generator.generate(m["prompt"], tokens=40).tokens
    before = out.stat().st_mtime_ns
    assert stage.generate_file(WorkDir(root, small), file, rows=2).stat().st_mtime_ns == before


def test_a_line_of_jsonl_has_fields_of_its_own(small, root, tmp_path):
    file = tmp_path / "some.jsonl"
    lines = [{"prompt": "kara", "tokens": 3}, {"prompt": "lopo", "k": 0, "stop": ["a"], "contributions": True},
             {"prompt": "lopo", "contributions": True, "where": {"licence": ["none"]}}]  # fmt: skip
    file.write_text("\n".join(json.dumps(line) for line in lines))
    out = stage.generate_file(WorkDir(root, small), file, rows=1)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert (len(made[0]["tokens"]), made[1]["retrieval"], made[2]["retrieval"]) == (3, "off", "on")
    assert "a" not in made[1]["text"]
    assert all(c["neighbours"] == [] for c in made[2]["chunks"])


def test_what_was_interrupted_goes_on(small, root, tmp_path, monkeypatch):
    """After the last block; the result is that of a run that was not interrupted."""
    file = tmp_path / "some.txt"
    file.write_text("\n".join(f"kara {'lopo ' * i}" for i in range(10)))
    whole = stage.generate_file(WorkDir(root, small), file, rows=1).read_text()
    shutil.rmtree(root / "completions")
    blocks, generate_all = [], Generator.generate_all

    def dies(self, requests, *rest):
        if len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(len(requests))
        return generate_all(self, requests, *rest)

    monkeypatch.setattr(Generator, "generate_all", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.generate_file(WorkDir(root, small), file, rows=1)
    assert not (root / "completions" / "some").exists()
    blocks.clear()
    again = stage.generate_file(WorkDir(root, small), file, rows=1).read_text()
    assert blocks == [2]
    before, after = ([json.loads(line) for line in text.splitlines()] for text in (whole, again))
    for name in ("text", "tokens", "chunks"):
        assert [c[name] for c in before] == [c[name] for c in after]


def test_a_file_that_changed_is_not_mixed_with_what_it_was(small, root, tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("kara")
    stage.generate_file(WorkDir(root, small), file)
    file.write_text("lopo")
    with pytest.raises(UserError, match=r"completions/some.*prompts"):
        stage.generate_file(WorkDir(root, small), file)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "kara"}\n{"prompt": ', r"a.jsonl: line 2: not a line of JSON"),
        (
            "a.jsonl",
            '{"prompt": "a", "k": ' + "9" * 5000 + "}",
            r"a.jsonl: line 1: not a line of JSON",
        ),
        ("a.jsonl", '{"prompt": ' + "[" * 50_000, r"a.jsonl: line 1: not a line of JSON"),
        ("a.jsonl", r'{"prompt": "\ud800"}', r"line 1: field prompt is not UTF-8"),
        ("a.jsonl", '["kara"]', r"line 1 is no request; write \{"),
        ("a.jsonl", '{"prompt": "kara", "tokns": 3}', r"line 1: .*tokns.*did you mean .*tokens"),
        ("a.jsonl", '{"prompt": "kara", "top_p": 2}', r"line 1: .*top_p = 2\.0: must be above 0"),
        ("a.jsonl", '{"prompt": 5}', r"line 1: .*prompt"),
        ("a.txt", "\n \n", r"a.txt: holds no prompt"),
        ("a.txt", "kara \udcff", r"--prompts=.*a.txt: cannot be read"),
    ],
)
def test_a_line_that_is_no_request_is_named(small, finished, tmp_path, name, text, message):
    file = tmp_path / name
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        stage.generate_file(WorkDir(finished, small), file)
    assert not (finished / "completions").exists()


@settings(max_examples=200, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(
                st.floats(0.02, 1), st.integers(1, 60), st.floats(), st.integers(-(2**40), 2**40)
            )
            for name in (
                "temperature",
                "top_k",
                "top_p",
                "min_p",
                "repetition_penalty",
                "seed",
                "tokens",
            )
        },
    )
)
def test_whatever_numbers_are_asked_for_they_are_refused_or_can_be_drawn_with(generator, values):
    """Never an error of another kind, never a token that is none."""
    request = dataclasses.replace(Request("kara"), **{"tokens": 3, "temperature": 1.0} | values)
    if any(not isinstance(getattr(request, n), int) for n in ("top_k", "seed", "tokens")):
        return  # which a config, a file and a body refuse
    try:
        generator.check(request)
    except UserError as error:
        refused = str(error)
    else:
        refused = None
    if refused:
        assert any(name in refused for name in values)
        return
    request = dataclasses.replace(request, tokens=min(request.tokens, 3))
    completion = generator.generate_all([request])[0]
    assert all(3 <= t < 320 for t in completion.tokens)
    assert all(p <= 0 for p in completion.logprobs)


def test_commands_of_a_conversation(small):
    request = interactive.command(small, Request(), ":set temperature=0.8")
    request = interactive.command(small, request, ":set stop=['x']")
    request = interactive.command(small, request, ":set prompt=a b")
    assert (request.temperature, request.stop, request.prompt) == (0.8, ("x",), "a b")
    assert interactive.command(small, request, ":show") == request
    for line, message in (
        (":set temprature=1", "did you mean"), (":set top_p=3", "must be above 0"), (":fly", "no such command"),
        (":set", "no such command"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            interactive.command(small, request, line)


def talk(master, text: str, until: str, seconds: float = 120) -> str:
    """Types, and reads until `until` is there."""
    os.write(master, text.encode())
    said, end = "", time.monotonic() + seconds
    while until not in said:
        assert time.monotonic() < end, said
        if select.select([master], [], [], 1)[0]:
            said += os.read(master, 65536).decode(errors="replace")
    return said


def test_a_person_talks_to_it_with_editing_and_history(small, root, tmp_path):
    """In a terminal of its own: a prompt, a setting, the line before again with the arrow up."""
    config = tmp_path / "c.py"
    config.write_text(
        "from retro_jax.config import *\nfrom conftest import small_experiment\n"
        f"def get_config():\n    return to_config_dict(small_experiment({small.corpus.source[5:-6]!r}))\n"
    )
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "retro_jax.cli", "generate", f"--config={config}", f"--workdir={root}",
               "--interactive"]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
    try:
        talk(master, "", "> ")
        assert "read after chunk" in talk(master, "kara lopo minel\n", "read after chunk 1")
        assert "read after chunk" in talk(master, "\x1b[A\n", "read after chunk 1")
        assert "must be above 0" in talk(master, ":set top_p=7\n", "must be above 0")
        os.write(master, b":quit\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(master)
        os.close(slave)
    assert "kara lopo minel" in (root / ".generate_history").read_text()


def test_a_token_has_the_colour_of_the_neighbour_that_helped_it_most():
    neighbours = [{"contributions": [0.5, 0.01, -1]}, {"contributions": [0.7, 0.05, -2]}]
    sample = {"text": "abcd", "ends": [1, 2, 3, 4], "tokens": [7, 8, 9, 10], "first": 5,
              "chunks": [{"begin": 3, "neighbours": []}, {"begin": 6, "neighbours": neighbours}]}  # fmt: skip
    assert show.helpers(sample) == [None, 1, None, None]
    text = show.continuation(sample)
    assert text.plain == "abcd"
    styles = [str(s.style) for s in text.spans if s.style]
    assert styles == [f"{show.colour_of(1)} underline"]
