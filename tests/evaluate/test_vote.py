"""REPLUG's vote over answers, counted by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import altered
from whole import TEXT

from retro_jax.cli import main as cli
from retro_jax.config import Request
from retro_jax.evaluate import metrics
from retro_jax.evaluate.vote import counted, vote
from retro_jax.generate.generator import Generator
from retro_jax.store.workdir import WorkDir


def said(text: str, *logprobs: float):
    return SimpleNamespace(text=text, logprobs=list(logprobs))


def test_equal_answers_are_added_up():
    """Two documents that agree outweigh a nearer one; an answer counts as the model is sure of it."""
    answers = [said("Paris", -0.5), said(" the Rome", -0.5), said("rome.", -0.5)]
    assert counted(answers, np.array([-1.2, -1.0, -1.0]), 1.0) == "the Rome"
    assert counted(answers, np.array([-9.0, -1.0, -1.0]), 1.0) == "Paris"
    assert counted(answers, np.array([-9.0, -1.0, -1.0]), 1000.0) == "the Rome"
    unsure = [said("Paris", -0.1), said("Rome", -3.0), said("Rome", -3.0)]
    assert counted(unsure, np.zeros(3), 1.0) == "Paris"


def test_each_document_is_asked_by_itself(finished, small, tmp_path):
    settings = small.method_settings | {"rag": {"budget": "longer"}, "replug": {"budget": "longer"}}
    for stage in ("prepare", "train"):
        (tmp_path / stage).symlink_to(finished / stage)
    work = WorkDir(tmp_path, altered(small, method_settings=settings))
    requests = [
        Request(f"Question: {q}\nAnswer:", 8, stop=("\n",), align=True) for q in (TEXT[:20], TEXT[30:60])
    ]  # fmt: skip
    with Generator.open(work, "rag", rows=2, length=160) as generator:
        found = vote(generator, requests, 5.0)
        for request, answer in zip(requests, found):
            near = generator.lookup.prompt(request).result().told[-1]
            assert len(near) == 2
            total = {}
            weights = np.exp([-n["distance"] / 5 for n in near])
            for n, weight in zip(near, weights / weights.sum()):
                one = generator.generate(
                    request.prompt, tokens=8, stop=("\n",), align=True, neighbours=(n["text"],), k=1
                )
                key = metrics.normal(one.text.strip())
                total[key] = total.get(key, 0) + weight * np.exp(np.mean(one.logprobs))
            assert metrics.normal(answer) == max(total, key=total.get)


@pytest.mark.parametrize("flags", [["--method=rag"], ["--method=replug", "--task=lambada:x"]])
def test_only_replug_votes_and_only_on_questions(finished, flags, capsys):
    given = ["evaluate", str(finished), "--task=qa:x", "--vote", *flags]
    assert cli.main(given) == 2
    assert "--vote is for --task=qa:FILE with --method=replug" in capsys.readouterr().err
