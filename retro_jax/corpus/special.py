"""What a given tokenizer's directory, or a GGUF file, says beside the pieces: which tokens begin and end texts, and how
a conversation is written."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from retro_jax.corpus import gguf
from retro_jax.errors import UserError

FILE = "special.json"  # beside a prepared tokenizer
_TEMPLATES = "chat_template.jinja", "tokenizer_config.json"


@dataclass(frozen=True)
class Special:
    """Token ids of a tokenizer's own file.

    Attributes:
      bos: which begins texts. eos: which end them, that of documents first.
      template: of a conversation, in Jinja as transformers has it; "" for none.
    """

    bos: int | None = None
    eos: tuple[int, ...] = ()
    template: str = ""

    def to_json(self) -> bytes:
        """What `read` reads."""
        return json.dumps(dataclasses.asdict(self)).encode()


def read(directory: Path) -> Special:
    """That of a prepared tokenizer; an empty one where nothing was known."""
    file = UPath(directory) / FILE
    if not file.exists():
        return Special()
    try:
        found = json.loads(file.read_bytes())
        return Special(found["bos"], tuple(found["eos"]), found["template"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: is damaged ({error}); prepare the tokenizer again") from error


def given_with(path: Path) -> Special:
    """What stands with a given tokenizer: in the GGUF file, or beside the tokenizer.json.

    Raises:
      UserError: a file of it cannot be read.
    """
    if gguf.is_one(path):
        names = ("bos_token_id", "eos_token_id", "eot_token_id")
        bos, *eos = (gguf.field(path, f"tokenizer.ggml.{n}") for n in names)
        template = gguf.field(path, "tokenizer.chat_template", "")
        return Special(_id(bos), _ids(*eos), str(template))
    folder = UPath(path).parent
    config, more = (_fields(folder / n) for n in ("config.json", "generation_config.json"))
    eos = _ids(config.get("eos_token_id"), more.get("eos_token_id"))
    return Special(_id(config.get("bos_token_id")), eos, _template(folder))


def _template(folder: Path) -> str:
    alone, config = (folder / name for name in _TEMPLATES)
    if alone.is_file():
        return alone.read_text()
    found = _fields(config).get("chat_template")
    if isinstance(found, list):  # of several, each {"name", "template"}
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else ""


def _fields(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); mend it, or move it elsewhere"
        ) from error
    return found if isinstance(found, dict) else {}


def _id(value) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _ids(*values) -> tuple[int, ...]:
    """Ids of numbers and lists of them, each once, in order."""
    every = [v for value in values for v in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(v for v in every if _id(v) is not None))
