"""EleutherAI's harness asks the server, as it asks any that speaks OpenAI's completions."""

import json
import os

import pytest
from serving import PROMPT, serving

from retro_jax.evaluate.score import Pair
from retro_jax.evaluate.scorer import Scorer
from retro_jax.store.workdir import WorkDir

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
lm_eval = pytest.importorskip("lm_eval", reason="it is optional: pip install 'retro_jax[lm-eval]'")
pytest.importorskip("tenacity", reason="it is optional: pip install 'lm_eval[api]'")

from lm_eval.tasks import TaskManager  # noqa: E402

ENDS = ("kara lopo", "mira", "ten")
TASK = """
task: ends
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{ends}}"
doc_to_target: 0
metric_list: [{metric: acc}]
"""


def test_its_local_completions_scores_as_the_scorer_does(generator, finished, small, tmp_path):
    lines = [{"text": (PROMPT * n).strip(), "ends": ENDS} for n in (1, 2, 3)]
    data = tmp_path / "ends.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    where = f"dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {tmp_path / 'cache'}}}\n"
    (tmp_path / "ends.yaml").write_text(TASK + where)
    with serving(generator) as (address, _):
        found = lm_eval.simple_evaluate(
            model="local-completions", tasks=["ends"], bootstrap_iters=0,
            model_args={"model": "small", "base_url": f"{address}/v1/completions", "max_length": 150},
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        )  # fmt: skip
    scorer = Scorer.open(WorkDir(finished, small), rows=8, length=160, context=144)
    for sample in found["samples"]["ends"]:
        expected = scorer.score([Pair(sample["doc"]["text"], f" {end}") for end in ENDS])
        for (told,), wanted in zip(sample["resps"], expected):
            assert float(told[0]) == pytest.approx(wanted.logp, abs=1e-3)
