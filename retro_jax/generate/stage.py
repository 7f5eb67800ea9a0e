"""`retro generate`: one prompt, a file of prompts, or a person who types them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from retro_jax import columns, progress, steps, workdir
from retro_jax.config import Experiment, from_config_dict
from retro_jax.corpus.sources import digest
from retro_jax.errors import UserError
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import prompt_ids
from retro_jax.generate.request import Request
from retro_jax.prepare import check_prepared
from retro_jax.retrieval.database import Databases
from retro_jax.train.loop import check_trained

ROWS = 8  # prompts of a file that are continued together
_BLOCK = 4  # times as many prompts are given at a time, and complete together


def generate(experiment: Experiment, root: Path) -> dict:
    """Continues `generate.prompt`; writes WORKDIR/generate.json and returns what is in it: a
    `Completion`."""
    request = experiment.generate
    with (
        fitting(experiment, Path(root), [request], 1) as generator,
        progress.bar("generating", request.tokens) as advance,
    ):
        result = generator.generate_all([request], advance)[0]
    _warn([result])
    workdir.write_json(Path(root) / "generate.json", result.to_json())
    return result.to_json()


def generate_file(experiment: Experiment, root: Path, file: Path, rows: int = ROWS) -> Path:
    """Continues every prompt of a file, in WORKDIR/completions/NAME; goes on where it was killed.

    Args:
      file: NAME.jsonl has a request a line, fields of `Request` that the config's `generate` is given
        with; of any other file every line that is not blank is a prompt.
      rows: prompts that are continued together.

    Returns:
      The file that has a `Completion` a line, in the order of the prompts.

    Raises:
      UserError: a line that is no request, a look-up that failed, or what is there was made from another
        file, config or state of the databases.
    """
    root, requests = Path(root), read_requests(experiment, file)
    check_prepared(experiment, root)
    out = root / "completions" / file.stem
    text = json.dumps([dataclasses.asdict(r) for r in requests], sort_keys=True)
    settings = {
        "prompts": digest(text, 16).hex(),
        "evaluate.checkpoint": experiment.evaluate.checkpoint,
        "databases": _stamps(experiment, root, requests),
    }

    def make(partial: Path) -> dict:
        writer = columns.Writer(partial, {"completions": columns.LINES})
        done = writer.rows("completions")
        with (
            fitting(experiment, root, requests, rows) as generator,
            progress.bar("continuing prompts", len(requests)) as advance,
        ):
            advance(done)
            for begin in range(done, len(requests), _BLOCK * rows):
                found = generator.generate_all(requests[begin : begin + _BLOCK * rows])
                if why := [c.retrieval for c in found if c.retrieval.startswith("failed")]:
                    raise UserError(
                        f"{file}: a look-up {why[0]}; mend it, and run the same command to go on"
                    )
                writer.append(completions=[c.to_json() for c in found])
                writer.commit()
                advance(len(found))
        writer.close()
        return {"completions": len(requests)}

    trained = [check_trained(experiment, root, True)]
    try:
        workdir.check(out, settings, trained)
    except UserError as error:
        raise UserError(
            f"{out}: was made from other prompts or settings of `generate`, with another checkpoint, or before a "
            f"database changed; delete that folder, or give --prompts={file} another name"
        ) from error
    workdir.build(out, settings, trained, make)
    return out / "completions.jsonl"


def _stamps(e: Experiment, root: Path, requests: Sequence[Request]) -> dict[str, str]:
    """What tells states of the databases apart that are read."""
    databases = Databases(e, root / "prepare")
    names = {name.partition("=")[0] for r in requests for name in r.databases}
    return {name: str(databases.stamp(name)) for name in sorted(names)}


def read_requests(experiment: Experiment, file: Path) -> list[Request]:
    """The requests of a file; see `generate_file`."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--prompts={file}: cannot be read ({error}); give a text or JSONL file"
        ) from error
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if file.suffix != ".jsonl":
            requests.append(dataclasses.replace(experiment.generate, prompt=line))
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}: line {number} is no JSON ({error}); mend it") from error
        if not isinstance(fields, dict) or "prompt" not in fields:
            raise UserError(
                f'{file}: line {number} is no request; write {{"prompt": "..."}}, with more fields of '
                "`generate` if you want"
            )
        given = dataclasses.asdict(experiment.generate) | fields
        try:
            made = from_config_dict({"name": experiment.name, "generate": given})
        except UserError as error:
            raise UserError(f"{file}: line {number}: {error}") from error
        requests.append(made.generate)
    if not requests:
        raise UserError(f"{file}: holds no prompt; write one a line")
    return requests


def fitting(e: Experiment, root: Path, requests: Sequence[Request], rows: int) -> Generator:
    """A generator with the room that requests need, and at least so many rows."""
    check_prepared(e, root)
    tokenizer = steps.load_tokenizer(root / "prepare")
    widths = [r.width(e.retrieval.neighbours) for r in requests]
    rows = max([rows] + [1 + w for r, w in zip(requests, widths) if r.contributions])
    length = max(r.room(len(prompt_ids(tokenizer, r.prompt)), e.model) for r in requests)
    generator = Generator.open(e, root, rows=rows, length=length, k=max(widths))
    try:
        for request in requests:
            generator.check(request, "config field generate.")
    except UserError:
        generator.close()
        raise
    return generator


def _warn(completions):
    for why in {c.retrieval for c in completions if c.retrieval.startswith("failed")}:
        progress.say(f"retrieval {why}: what followed was generated without neighbours")
