"""Text from outside does not steer a terminal, whichever way it is printed."""

import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from retro_jax import progress
from retro_jax.cli.main import main
from retro_jax.generate import show
from retro_jax.report import markdown
from retro_jax.terminal import Terminal, visible

HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\x08e\u202ef"


def test_controls_are_spelt_out_and_text_stays():
    assert visible(HOSTILE) == "a\\x1b]0;title\\x07b\\x1b[2Jc\\x9b31md\\x08e\\u202ef"
    assert visible("naïve\t日本語\n🙂") == "naïve\t日本語\n🙂"


@pytest.mark.parametrize(
    "draw", [str, Panel, lambda text: _table(text)], ids=["str", "box", "table"]
)
def test_what_rich_draws_has_only_its_own_controls(draw):
    file = io.StringIO()
    Terminal(file=file, force_terminal=True, width=200).print(draw(HOSTILE), style="bold")
    out = file.getvalue()
    assert "\\x1b]0;title" in out
    assert "\x1b[1m" in out  # rich's own
    assert not _parts(out)


def _table(text):
    made = Table(title=text)
    made.add_column(text)
    made.add_row(text)
    return made


def _parts(out):
    return [x for x in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\x08", "\u202e") if x in out]


def test_a_continuation_is_shown_as_it_comes():
    file = io.StringIO()
    with Live("", console=Terminal(file=file, force_terminal=True, width=200)) as live:
        live.update(show.plain(HOSTILE, HOSTILE), refresh=True)
    assert file.getvalue().count("\\x1b]0;title") >= 2
    assert "\x1b]" not in file.getvalue()


def test_messages_and_reports_spell_them_out(capfd):
    assert main(["database", f"--{HOSTILE}"]) == 2
    progress.say(HOSTILE)
    error = capfd.readouterr().err
    assert error.count("\\x1b]0;title") == 2
    assert main(["database", "--two\nlines"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not _parts(error)
    made = markdown._section(SimpleNamespace(title=HOSTILE, caption="", head=[HOSTILE], rows=[]))
    assert not _parts("".join(made) + markdown._code(HOSTILE))


NOISE = """
import os, sys
from retro_jax import progress

try:
    with progress.bar("what is done", 2) as advance, progress.hushed():
        os.write(2, b"noise of a library\\n")
        progress.say("a line of ours")
        advance(2)
        if "fails" in sys.argv:
            raise ValueError
finally:
    os.write(2, b"afterwards\\n")
"""


@pytest.mark.parametrize("words", [[], ["fails"]], ids=str)
def test_what_a_library_writes_is_kept_back_unless_it_fails(words):
    done = subprocess.run(
        [sys.executable, "-c", NOISE, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (not words)
    for ours in ("what is done", "a line of ours", "afterwards"):
        assert ours in done.stderr
    assert ("noise of a library" in done.stderr) == bool(words)


def test_without_an_accelerator_nothing_looks_for_one(monkeypatch):
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert main(["config", "--help"]) == 0
    assert os.environ.pop("JAX_PLATFORMS") == "cpu"
    monkeypatch.setattr("glob.glob", lambda pattern: [pattern] if "accel" in pattern else [])
    assert main(["config", "--help"]) == 0
    assert "JAX_PLATFORMS" not in os.environ


def test_a_continuation_that_read_nothing_or_was_cut_says_so(monkeypatch):
    """A prompt shorter than a chunk looks nothing up, and a model without text in front of it invents."""
    drawn = io.StringIO()
    monkeypatch.setattr(show, "out", Terminal(file=drawn, width=200))
    sample = {
        "prompt": "a",
        "text": "bc",
        "tokens": [5, 6],
        "ends": [1, 2],
        "chunks": [],
        "first": 1,
        "passage": None,
    }
    show.print_sample(sample | {"retrieval": "on", "finish": "length"})
    assert "nothing was looked up" in drawn.getvalue()
    assert "cut after 2 tokens" in drawn.getvalue()
    drawn.truncate(0)
    show.print_sample(sample | {"retrieval": "off", "finish": "stop"})
    assert "nothing was looked up" not in drawn.getvalue()
    assert "cut" not in drawn.getvalue()


def test_a_log_says_how_far_it_is_before_the_end(monkeypatch, capfd):
    """A bar is drawn over and over on a terminal only; a job of hours is not silent in a file."""
    monkeypatch.setattr(progress, "LOGGED", 0)
    with progress.bar("scoring", 3) as advance:
        advance(2)
        assert "scoring: 2 of 3 after 0 minutes" in capfd.readouterr().err
