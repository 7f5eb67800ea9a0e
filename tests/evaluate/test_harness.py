"""EleutherAI's lm-evaluation-harness, run on local tasks, gives the numbers of our own evaluator."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from retro_jax.corpus import collect
from retro_jax.store.workdir import WorkDir

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
lm_eval = pytest.importorskip(
    "lm_eval", reason="the harness is optional: pip install 'retro_jax[lm-eval]'"
)

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from retro_jax.cli import main as cli  # noqa: E402
from retro_jax.errors import UserError  # noqa: E402
from retro_jax.evaluate import tasks  # noqa: E402
from retro_jax.evaluate.harness import RetroLM  # noqa: E402

TASKS = {
    "words": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
""",
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
  - metric: acc_bytes
    aggregation: mean
    higher_is_better: true
""",
    "questions": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 32, do_sample: false}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
    "texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
""",
}


@pytest.fixture(scope="module")
def texts(finished) -> list[str]:
    """Held-out documents."""
    return [
        " ".join(d.text.split()) for d in collect.read(finished / "prepare" / "corpus", "heldout")
    ]


@pytest.fixture(scope="module")
def folder(texts, generator, tmp_path_factory):
    """Tasks over files of lines: FILE.yaml and FILE.jsonl."""
    out, lines = tmp_path_factory.mktemp("lm_eval"), {name: [] for name in TASKS}
    for n, text in enumerate(texts):
        words = text.split()
        end = 20 + 7 * (n % 6)
        choices = [" ".join(words[end + at : end + at + n % 3 + 1 + at % 2]) for at in (0, 9, 14)]
        context = " ".join(words[:end])
        written = generator.generate(context, tokens=1).text  # of these some are whole words
        lines["words"] += [{"text": context + written * (n % 2)}]
        lines["choices"] += [{"question": context, "choices": choices, "answer": n % 3}]
        lines["questions"] += [{"question": " ".join(words[: 3 + n]), "answer": [choices[0]]}]
        lines["texts"] += [{"text": text}]
    for name, task in TASKS.items():
        data = out / f"{name}.jsonl"
        data.write_text("".join(json.dumps(x) + "\n" for x in lines[name]))
        given = f"{{data_files: {{test: {data}}}, cache_dir: {out / 'cache'}}}"
        source = f"dataset_path: json\ndataset_kwargs: {given}\ntest_split: test\n"
        (out / f"{name}.yaml").write_text(f"task: own_{name}\n{source}{task}")
    return out


@pytest.fixture(scope="module")
def root(finished, tmp_path_factory):
    """Of `finished`, to be written into."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("harness") / "work")


def theirs(folder, name, model) -> dict:
    """What the harness finds."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = f"own_{name}"
    found = lm_eval.simple_evaluate(
        model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    return {key.partition(",")[0]: value for key, value in found["results"][task].items()}


@pytest.fixture(scope="module", params=[(2, False), (2, True), (0, False)], ids=str)
def how(request, small, root):
    """(k, align, model)."""
    k, align = request.param
    return k, align, RetroLM(WorkDir(root, small), k=k, align=align)


@pytest.fixture(scope="module")
def model(root, small):
    """One that pads."""
    return RetroLM(WorkDir(root, small), align=True, rows=4)


def value(ours, metric, k):
    return ours["all"][metric]["on" if k else "off"]["value"]


def test_last_words(how, folder, small, root):
    k, align, model = how
    ours = tasks.run(WorkDir(root, small), f"lambada:{folder}/words.jsonl", k=k, align=align)
    found = theirs(folder, "words", model)
    assert found["perplexity"] == pytest.approx(value(ours, "perplexity", k), rel=1e-5)
    assert found["acc"] == pytest.approx(value(ours, "accuracy", k))
    assert 0 < found["acc"] < 1


def test_multiple_choice(how, folder, small, root):
    k, align, model = how
    ours = tasks.run(WorkDir(root, small), f"choice:{folder}/choices.jsonl", k=k, align=align)
    found = theirs(folder, "choices", model)
    assert found["acc"] == pytest.approx(value(ours, "accuracy", k))
    assert found["acc_bytes"] == pytest.approx(value(ours, "by bytes", k))
    chosen = {r["on" if k else "off"]["chosen"] for r in ours["results"]}
    assert len(chosen) > 1  # or it would say nothing that both agree


def test_bits_per_byte_of_whole_texts(how, folder, texts):
    """The task is the harness's; log p is that of `rolling`, which test_scorer.py holds to `evaluate`."""
    k, _, model = how
    logps = [s.logp for s in model.scorer.rolling(texts, k)]
    wanted = -sum(logps) / np.log(2) / sum(len(t.encode()) for t in texts)
    found = theirs(folder, "texts", model)
    assert found["bits_per_byte"] == pytest.approx(wanted, rel=1e-6)


def asked(model, prompts, **how) -> list[Instance]:
    how = {"until": ["\n"], "max_gen_toks": 32} | how
    return [Instance("generate_until", {}, (p, how), 0) for p in prompts]


def test_answers_are_those_of_our_own_questions(folder, small, root, generator, model):
    ours = tasks.run(WorkDir(root, small), f"qa:{folder}/questions.jsonl")
    lines = map(json.loads, (folder / "questions.jsonl").read_text().splitlines())
    prompts = [f"Question: {x['question']}\nAnswer:" for x in lines]
    answers = [r["on"]["text"] for r in ours["results"]]
    assert any(answers)
    drawn, long = {"temperature": 1.0, "top_k": 5}, "kara lopo minel " * 60
    end = generator.tokenizer.decode(generator.tokenizer.encode(long)[1 - model.scorer.length :])
    every = model.generate_until(
        asked(model, [*prompts, long, end]) + asked(model, prompts, do_sample=True, **drawn)
    )
    count = len(prompts)
    assert [a.strip() for a in every[:count]] == answers
    assert every[count] == every[count + 1]
    how = {"tokens": 32, "stop": ("\n",), "align": True}
    assert every[count + 2 :] == [generator.generate(p, **how, **drawn).text for p in prompts]
    assert theirs(folder, "questions", model)["exact_match"] == value(ours, "exact match", 2)


@pytest.mark.parametrize(
    ("how", "field", "value"),
    [
        ({"max_new_tokens": 8}, "tokens", 8),
        ({"max_tokens": "8"}, "tokens", 8),
        ({}, "tokens", 256),
        ({"repetition_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"temperature": None}, "temperature", 0.0),
        ({"temperature": "0.7"}, "temperature", 0.7),
        ({"temperature": 0.7, "do_sample": False}, "temperature", 0.0),
        ({"do_sample": "true"}, "temperature", 1.0),
        ({"top_k": 5.0, "do_sample": True}, "top_k", 5),
        ({"top_k": 5}, "top_k", 0),
        ({"num_beams": 1, "seed": 3}, "seed", 3),
        ({"until": None}, "stop", ()),
        ({"until": "a"}, "stop", ("a",)),
    ],
    ids=str,
)
def test_what_tasks_say_of_generation_is_a_request(model, how, field, value):
    made = model._request("kara", how)
    made.check()
    assert getattr(made, field) == value


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_beams": 4}, "num_beams = 4: beams are not known here"),
        ({"guidance": 1}, "guidance: not known here"),
        ({"temperature": "hot"}, "temperature = 'hot': must be a number"),
        ({"max_tokens": 1.5}, "max_tokens = 1.5: must be a whole number"),
        ({"do_sample": "perhaps"}, "do_sample = 'perhaps': must be true or false"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(model, how, message):
    with pytest.raises(UserError, match=f"generation_kwargs: {message}"):
        model._request("kara", how)


def test_the_command_prints_a_table(folder, root, small, texts, tmp_path, capsys):
    """Of the same figure; what cannot be read is one line, exit status 2."""
    file = tmp_path / "config.py"
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({json.dumps(dataclasses.asdict(small))!r}))\n"
    )
    flags = [f"--config={file}", f"--workdir={root}", f"--include_path={folder}", "--limit=5"]
    out = tmp_path / "out.json"
    assert cli.main(["lm-eval", *flags, "--tasks=own_words", f"--output={out}", "--k=1"]) == 0
    assert "own_words" in capsys.readouterr().out
    ours = tasks.run(WorkDir(root, small), f"lambada:{folder}/words.jsonl", k=1, limit=5)
    found = json.loads(out.read_text())["own_words"]
    assert found["perplexity,none"] == pytest.approx(value(ours, "perplexity", 1), rel=1e-5)
    # A task's file by its path, a share of its items, and examples before each.
    flags = [*flags[:2], f"--tasks={folder}/words.yaml", f"--output={out}", "--k=1"]
    share = 4.5 / len(texts)  # which is rounded up
    assert cli.main(["lm-eval", *flags, f"--limit={share}", "--num_fewshot=1"]) == 0
    shown = json.loads(out.read_text())["own_words"]
    assert found["sample_len"] == shown["sample_len"] == 5
    assert shown["perplexity,none"] != found["perplexity,none"]
    for words, message in (
        (["--tasks=own_nothing"], "--tasks: no task own_nothing"),
        (["--tasks=nowhere.yaml"], "--tasks: nowhere.yaml: no task"),
        (["--tasks=own_words", "--limit=1.5"], "--limit=1.5: must be a number of items"),
    ):
        assert cli.main(["lm-eval", *flags[:2], *words]) == 2
        assert message in capsys.readouterr().err
