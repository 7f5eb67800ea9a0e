"""Several runs on one page: what is compared are the same tokens, and seeds are taken together."""

import json

import numpy as np
import pytest
from test_report import EVIL, write
from test_verdict import trained

from retro_jax.cli import main as cli
from retro_jax.evaluate import rows


def seeded(seed):
    return {n: t | {"seed": seed} for n, t in trained(3.0).items()}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(report.json of three runs and one of other text, the page's text, their files)."""
    root = tmp_path_factory.mktemp("several")
    files = [
        write(root / "runs/worse/evaluate/heldout", models=seeded(3)),
        write(root / "runs/best/evaluate/heldout", gain=0.5, models=seeded(4)),
        write(root / "runs/plain/evaluate/heldout", conditions=("on", "off"), gain=-0.2),
        write(root / "runs/other/evaluate/heldout", gain=-0.3, seed=1, models=seeded(5)),
    ]
    paths = [str(root / "runs" / n) for n in ("worse", "best", "plain", "other")]
    assert cli.main(["report", *paths, f"--output={root}/page"]) == 0
    made = json.loads((root / "page/report.json").read_text())
    return made, (root / "page/report.html").read_text(), files


def section(told, name) -> dict:
    return next(s for s in told[0]["evidence"] if s["name"] == name)


def test_runs_stand_by_their_names_in_the_order_of_their_bits(told):
    assert [row[0] for row in section(told, "runs")["rows"]] == ["best", "worse", "plain", "other"]
    assert told[0]["verdict"]["head"] == "Trainings that differ in their seed"  # is no contest
    assert EVIL not in told[1]


def test_one_is_better_by_the_bits_of_the_same_tokens(told):
    best, worse = (rows.load(told[2][i]) for i in (1, 0))
    nats = (worse.nats["on"] - best.nats["on"]).sum()
    expected = nats / np.log(2) / best["bytes"].sum()
    pairs = section(told, "pairs")
    assert pairs["rows"][0][0] == "worse"
    assert pairs["rows"][0][1].startswith(f"{expected:+.4f} [")
    assert [row[0] for row in pairs["rows"]] == ["worse", "plain"]  # other has other tokens
    assert "Other text, so not compared: other" in pairs["caption"]


def test_trainings_that_differ_in_their_seed_are_taken_together(told):
    table = section(told, "seeds")["rows"]
    assert [row[1:3] for row in table] == [["2", "language_model - on"], ["2", "random - on"]]
    each = [float(x) for x in table[0][5].split(", ")]
    assert float(table[0][3].split()[0]) == pytest.approx(np.mean(each), abs=1e-4)


def test_other_text_is_not_ranked(told, tmp_path):
    assert cli.main(["report", *(str(told[2][i]) for i in (0, 3)), f"--output={tmp_path}"]) == 0
    head = json.loads((tmp_path / "report.json").read_text())["verdict"]["head"]
    assert head.startswith("Other text was scored")
    assert cli.main(["report", *(str(told[2][i]) for i in (1, 2)), f"--output={tmp_path}"]) == 0
    head = json.loads((tmp_path / "report.json").read_text())["verdict"]["head"]
    assert head == "best is the best"


def test_tasks_stand_on_both_pages(tmp_path):
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    task = {"task": "choice", "method": "retro", "items": 40, "k": 2, "unseen": None}
    task["all"] = {"accuracy": {"on": share, "off": share, "difference": share}}
    for name in "ab":
        write(tmp_path / name / "evaluate/heldout")
        (tmp_path / name / "evaluate/tasks").mkdir()
        (tmp_path / name / "evaluate/tasks/animals.json").write_text(json.dumps(task))
    assert cli.main(["report", str(tmp_path / "a")]) == 0
    assert "animals" in (tmp_path / "a/evaluate/heldout/report.md").read_text()
    both = [str(tmp_path / name) for name in "ab"]
    assert cli.main(["report", *both, f"--output={tmp_path}"]) == 0
    made = json.loads((tmp_path / "report.json").read_text())["evidence"]
    cells = next(s for s in made if s["name"] == "tasks")["rows"]
    assert [row[0] for row in cells] == ["a, animals", "b, animals"]
    assert cells[0][1:4] == ["all 40", "accuracy", "0.5 [0.4, 0.6]"]


def test_bad_input_is_one_line(capfd, tmp_path):
    file = write(tmp_path / "a/evaluate/heldout", conditions=("on", "off"), documents=2)
    (tmp_path / "a/evaluate/tasks").mkdir()
    (tmp_path / "a/evaluate/tasks/x.json").write_text('{"task": ')
    for arguments, words in (
        ([str(tmp_path / "a"), str(file)], "the same evaluation is named twice"),
        ([str(tmp_path / "a"), "--output=x"], "--output=x: is for several runs"),
        ([str(tmp_path / "a"), str(tmp_path / "b")], "b: no such directory"),
        ([str(tmp_path / "a")], "x.json: no result of a task"),
    ):
        assert cli.main(["report", *arguments]) == 2
        error = capfd.readouterr().err
        assert words in error
        assert error.count("\n") == 1, error
    assert [p.name for p in file.parent.iterdir()] == ["tokens.parquet"]
