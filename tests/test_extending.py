"""One file and one line of a table: what docs/extending.md promises, for each table."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import altered, small_experiment, write_corpus
from toys import cautious

from retro_jax.cli.training import run_all
from retro_jax.corpus import sources
from retro_jax.corpus.document import Document
from retro_jax.errors import UserError
from retro_jax.evaluate import rows
from retro_jax.evaluate.condition import CONDITIONS
from retro_jax.evaluate.scorer import Scorer
from retro_jax.generate.generator import Generator
from retro_jax.methods import method
from retro_jax.retrieval import index
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.retrieval.index import INDEXES
from retro_jax.store.workdir import WorkDir

LINES = (
    (EMBEDDERS, "letters", "toys.letters:Letters"),
    (INDEXES, "plain", "toys.plain:Plain"),
    (method.METHODS, "cautious", "toys.cautious:Cautious"),
    (CONDITIONS, "doubled", "toys.doubled:Doubled"),
)


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        for table, name, where in LINES:
            patch.setitem(table._entries, name, where)
        yield


def test_a_toy_of_each_kind_goes_through_every_stage(tables, tmp_path):
    write_corpus(tmp_path / "corpus", 40)
    names = ("retro", "language_model", "cautious")
    e = small_experiment(tmp_path / "corpus", names, steps=2)
    e = altered(
        e,
        retrieval={"embedder": "letters", "index": "plain", "settings": {"letters": {"most": 5}}},
        evaluate={"conditions": ("doubled",)},
    )
    work = WorkDir(tmp_path / "w", e)
    summary = run_all(work)
    assert summary["violations"] == 0
    bits = summary["bits_per_byte"]
    assert set(bits) == {"on", "off", "doubled", "language_model", "cautious"}
    assert bits["doubled"] != bits["on"]
    assert summary["prepare"]["index"]["kind"] == "plain"
    found = rows.load(work.evaluated("heldout") / "tokens.parquet")
    plain, share = np.exp(-found.nats["language_model"]), cautious.Settings().share
    np.testing.assert_allclose(
        np.exp(-found.nats["cautious"]), (1 - share) * plain + share / 320, rtol=1e-4
    )
    # by name, everywhere: it writes and scores with the language model's weights
    score = Scorer.open(work, "cautious").score([("kara", " lopo minel")])[0]
    with Generator.open(work, "cautious") as generator:
        made = generator.generate("kara", tokens=5)
    assert len(made.tokens) == 5
    assert score.logp > Scorer.open(work, "language_model").score([("kara", " zzzz")])[0].logp - 99
    assert not (work.root / "train" / "cautious").exists()


def test_its_settings_are_checked_where_it_stands(tables):
    retrieval = small_experiment(Path("x")).retrieval
    for settings, message in (
        ({"letters": {"most": 0}}, r"retrieval\.settings\.letters\.most = 0: must be at least 1"),
        ({"letters": {"mots": 3}}, r"retrieval\.settings\.letters\.mots: did you mean"),
        ({"lettres": {"most": 3}}, r"retrieval\.settings\.lettres: did you mean letters"),
    ):
        changed = dataclasses.replace(retrieval, embedder="letters", settings=settings)
        with pytest.raises(UserError, match=message):
            index.check(changed)


def test_a_source_is_a_function_and_a_line(monkeypatch, tmp_path):
    def read(path: str, name: str, file: str, largest: int):
        for number, line in enumerate(Path(path).read_text().splitlines()):
            yield Document(f"{file}:{number}", line)

    monkeypatch.setitem(sources.KINDS, "lines", sources.Kind("lines:GLOB", True, read))
    (tmp_path / "a.txt").write_text("kara\nlopo\n")
    found = list(sources.documents(f"lines:{tmp_path}/*.txt"))
    assert [d.text for d in found] == ["kara", "lopo"]
    with pytest.raises(UserError, match="no file matches"):
        sources.check(f"lines:{tmp_path}/*.nothing", "corpus.source")
    with pytest.raises(UserError, match="lines:GLOB"):
        sources.check("lines:", "corpus.source")


def test_the_page_shows_what_is_tested():
    """Each toy stands in docs/extending.md as it is here."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    shown = re.sub(r"(?m)^\+", "", page)
    for name in ("letters", "plain", "cautious", "doubled"):
        text = (Path(__file__).parent / "toys" / f"{name}.py").read_text()
        body = text[text.index("\nclass ") :].strip() if name != "letters" else text.strip()
        assert body in shown, name
