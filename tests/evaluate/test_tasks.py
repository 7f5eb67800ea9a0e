"""Figures of tasks, what is read and seen for their items, and bad items."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import tables
from whole import TEXT

from retro_jax.cli import main as cli
from retro_jax.config.request import Request
from retro_jax.corpus import collect
from retro_jax.errors import UserError
from retro_jax.evaluate import items, metrics, tasks
from retro_jax.evaluate.score import Pair, Score
from retro_jax.evaluate.scorer import Scorer
from retro_jax.store.workdir import WorkDir

CONFIG = "--config=experiments/quickstart.py"


def test_answers_are_compared_as_squad_does():
    assert metrics.normal('  The Beatles\' "Let it Be", a song ') == "beatles let it be song"
    assert metrics.exact_match("the Moon.", ("Sun", "moon")) == 1.0
    assert metrics.exact_match("moons", ("Sun", "moon")) == 0.0
    assert metrics.f1("the old red house", ("a red house",)) == pytest.approx(0.8)
    assert metrics.f1("red red", ("red", "blue sky")) == pytest.approx(2 / 3)
    assert metrics.f1("sky", ("house", "the sky")) == 1.0
    assert [metrics.f1("", ("x",)), metrics.f1("the", ("a",))] == [0.0, 1.0]
    assert metrics.mentions("In 1969, the Moon landing", ("moon landing",))
    assert not metrics.mentions("moonlight", ("moon", "the"))


def test_intervals_are_of_the_same_items_drawn_under_both_conditions():
    on = np.array([1.0, 0.0, 1.0, 1.0] * 50)
    found = metrics.compare({"on": on, "off": 1 - on}, metrics.mean)
    assert (found["on"]["value"], found["off"]["value"]) == (0.75, 0.25)
    assert found["difference"]["value"] == 0.5
    # The standard error of a share of 3/4 over 200 items is 0.0306; of on - off it is twice that.
    assert found["on"]["high"] - found["on"]["low"] == pytest.approx(4 * 0.0306, rel=0.1)
    width = found["difference"]["high"] - found["difference"]["low"]
    assert width == pytest.approx(8 * 0.0306, rel=0.1)
    same = metrics.compare({"on": on, "off": on}, metrics.mean)["difference"]
    assert (same["low"], same["high"]) == (0.0, 0.0)
    logps = np.log(np.array([0.5, 0.125]))
    assert metrics.perplexity(logps) == pytest.approx(4.0)
    assert "difference" not in metrics.compare({"off": on}, metrics.mean)


def test_an_interval_is_the_middle_95_of_a_thousand_resamples():
    on, off = np.random.default_rng(1).random((2, 30))
    found = metrics.compare({"on": on, "off": off}, metrics.mean, seed=3)
    drawn = np.random.default_rng(3).integers(0, 30, (1000, 30))
    for name, x in (("on", on), ("off", off), ("difference", on - off)):
        means = np.sort([x[d].mean() for d in drawn])
        assert found[name]["value"] == pytest.approx(x.mean())
        # The percentile at 2.5 % of 999 steps is between two of them, and so is that at 97.5 %.
        low, high = means[24] / 40 + means[25] * 39 / 40, means[974] * 39 / 40 + means[975] / 40
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high))


def scored(logp: float) -> Score:
    """Of one token."""
    one = Score.of([5], 0)
    one.logprobs[:] = logp
    return one


def test_a_choice_is_normalised_by_its_own_bytes():
    """Without the space before it: with it the first would be chosen, at -1 against -1.25 a byte."""
    item = items.Item(1, "q", (" a", " né"), answer=1)
    found = tasks._chosen(item, [scored(-2.0), scored(-5.0)])
    assert (found["chosen"], found["chosen_by_bytes"]) == (0, 1)
    assert (found["correct"], found["correct_by_bytes"]) == (0.0, 1.0)
    assert tasks._chosen(item, [scored(-2.0), scored(-7.0)])["chosen_by_bytes"] == 0


def write(path, *lines) -> str:
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(path)


@pytest.fixture(scope="module")
def root(finished, tmp_path_factory):
    """Of `finished`, to be written into."""
    out = tmp_path_factory.mktemp("tasks") / "work"
    shutil.copytree(finished, out)
    return out


def passage(root, number: int, words: int = 40) -> str:
    """The beginning of a document of the database."""
    table = tables(root)["train"]
    wanted = table.documents[number]["id"]
    text = next(
        d.text for d in collect.read(root / "prepare" / "corpus", "train") if d.id == wanted
    )
    return " ".join(text.split()[:words])


def test_last_words_beside_what_was_seen(root, small, scorer, tmp_path):
    texts = [passage(root, n) for n in range(6)] + [TEXT[n : n + 120].strip() for n in (1, 9, 22)]
    file = write(tmp_path / "words.jsonl", *({"text": t} for t in texts))
    result = tasks.run(WorkDir(root, small), f"lambada:{file}")
    assert result == json.loads((root / "evaluate" / "tasks" / "words.json").read_text())
    got = result["results"]
    assert [r["seen"] for r in got] == [True] * 6 + [False] * 3
    assert result["seen"] == 6
    for condition, k in (("on", 2), ("off", 0)):
        logps = [r[condition]["logp"] for r in got]
        pairs = [Pair(head, f" {last}") for head, last in (t.rsplit(" ", 1) for t in texts)]
        wanted = scorer.score(pairs, k)
        np.testing.assert_allclose(logps, [w.logp for w in wanted], atol=1e-5)
        assert [r[condition]["correct"] for r in got] == [float(w.greedy) for w in wanted]
        for of, part in (("all", logps), ("unseen", logps[6:])):
            figure = result[of]["perplexity"][condition]
            assert figure["value"] == pytest.approx(np.exp(-np.mean(part)), rel=1e-6)
            assert figure["low"] <= figure["value"] <= figure["high"]
    database = {d["id"] for d in tables(root)["train"].documents}
    assert {n["document"] for r in got for n in r["read"]} <= database
    assert tables(root)["train"].documents[0]["id"] in {n["document"] for n in got[0]["read"]}


def test_choices_by_likelihood_and_by_bytes(root, small, scorer, tmp_path):
    lines = [
        {"question": TEXT[:n], "choices": ["kara", "lopo minel tenis surra", "q"], "answer": n % 3}
        for n in (30, 64, 101, 135)
    ]
    lines[1]["context"] = lines[1].pop("question")
    result = tasks.run(
        WorkDir(root, small), f"choice:{write(tmp_path / 'c.jsonl', *lines)}", limit=3
    )
    assert (result["items"], len(result["results"])) == (3, 3)

    def context(line):
        return (line.get("question") or line["context"]).rstrip()

    for line, got in zip(lines, result["results"]):
        pairs = [Pair(context(line), f" {c}") for c in line["choices"]]
        for condition, k in (("on", 2), ("off", 0)):
            logps = np.array([s.logp for s in scorer.score(pairs, k)])
            np.testing.assert_allclose(got[condition]["logp"], logps, atol=1e-5)
            assert got[condition]["chosen"] == logps.argmax()
            assert got[condition]["chosen_by_bytes"] == (logps / [4, 22, 1]).argmax()
    share = np.mean([r["on"]["chosen"] == x["answer"] for r, x in zip(result["results"], lines)])
    assert result["all"]["accuracy"]["on"]["value"] == pytest.approx(share)
    alone = tasks.run(WorkDir(root, small), f"choice:{tmp_path}/c.jsonl", k=0, name="alone")
    assert list(alone["all"]["accuracy"]) == ["off"]
    # Of 4 and of 3 items, whose products a CPU may add up in another order.
    for one, other in zip(alone["results"], result["results"]):
        one, other = dict(one["off"]), dict(other["off"])
        np.testing.assert_allclose(one.pop("logp"), other.pop("logp"), atol=1e-5)
        assert one == other
    assert not any(r["read"] for r in alone["results"])


def test_questions_are_answered_as_the_generator_answers_them(root, small, generator, tmp_path):
    questions = [TEXT[:20], TEXT[20:45], TEXT[30:70]]
    prompts = [f"Question: {q.strip()}\nAnswer:" for q in questions]

    def ask(k):
        return [generator.generate(p, tokens=32, stop=("\n",), align=True, k=k) for p in prompts]

    on, off = ask(2), ask(0)
    accepted = [[on[0].text.strip() or "-", "nothing"], ["xyzzy"], [off[2].text.strip() or "-"]]
    lines = ({"question": q, "answer": a} for q, a in zip(questions, accepted))
    result = tasks.run(WorkDir(root, small), f"qa:{write(tmp_path / 'q.jsonl', *lines)}")
    for condition, done in (("on", on), ("off", off)):
        values = [r[condition] for r in result["results"]]
        assert [v["text"] for v in values] == [c.text.strip() for c in done]
        right = [metrics.exact_match(c.text.strip(), a) for c, a in zip(done, accepted)]
        assert [v["exact_match"] for v in values] == right
        assert result["all"]["exact match"][condition]["value"] == pytest.approx(np.mean(right))
    assert result["results"][1]["on"]["exact_match"] == 0.0
    scorer = Scorer.open(WorkDir(root, small), align=True)
    for condition, k in (("on", 2), ("off", 0)):
        logp = scorer.score([Pair(prompts[1], " xyzzy")], k)[0].logp
        assert result["results"][1][condition]["gold_logp"] == pytest.approx(logp, abs=1e-3)
    read = [[n["document"] for c in x.chunks for n in c["neighbours"]] for x in on]
    assert [[n["document"] for n in r["read"]] for r in result["results"]] == read
    assert all(read)  # a question is shorter than a chunk, and yet reads something


def test_an_answer_that_stands_in_what_was_read_is_seen(root, small, generator, tmp_path):
    question = passage(root, 0, 12)
    request = Request(f"Question: {question}\nAnswer:", 1, align=True)
    chunk = generator.generate_all([request])[0].chunks[-1]
    word = chunk["neighbours"][0]["text"].split()[1]
    lines = [{"question": question, "answer": [a]} for a in (f"The {word}!", "xyzzy")]
    result = tasks.run(WorkDir(root, small), f"qa:{write(tmp_path / 's.jsonl', *lines)}")
    assert [r["seen"] for r in result["results"]] == [True, False]


GOOD = {
    "lambada": {"text": "one two"},
    "choice": {"question": "q", "choices": ["a", "b"], "answer": 1},
    "qa": {"question": "q", "answer": ["a"]},
}


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("lambada", {"txt": "a b"}, 'line 2: text = null: must be a text that is not blank; for example {"text"'),
        ("lambada", {"text": " one\n"}, 'line 2: text = " one": must be two words or more'),
        ("lambada", [1], "line 2: the line = [1]: must be an object"),
        ("choice", {"question": "q", "choices": ["a"], "answer": 0}, 'choices = ["a"]: must be a list of 2'),
        ("choice", {"question": "q", "choices": ["a", "b"], "answer": 2}, "answer = 2: must be the number of the"),
        ("choice", {"question": "q", "choices": ["a", "b"], "answer": True}, "answer = true: must be the number"),
        ("choice", {"context": 3, "choices": ["a", "b"], "answer": 0}, "context = 3: must be a text"),
        ("qa", {"question": "q", "answer": "a"}, 'answer = "a": must be a list of 1 or more texts'),
        ("qa", {"question": "q", "answer": ["\ud800"]}, "line 2 holds half a character"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_item_is_named(capfd, tmp_path, kind, line, message):
    file = write(tmp_path / "bad.jsonl", GOOD[kind], line)
    assert len(items.read(kind, file, limit=1)) == 1
    refused(capfd, tmp_path, message, f"--task={kind}:{file}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task=squad:x"], "--task=squad:x: must be lambada:FILE, choice:FILE or qa:FILE"),
        (["--task=qa:"], "--task=qa:: must be"),
        (["--task=qa:nowhere.jsonl"], "nowhere.jsonl"),
        (["--task=lambada:FILE", "--limit=0"], "--limit=0: must be at least 1"),
        (["--task=lambada:FILE", "--k=-1"], "--k=-1: must be a number of neighbours"),
        (["--task=lambada:FILE", "--name=a/b"], "--name=a/b: must be the name of a file"),
        (["--task=lambada:FILE", "--text=text:x"], "--task and --text are two evaluations"),
        (["--task=lambada:FILE"], "run `retro prepare`"),
        (["--limit=3"], "--limit, --k, --align and --vote are for an evaluation of --task"),
    ],
)
def test_bad_flags(capfd, tmp_path, flags, message):
    file = write(tmp_path / "good.jsonl", GOOD["lambada"])
    refused(capfd, tmp_path, message, *(f.replace("FILE", file) for f in flags))


def refused(capfd, tmp_path, message, *flags):
    status = cli.main(["evaluate", CONFIG, f"--workdir={tmp_path}/w", *flags])
    error = capfd.readouterr().err
    assert (status, error.count("\n")) == (2, 1), error
    assert message in error
    assert not (tmp_path / "w").exists()


def test_a_file_without_an_item_and_one_that_is_no_json(tmp_path):
    (tmp_path / "a").write_text("\n\n")
    with pytest.raises(UserError, match="holds no item; write one a line"):
        items.read("qa", str(tmp_path / "a"))
    (tmp_path / "a").write_text('{"text": "a b"\n')
    with pytest.raises(UserError, match=r"line 1 is no JSON .*; mend or remove it"):
        items.read("lambada", str(tmp_path / "a"))


def test_what_cannot_be_scored_is_refused_before_anything_is_written(root, small, tmp_path):
    file = write(tmp_path / "good2.jsonl", GOOD["lambada"])
    with pytest.raises(UserError, match="nowhere"):
        tasks.run(WorkDir(root, small), f"lambada:{file}", databases=("nowhere",))
    assert not (root / "evaluate" / "tasks" / "good2.json").exists()
    with pytest.raises(UserError, match=r"must differ .* and tasks"):  # where their results go
        dataclasses.replace(small.corpus, heldout_sources=("tasks=text:x",))
