"""Whether the tests notice a change of what they test: 300 small changes, drawn by a seed, each tried.

    pip install cosmic-ray
    python tests/mutants/mutants.py run /tmp/mutants --part=0/1     # goes on where it was ended
    python tests/mutants/mutants.py table /tmp/mutants

It changes files of the checkout that it is started in and puts them back: use a clone of its own for each part.
Those that change nothing that a caller could see stand in survivors.md, each with the reason.
A mutant is a change that cosmic-ray makes: a number, an operator, a comparison, a condition, a loop. One is drawn of
each place in the code, places by the seed.
"""

import argparse
import ast
import functools
import json
import os
import random
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_item import MutationSpec

SEED, COUNT, SECONDS = 0, 300, 1200
FILES = (
    "retro_jax/model/*.py",
    "retro_jax/train/step.py",
    "retro_jax/train/optimizer.py",
    "retro_jax/evaluate/signals.py",
    "retro_jax/evaluate/metrics.py",
    "retro_jax/retrieval/neighbours.py",
    "retro_jax/retrieval/forbidden.py",
)
# What is run for a file, the quick tests first; the first beginning that fits.
TESTS = {
    "retro_jax/model/formulas": ("tests/model/test_formulas.py", "tests/model tests/methods"),
    "retro_jax/model/sizes": ("tests/model/test_sizes.py", "tests/model tests/plan"),
    "retro_jax/model/ngrams": (
        "tests/methods/test_ngram_memory.py tests/model/test_init.py", "tests/model tests/methods",
    ),
    "retro_jax/model/decode": (
        "tests/model/test_decode.py", "tests/model tests/methods tests/generate",
    ),
    "retro_jax/model/cache": ("tests/model/test_decode.py", "tests/model tests/generate"),
    "retro_jax/model": (
        "tests/model/test_oracle.py tests/model/test_attention.py tests/model/test_layers.py "
        "tests/model/test_init.py tests/model/test_retro.py tests/model/test_scores.py", "tests/model tests/methods",
    ),
    "retro_jax/train": ("tests/train/test_optimizer.py tests/train/test_step.py", "tests/train"),
    "retro_jax/evaluate/metrics": (
        "tests/evaluate/test_tasks.py -k 'answers_are_compared or interval'", "tests/evaluate tests/report",
    ),
    "retro_jax/evaluate": ("tests/evaluate/test_signals.py", "tests/evaluate tests/report"),
    "retro_jax/retrieval": (
        "tests/retrieval/test_neighbours.py tests/retrieval/test_forbidden.py", "tests/retrieval tests/pipeline",
    ),
}  # fmt: skip
# Of one arithmetic another; shifts of floats and the like fail at once and would say nothing of the tests.
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}


def places() -> dict[tuple, list[MutationSpec]]:
    """(file, line, column) -> the changes that can be made there; none in annotations and docstrings."""
    found = {}
    for path in sorted(p for pattern in FILES for p in Path().glob(pattern)):
        tree, code = get_ast_from_path(path), ast.parse(path.read_text())
        typed = [
            (n.lineno, n.col_offset, n.end_lineno, n.end_col_offset) for n in _annotations(code)
        ]
        for name in sorted(cosmic_ray.plugins.operator_names()):
            kind = cosmic_ray.plugins.get_operator(name)
            if kind.arguments() or not _is_meant(name):
                continue
            at = (p for node in ast_nodes(tree) for p in kind().mutation_positions(node))
            for occurrence, (start, end) in enumerate(at):
                if not any((a, b) <= start <= (c, d) for a, b, c, d in typed):
                    spec = MutationSpec(str(path), name, occurrence, start, end, {}, None)
                    found.setdefault((str(path), *start), []).append(spec)
    return found


def _annotations(code: ast.AST):
    for node in ast.walk(code):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation
        if isinstance(node, ast.FunctionDef) and node.returns:
            yield node.returns


def _is_meant(name: str) -> bool:
    before, _, after = name.removeprefix("core/ReplaceBinaryOperator_").partition("_")
    return not name.startswith("core/ReplaceBinary") or {before, after} <= ARITHMETIC


def sample() -> list[MutationSpec]:
    """The mutants, one of a place, in the order in which they are tried."""
    draw, found = random.Random(SEED), places()
    chosen = draw.sample(sorted(found), COUNT)
    return [draw.choice(found[place]) for place in chosen]


def name_of(spec: MutationSpec) -> str:
    """Its place and what is done there."""
    line, column = spec.start_pos
    return f"{spec.module_path}:{line}:{column} {spec.operator_name.removeprefix('core/')}"


def stages(path: str, python: str) -> list[str]:
    """The commands that may notice a change of a file."""
    quick, whole = next(tests for begin, tests in TESTS.items() if path.startswith(begin))
    run = f"{shlex.quote(python)} -m pytest -q -x -p no:cacheprovider"
    return [f"{run} -n0 {quick}", f"{run} -n 2 {whole}"]


@functools.cache
def check(command: str):
    """Ends the program if tests fail where nothing is changed: they would notice everything."""
    if subprocess.run(shlex.split(command), check=False).returncode:
        raise SystemExit(
            f"these tests fail, or there are none, before anything is changed: {command}"
        )


def run(out: Path, part: int, parts: int, python: str, last: int):
    """Tries what of a part has not been tried; `last`: how many stages of tests."""
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(Path.cwd())
    tried = results(out)
    for number, spec in enumerate(sample()):
        known = tried.get(name_of(spec), {"outcome": "survived", "stage": 0})
        if number % parts != part or known["outcome"] != "survived" or known["stage"] >= last:
            continue
        for stage, command in enumerate(stages(str(spec.module_path), python)[:last], 1):
            if stage > known["stage"]:
                check(command)
                made = mutate_and_test([spec], command, SECONDS)
                outcome = str(made.test_outcome.value)
                found = {
                    "mutant": name_of(spec),
                    "outcome": outcome,
                    "stage": stage,
                    "diff": made.diff,
                }
                with (out / f"results-{part}.jsonl").open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(number, name_of(spec), outcome, f"stage {stage}", flush=True)
                if outcome != "survived":
                    break


def results(out: Path) -> dict[str, dict]:
    """Of each mutant that it was noticed, or how far it came: tests that came later count."""
    lines = [x for p in sorted(out.glob("results-*.jsonl")) for x in p.read_text().splitlines()]
    found = {}
    for line in map(json.loads, lines):
        before = found.get(line["mutant"], line)
        found[line["mutant"]] = max(
            before, line, key=lambda x: (x["outcome"] != "survived", x["stage"])
        )
    return found


def equivalents() -> set[str]:
    """Names of those that change nothing, as survivors.md says."""
    lines = Path(__file__).with_name("survivors.md").read_text().splitlines()
    return {line.split("`")[1] for line in lines if line.startswith("| `")}


def table(out: Path):
    """How many were noticed, by file; then those that were not and should be, with what was changed."""
    found, count, same = results(out), Counter(), equivalents()
    tried = [spec for spec in sample() if name_of(spec) in found]
    survived = []
    for spec in tried:
        name, noticed = name_of(spec), found[name_of(spec)]["outcome"] != "survived"
        kind = "noticed" if noticed else "equivalent" if name in same else "survived"
        count[str(spec.module_path), kind] += 1
        count["all", kind] += 1
        survived += [spec] * (kind == "survived")
    print("| file | mutants | noticed | equivalent | survived |\n|---|---|---|---|---|")
    for path in sorted({p for p, _ in count}, key=lambda p: (p == "all", p)):
        each = [count[path, kind] for kind in ("noticed", "equivalent", "survived")]
        print("|", " | ".join(map(str, (path, sum(each), *each))), "|")
    of = len(tried) - count["all", "equivalent"]
    print(f"Of {of} that are not equivalent {count['all', 'noticed'] / of:.1%} are noticed.")
    for spec in survived:
        print(
            f"\n{name_of(spec)} (stage {found[name_of(spec)]['stage']})\n{found[name_of(spec)]['diff']}"
        )


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("out", type=Path, help="a folder outside the checkout")
    parser.add_argument("--part", default="0/1", help="of several processes: NUMBER/OF")
    parser.add_argument("--python", default=sys.executable, help="that has the project's tests")
    parser.add_argument("--stages", type=int, default=2, help="1: the quick tests only")
    args = parser.parse_args()
    if args.command == "table":
        return table(args.out)
    part, _, parts = args.part.partition("/")
    run(args.out, int(part), int(parts), args.python, args.stages)


if __name__ == "__main__":
    main()
