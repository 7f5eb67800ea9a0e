"""`retro generate`: one prompt, a file of prompts, or a person who types them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from retro_jax import progress
from retro_jax.config import Experiment, Request, from_config_dict
from retro_jax.corpus.document import Unusable, as_text, digest, parsed
from retro_jax.databases.database import Databases
from retro_jax.errors import UserError
from retro_jax.generate.chat import Chat, asks
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import ids_of
from retro_jax.methods.method import method_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import artefact, columns, files
from retro_jax.store.workdir import WorkDir
from retro_jax.train.restore import check_trained

LENGTH = 2048  # tokens of a conversation
ROWS = 8  # prompts of a file that are continued together
_BLOCK = 4  # times as many prompts are given at a time, and complete together


def generate(work: WorkDir, method: str = "retro", chat: bool = False) -> dict:
    """Continues `generate.prompt`; writes the working directory's generate.json and returns what is in it:
    a `Completion`.

    method: the name of the method that continues it. chat: answer it instead, as a user's message (chat.py); there is
      `question` too, and `passages`, those that stand before it.
    """
    if chat:
        return _answer(work, method)
    request = work.experiment.generate
    with (
        fitting(work, [request], 1, method) as generator,
        progress.bar("generating", request.tokens) as advance,
    ):
        result = generator.generate_all([request], advance)[0]
    _warn([result])
    files.write_json(work.generated, result.to_json())
    return result.to_json()


def _answer(work: WorkDir, method: str) -> dict:
    check_prepared(work, only_live=True)
    request, made = work.experiment.generate, Chat(Prepared(work).tokenizer)
    messages = [{"role": "user", "content": request.prompt}]
    rows = 1 + work.experiment.retrieval.neighbours * request.contributions
    with Generator.open(work, method, rows=rows, length=LENGTH) as generator:
        asked, passages = asks(generator, made, messages, request)
        with progress.bar("answering", asked.tokens) as advance:
            result = generator.generate_all([asked], advance)[0]
    _warn([result])
    told = result.to_json() | {"question": request.prompt, "passages": passages}
    files.write_json(work.generated, told)
    return told


def generate_file(work: WorkDir, file: Path, rows: int = ROWS, method: str = "retro") -> Path:
    """Continues every prompt of a file, in the directory of its completions; goes on where it was killed.

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
    requests, out = read_requests(work.experiment, file), work.completions(file.stem)
    check_prepared(work, only_live=True)
    text = json.dumps([dataclasses.asdict(r) for r in requests], sort_keys=True)
    settings = {
        "prompts": digest(text, 16).hex(),
        "method": method,
        "evaluate.checkpoint": work.experiment.evaluate.checkpoint,
        "databases": _stamps(work, requests),
    }

    def make(partial: Path) -> dict:
        writer = columns.Writer(partial, {"completions": columns.LINES})
        done = writer.rows("completions")
        with (
            fitting(work, requests, rows, method) as generator,
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

    trained = [check_trained(work, method_of(work.experiment, method))]
    try:
        artefact.check(out, settings, trained)
    except UserError as error:
        raise UserError(
            f"{out}: was made from other prompts or settings of `generate`, with another checkpoint, or before a "
            f"database changed; delete that folder, or give --prompts={file} another name"
        ) from error
    with work.lock("generate"):
        artefact.build(out, settings, trained, make)
    return out / "completions.jsonl"


def _stamps(work: WorkDir, requests: Sequence[Request]) -> dict[str, str]:
    """What tells states of the databases apart that are read."""
    databases = Databases(Prepared(work))
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
            fields = parsed(line.encode())
            as_text("prompt", fields)
        except Unusable as error:
            raise UserError(f"{file}: line {number}: {error}; mend it") from error
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


def fitting(work: WorkDir, requests: Sequence[Request], rows: int, method: str) -> Generator:
    """A generator with the room that requests need, and at least so many rows."""
    check_prepared(work, only_live=True)
    e, tokenizer = work.experiment, Prepared(work).tokenizer
    widths = [r.width(method_of(e, method).k) for r in requests]
    rows = max([rows] + [1 + w for r, w in zip(requests, widths) if r.contributions])
    length = max(r.room(len(ids_of(tokenizer, r)), e.model) for r in requests)
    generator = Generator.open(work, method, rows=rows, length=length, k=max(widths))
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
