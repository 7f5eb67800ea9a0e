"""The items of a task: lines of a JSONL file as contexts and what may follow them."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from retro_jax.corpus import files
from retro_jax.corpus.document import parsed
from retro_jax.corpus.sources import LARGEST
from retro_jax.errors import UserError

EXAMPLES = {
    "lambada": '{"text": "She opened the door and went into the house"}',
    "choice": '{"question": "The sky is", "choices": ["blue", "a fish"], "answer": 0}',
    "qa": '{"question": "who wrote Emma", "answer": ["Jane Austen", "Austen"]}',
}
KINDS = tuple(EXAMPLES)


@dataclass(frozen=True)
class Item:
    """One line.

    Attributes:
      line: its number, from 1. context: what is given.
      targets: what may follow: of lambada the last word, of choice every choice, of qa every accepted answer.
      answer: which of a choice's targets is right; otherwise 0.
    """

    line: int
    context: str
    targets: tuple[str, ...]
    answer: int = 0


def parse(task: str) -> tuple[str, str]:
    """KIND:FILE -> kind and file.

    Raises:
      UserError: it is not of this form.
    """
    kind, _, file = task.partition(":")
    if kind not in KINDS or not file:
        raise UserError(
            f"--task={task}: must be {', '.join(f'{k}:FILE' for k in KINDS[:-1])} or {KINDS[-1]}:FILE"
        )
    return kind, file


def read(kind: str, file: str, limit: int | None = None) -> list[Item]:
    """The first `limit` items of a file, or all; it may be compressed (.gz, .zst, .bz2, .xz).

    Raises:
      UserError: a file that cannot be read or holds no item, or a line that is none.
    """
    items = []
    for number, line in files.lines(file, LARGEST):
        if limit is not None and len(items) == limit:
            break
        if line is None:
            raise UserError(f"{file}: line {number} has more than {LARGEST:,} bytes; shorten it")
        if line.strip():
            items.append(_READ[kind](_Line(kind, file, number, line)))
    if not items:
        raise UserError(f"{file}: holds no item; write one a line, {EXAMPLES[kind]}")
    return items


class _Line:
    """The fields of one line, checked."""

    def __init__(self, kind: str, file: str, number: int, line: bytes):
        self.number, self._kind, self._where = number, kind, f"{file}: line {number}"
        try:
            self._fields = parsed(line)
            json.dumps(self._fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise UserError(
                f"{self._where} holds half a character, {error.object[error.start]!r}; mend or remove it"
            ) from error
        except ValueError as error:
            raise UserError(f"{self._where} is no JSON ({error}); mend or remove it") from error
        if not isinstance(self._fields, dict):
            self.refuse("the line", self._fields, "an object")

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str, ok: Callable, must: str):
        """A field whose value must be what `ok` says."""
        value = self._fields.get(name)
        if not ok(value):
            self.refuse(name, value, must)
        return value

    def text(self, name: str) -> str:
        """A field that must hold text."""
        return self.get(name, _is_text, "a text that is not blank")

    def texts(self, name: str, least: int) -> tuple[str, ...]:
        """A field that must hold a list of so many texts."""

        def ok(v):
            return isinstance(v, list) and len(v) >= least and all(map(_is_text, v))

        return tuple(self.get(name, ok, f"a list of {least} or more texts, none of them blank"))

    def refuse(self, name: str, value, must: str):
        """Raises the UserError for a value."""
        shown = json.dumps(value, ensure_ascii=False)
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        raise UserError(
            f"{self._where}: {name} = {shown}: must be {must}; for example {EXAMPLES[self._kind]}"
        )


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lambada(line: _Line) -> Item:
    text = line.text("text").rstrip()
    if len(text.split()) < 2:
        line.refuse("text", text, "two words or more")
    context = text.rsplit(maxsplit=1)[0]
    return Item(line.number, context, (text[len(context) :],))


def _choice(line: _Line) -> Item:
    context = line.text("context" if "context" in line else "question")
    choices = line.texts("choices", 2)

    def ok(v):
        return type(v) is int and 0 <= v < len(choices)

    answer = line.get("answer", ok, f"the number of the right choice, 0 to {len(choices) - 1}")
    return Item(line.number, context.rstrip(), tuple(f" {c}" for c in choices), answer)


def _qa(line: _Line) -> Item:
    prompt = f"Question: {line.text('question').strip()}\nAnswer:"
    return Item(line.number, prompt, line.texts("answer", 1))


_READ = {"lambada": _lambada, "choice": _choice, "qa": _qa}
