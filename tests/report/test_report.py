"""Rows to a report: what it says is what the figures say, nothing is loaded or run, and it shows everywhere."""

import html
import html.parser
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retro_jax.cli import main as cli
from retro_jax.errors import UserError
from retro_jax.evaluate import likelihood, rows
from retro_jax.evaluate.figures import figures
from retro_jax.evaluate.likelihood import Column
from retro_jax.report import examples, numbers, report
from retro_jax.terminal import visible

M, K, LAYERS = 8, 2, 2
EVIL = "<script>alert(1)</script>"
WORDS = ["", "", "", "", "a ", "b\n", EVIL, "é", "\xc3", "\xa9", "|`*_", "\0", "\u202e"]
ALL = (
    "on",
    "off",
    "random",
    "self",
    "next",
    "k1",
    "database_1",
    "database_10",
    "language_model",
    "exact",
)


def write(
    folder,
    conditions=ALL,
    documents=12,
    gain=0.3,
    ratio=0.4,
    seed=0,
    chunks=5,
    source=None,
    leaks=0,
    novel=None,
    far=None,
    models=None,
):
    """A file of rows: every document has `chunks` chunks, of which the first reads nothing; `on` is `gain` nats a
    token better than all else, more where runs are copied, `novel` nats where none is, and `far` nats where the
    nearest neighbour of a chunk is farther than half of them are."""
    rng, size = np.random.default_rng(seed), documents * chunks * M
    unit, place = np.arange(size) // M, np.arange(size) % M
    read = (unit % chunks) > 0
    copied = np.where(read, rng.choice([0, 0, 1, 2, 5, 9], size), 0)
    target = rng.integers(4, len(WORDS), size)
    pieces = [
        w if len(w) == 1 and ord(w) in (0xC3, 0xA9) else w.encode().decode("latin-1") for w in WORDS
    ]
    base = rng.gamma(2.0, 1.0, size) + 1
    worth = np.where(read, gain * (1 + copied / 3) + 0.1 * rng.normal(size=size), 0.0)
    if novel is not None:
        worth[copied == 0] = novel
    distance = np.where(read[:, None], rng.random((size // M, K)).repeat(M, axis=0), np.inf)
    if far is not None:
        nearest = distance[:, 0]
        worth[read & (nearest >= np.median(nearest[read]))] = far
    near = np.where(read[:, None], rng.integers(0, 40, (size // M, K)).repeat(M, axis=0), -1)
    texts = rng.integers(4, len(WORDS), (size // M, K, 2 * M))
    texts[:, 0, 3:9] = target.reshape(-1, M)[
        :, 2:8
    ]  # every chunk shares a run with its first neighbour
    facts = {
        "name": f"tiny {EVIL}", "split": "heldout", "chunk": M, "neighbours": K, "filter_overlap": 0.5,
        "conditions": {n: f"what {n} reads" for n in conditions},
        "database": {"documents": 20, "chunks": 40},
        "index": {"kind": "exact", "size": 40, "recall": 1.0, "sizes": [40]},
        "violations": {"same_document": leaks, "wrong_text": 0},
        "whole_chunks": {"heldout": {"chunks": 2, "documents": [[EVIL, EVIL, 2]]}},
        "share_with_fewer_than_k": {"train": 0.1, "heldout": 0.0},
        "documents": [
            {"id": f"{i}/{EVIL}", "metadata": {"source": f"s{i % 3} {EVIL}"} if source else {}}
            for i in range(documents)
        ],
        "vocabulary": pieces, "verbatim": {}, "versions": {"python": "3", "retro_jax": "0"},
        "models": models or {},
    }  # fmt: skip
    out = likelihood.schema([Column(name, None, None) for name in conditions], K, LAYERS, facts)
    values = {
        "document": unit // chunks, "chunk": unit % chunks, "position": unit % chunks * M + place,
        "target": target, "bytes": [len(pieces[t]) for t in target],
        **{f"logp_{n}": -(base - (worth if n == "on" else 0) - (n == "self")) for n in conditions},
        "copied": copied, "overlap": rng.integers(0, M + 1, size // M).repeat(M),
        "neighbours": list(near), "distances": list(distance),
        "runs": list(rng.integers(0, M, (size // M, K)).repeat(M, axis=0)), "twins": [0] * size,
        "ratio": [[ratio] * LAYERS] * size, "mass": [[0.2] * 2 * K] * size,
        "read": [texts[u].ravel() if p == 0 else [] for u, p in zip(unit, place)],
        "sources": [[f"{EVIL} chunk {i}"] * K if p == 0 else [] for i, p in zip(unit, place)],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [pa.array(list(values[f.name]), f.type) for f in out]
    pq.write_table(pa.Table.from_arrays(arrays, schema=out), folder / "tokens.parquet")
    return folder / "tokens.parquet"


class Page(html.parser.HTMLParser):
    """Its tags, attributes and texts; fails where tags do not close each other."""

    EMPTY = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags, self.texts, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [v for n, v in attributes if n == "id"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the page's path, its figures, its text)."""
    file = write(tmp_path_factory.mktemp("report"), source=True)
    page = report(file)
    return page, figures(rows.load(file)), page.read_text()


def test_the_page_is_whole_and_loads_nothing(made):
    path, _, text = made
    page = Page(text)
    assert {"svg", "table", "details"} <= set(page.tags)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith("#"), value
            assert value[1:] in page.ids, value
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert text.count("<svg") == text.count('role="img" aria-label="')
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "report.html", "report.json", "report.md", "tokens.parquet"
    ]  # fmt: skip


def test_texts_and_names_are_text(made):
    path, _, text = made
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    shown = "".join(Page(text).texts)
    assert f"/{EVIL}, chunk" in shown
    assert "\u2400" in shown  # a NUL is shown, not sent
    assert "\0" not in text
    outside, code = "", False
    for line in path.with_suffix(".md").read_text().splitlines():
        if re.match(r"`{3,}", line):
            code = not code
        elif not code:
            outside += line
    assert EVIL not in outside
    assert r"\<script\>" in outside


def test_an_example_shows_the_very_tokens(made):
    path, _, text = made
    every = json.loads(path.with_suffix(".json").read_text())["examples"]
    assert [e["kind"] for e in every] == ["best"] * 5 + ["worst"] * 5 + ["random"] * 5
    assert len({(e["document"], e["chunk"]) for e in every}) == 15
    gains = [e["gain"] for e in every]
    assert gains[:5] == sorted(gains[:5], reverse=True)
    assert gains[5:10] == sorted(gains[5:10])
    assert min(gains[:5]) >= max(gains[10:]) >= min(gains[10:]) >= max(gains[5:10])
    assert all(e["chunk"] > 0 for e in every)  # the first chunk reads nothing
    shown = "".join(Page(text).texts)
    for e in every:
        assert "".join(t for t, _, _ in e["tokens"]) in shown
        assert any(m for _, _, m in e["tokens"])
        for n in e["neighbours"]:
            for half in "NF":
                assert "".join(t for t, _ in n[half]) in shown
        assert any(m for _, m in e["neighbours"][0]["N"])


def test_json_has_the_figures_and_markdown_the_same_content(made):
    path, expected, text = made
    got = json.loads(path.with_suffix(".json").read_text())
    assert got["figures"] == json.loads(json.dumps(expected))
    assert got["verdict"]["word"] == expected["verdict"]["word"]
    plain = re.sub(r"\\(.)", r"\1", path.with_suffix(".md").read_text())
    shown = " ".join("".join(Page(text).texts).split())
    squeezed = " ".join(plain.split())
    for section in got["evidence"] + got["facts"]:
        assert section["caption"] in squeezed
        assert section["caption"] in shown
        for row in section["rows"]:
            line = "| " + " | ".join(" ".join(visible(c).split()) for c in row) + " |"
            assert line in plain, line
    for sentence in got["verdict"]["sentences"] + got["verdict"]["advice"]:
        assert sentence in plain
        assert sentence in shown
    names = {s["name"] for s in got["evidence"]}
    assert names == {
        "conditions", "effects", "histogram", "copied", "filtered", "nearest", "distance", "skipping", "neighbours",
        "database", "place", "sources", "documents", "failures", "layers", "attention", "retriever",
    }  # fmt: skip
    (looks,) = [s["caption"] for s in got["evidence"] if s["name"] == "attention"]
    assert f"{numbers.percent(1 - 4 * 0.2)} to nothing (null keys)" in looks
    rows_of = {s["name"]: s["rows"] for s in got["evidence"]}
    shown = {r[0]: r[2] for r in rows_of["conditions"]}
    assert shown == {n: numbers.bits(x) for n, x in expected["bits_per_byte"].items()}
    assert sum(int(r[1].replace(",", "")) for r in rows_of["histogram"]) == expected["tokens"]


@pytest.mark.parametrize(
    ("gain", "word", "head"),
    [
        (0.3, "helps", "Retrieval helps"),
        (-0.3, "hurts", "Retrieval hurts"),
        (0.0, "neutral", "makes no difference"),
    ],
)
def test_the_verdict_is_that_of_the_figures(tmp_path, gain, word, head):
    file = write(tmp_path, gain=gain, conditions=("on", "off", "random", "language_model"))
    assert figures(rows.load(file))["verdict"]["word"] == word
    page = report(file)
    text = page.read_text()
    assert f'class="box verdict {word}"' in text
    assert head in text.partition("<h2>")[2].partition("</h2>")[0]
    assert json.loads(page.with_suffix(".json").read_text())["verdict"]["word"] == word
    assert page.with_suffix(".md").read_text().startswith("# ")


@pytest.mark.parametrize(
    ("settings", "alarm"),
    [
        (
            {"ratio": 1e-5},
            "Cross-attention may have collapsed: cross-attention adds less than a thousandth",
        ),
        ({"gain": 0.0}, "holds 0"),
        ({"leaks": 3}, "3 leaks"),
        ({"documents": 3}, "Only 3 document(s)"),
    ],
)
def test_alarms(tmp_path, settings, alarm):
    text = report(write(tmp_path, **settings)).read_text()
    assert 'role="alert"' in text
    assert alarm in text
    if "ratio" in settings:
        assert "does not read its neighbours" in text


@pytest.mark.parametrize(
    ("settings", "reading", "against"),
    [
        ({"far": -0.055}, "does harm (off - on: -0.", "but worse than it in the half"),
        ({"far": 0.25}, "helps too (off - on: +0.", "and better than it in the half"),
        # right to expect a copy and wrong now and then: it gains by what is known before, and so it helps
        ({"novel": -0.055}, "helps too (off - on: +0.", "and better than it in the half"),
    ],
)
def test_the_verdict_goes_by_what_is_known_before(tmp_path, settings, reading, against):
    page = report(write(tmp_path, gain=1.0, **settings))
    reads, system = json.loads(page.with_suffix(".json").read_text())["verdict"]["sentences"]
    assert "In the half of the text whose nearest neighbour is farther, reading " + reading in reads
    assert "better than the plain language model on all text" in system
    assert against in system
    assert ("for other text" in system) == (settings == {"far": -0.055})


def test_no_alarm_where_all_is_well(made):
    assert 'role="alert"' not in made[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"conditions": ("on", "off")},
        {"conditions": ("on", "off"), "documents": 1},
        {"documents": 1},
        {"documents": 1, "chunks": 1},  # the first chunk reads nothing
        {"documents": 2, "chunks": 2, "conditions": ("on", "off", "language_model")},
    ],
)
def test_what_is_missing_is_left_out(tmp_path, settings):
    page = report(write(tmp_path, **settings))
    Page(page.read_text())
    got = json.loads(page.with_suffix(".json").read_text())
    scored = settings.get("conditions", ALL)
    names = {s["name"] for s in got["evidence"]}
    assert {"conditions", "effects", "copied", "retriever", "failures"} <= names
    assert ("database" in names) == ("database_1" in scored)
    assert "sources" not in names
    alone = "Whether a language model without retrieval would do as well was not measured"
    assert any(alone in s for s in got["verdict"]["sentences"]) == ("language_model" not in scored)


def test_a_file_that_was_moved_needs_nothing_else(made, tmp_path):
    shutil.copy(made[0].with_name("tokens.parquet"), tmp_path / "elsewhere.parquet")
    assert report(tmp_path / "elsewhere.parquet").read_bytes() == made[0].read_bytes()


def test_shared_runs_are_found_in_both():
    a, b = np.array([9, 5, 6, 7, 8, 4]), np.array([1, 5, 6, 7, 8, 8, 6, 7, 8, 4, 0, 0])
    of_a, of_b = examples.shared(a, b)
    assert of_a.tolist() == [False, True, True, True, True, True]
    assert of_b.tolist() == [False, *[True] * 4, False, *[True] * 4, False, False]
    of_a, of_b = examples.shared(np.zeros(6, int), np.zeros(6, int))
    assert not of_a.any()  # PAD is no text


def test_a_character_of_several_tokens_is_whole():
    pieces = [b"", b"\xe6\x97", b"\xa5", b"a\0", b"\xe6"]
    assert examples.text([3, 1, 2, 4], pieces) == ["a\u2400", "", "日", "\ufffd"]


def test_the_command(capsys, tmp_path):
    for split in ("heldout", "other"):
        write(tmp_path / "evaluate" / split, conditions=("on", "off"), documents=2)
    write(tmp_path / "evaluate" / ".half.partial", conditions=("on", "off"), documents=2)
    written = [
        f"{tmp_path}/evaluate/{split}/report.{kind}"
        for split in ("heldout", "other")
        for kind in ("html", "json", "md")
    ]
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == written
    for path in ("evaluate/other", "evaluate/other/tokens.parquet"):
        assert cli.main(["report", str(tmp_path / path)]) == 0
        assert capsys.readouterr().out.split() == written[3:]


def test_bad_input_is_one_line(capfd, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.parquet").write_text("no rows")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    for arguments, words in (
        ([], "name a working directory or a tokens.parquet"),
        (["a", "b"], "a: no such directory"),
        (["--config=x"], "not understood: --config=x"),
        ([str(tmp_path / "nowhere")], "nowhere: no such directory"),
        ([str(tmp_path / "empty")], "retro evaluate"),
        ([str(tmp_path / "other.parquet")], "other.parquet: no rows of an evaluation"),
        ([str(tmp_path / "foreign.parquet")], "foreign.parquet: no rows of an evaluation"),
    ):
        assert cli.main(["report", *arguments]) == 2
        error = capfd.readouterr().err
        assert words in error
        assert error.count("\n") == 1, error
    file = write(tmp_path / "none", documents=0)
    assert cli.main(["report", str(file)]) == 2
    assert "holds no token" in capfd.readouterr().err
    assert [p.name for p in file.parent.iterdir()] == ["tokens.parquet"]
    for name in [n for n in sys.modules if n.startswith("retro_jax.report.")]:
        if not name.endswith("write"):
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.delattr(name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'retro_jax\[report\]'"):
        report(write(tmp_path / "fine", documents=2))


def test_what_cannot_be_written_leaves_nothing(made, tmp_path, monkeypatch):
    file = write(tmp_path, conditions=("on", "off"), documents=2)
    from retro_jax.report import page

    monkeypatch.setattr(page, "render", lambda whole: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(file)
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.parquet"]


def test_nothing_is_wider_than_the_screen(made, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no browser")
    # The page allows no scripts; a copy, with its folds open, is measured from outside.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made[2])
    text = html.escape(text.replace("<details>", "<details open>"))
    frames = "".join(
        f'<iframe style="width:{w}px;border:0" srcdoc="{text}"></iframe>' for w in (390, 1280)
    )
    (tmp_path / "frames.html").write_text(
        f"<!DOCTYPE html><meta charset=utf-8>{frames}<script>onload = () => document.body.dataset.measured = "
        "[...document.querySelectorAll('iframe')].map(f => f.contentWindow).map(w => w.innerWidth + ' ' + "
        "w.document.documentElement.scrollWidth)</script>"
    )
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={tmp_path}/profile",
         "--window-size=1400,900", "--dump-dom", f"file://{tmp_path}/frames.html"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    measured = re.search(r'data-measured="([^"]*)"', done.stdout)[1]
    assert measured == "390 390,1280 1280"
