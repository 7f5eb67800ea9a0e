"""What is installed and what images are made of: names that stand in several files are the same."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from retro_jax import __version__

ROOT = Path(__file__).parents[1]
SETUP = (ROOT / "setup.py").read_text()
EXTRAS = set(re.findall(r'^        "([a-z-]+)": (?:\[|SERVE|CHAT)', SETUP, re.M))


def test_the_version_is_the_same_everywhere():
    assert f'version="{__version__}"' in SETUP
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert importlib.metadata.version("retro_jax") == __version__


def test_extras_that_are_named_anywhere_exist():
    """pip installs nothing for one that does not, and says so in a warning only."""
    assert {"report", "serve", "lm-eval", "wandb", "test"} <= EXTRAS
    named = set()
    places = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.rglob("retro_jax/**/*.py")]
    for path in [*places, *ROOT.glob("docker/*"), *ROOT.glob("experiments/**/*")]:
        if path.is_file() and path.suffix not in (".parquet", ".pyc"):
            for found in re.findall(
                r"(?:retro_jax|pip install (?:-e )?'?\.)\[([\w,-]+)\]", path.read_text()
            ):
                named |= set(found.split(","))
    assert named
    assert named <= EXTRAS


@pytest.mark.parametrize("name", ["serve", "train"])
def test_an_image_copies_what_there_is_and_starts_a_command_that_there_is(name):
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.M):
        for source in line.split():
            assert (ROOT / source).exists()
    assert set(re.findall(r"\.\[(.*?)\]", text)[0].split(",")) - {"${ACCELERATOR}"} <= EXTRAS
    assert set(re.findall(r"ACCELERATOR=(\w+)", text)) <= EXTRAS
    assert 'ENTRYPOINT ["retro"' in text
