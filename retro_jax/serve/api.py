"""What a client may ask for: the body of OpenAI's completions, and what a RETRO adds to it."""

import dataclasses
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from retro_jax.config.filters import Where
from retro_jax.config.request import MOST_LOGPROBS, Request
from retro_jax.errors import UserError
from retro_jax.generate.generator import Generator
from retro_jax.serve import reading
from retro_jax.serve.reading import Refused, fields, flag, number, text, texts, whole, wrong

CHOICES, STOPS = 8, 4  # at most
MANY = 2**31 - 1  # what a device's integers hold
SEEDS = 2**32
_LIST = 1024  # entries of a list, and more than a request can use
_MESSAGE = 600  # characters; what is refused may be long

# Fields of a Request that a body names as it does.
_PLAIN = ("top_p", "top_k", "min_p", "repetition_penalty", "stop", "ignore_eos")
# And as a body names others.
_NAMES = {
    "tokens": "max_tokens",
    "k": "retrieval.k",
    "retrieval_step": "retrieval.step",
    "align": "retrieval.align",
    "in_prompt": "retrieval.in_prompt",
    "neighbours": "retrieval.neighbours",
    "databases": "retrieval.databases",
    "where": "retrieval.where",
    "contributions": "retrieval.contributions",
}


@dataclass(frozen=True)
class Asked:
    """What one body asks for.

    Attributes:
      requests: `n` for each prompt, in order.
      logprobs: how many probable tokens each place is to show; None: no log p at all.
      method: the name of the method that answers.
      sources: whether the sources of its sentences are to be told.
    """

    requests: list[Request]
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    logprobs: int | None = None
    method: str = ""
    sources: bool = False

    def width(self, g: Generator) -> int:
        """How many neighbours or passages are to be read."""
        return self.requests[0].width(g.k)


def asked(
    body, model: str, tokenizer, most: int, length: int, methods: Sequence[str] = ()
) -> Asked:
    """What a body, as JSON was read, asks for.

    Args:
      model: the name of the one that is served.
      methods: names of those that answer, the first one where a body names none.
      tokenizer: of prompts that are token ids.
      most: choices that one body may ask for, those of all prompts together. length: tokens of a prompt.

    Raises:
      Refused: with status 404 for another model, otherwise 400.
    """
    f = fields(body, "", FIELDS)
    check_model(f, model)
    method = f.get("method", next(iter(methods), ""))
    if "method" in f and method not in methods:
        remedy = f"must be one of those that this server was started with: {', '.join(methods)}"
        raise wrong("method", method, remedy)
    given = reading.needed(f, "prompt", 'a text, for example "It was"')
    prompts = texts_of(given, "prompt", tokenizer, length)
    n, stream, logprobs = f.get("n", 1), f.get("stream", False), f.get("logprobs")
    if len(prompts) * n > most:
        raise Refused(
            f"prompt: {len(prompts)} prompts with n = {n} are {len(prompts) * n} requests; send at most "
            f"{most} in a body",
            "prompt",
        )
    if f.get("best_of", n) not in (1, n):
        raise wrong(
            "best_of", f["best_of"], f"choices are not compared here; leave it out, or give n = {n}"
        )
    if "stream_options" in f and not stream:
        raise wrong(
            "stream_options", f["stream_options"], "goes with stream = true only; leave it out"
        )
    if f.get("echo") and logprobs is not None:
        _scored(f.get("retrieval", {}))
    seed = f.get("seed", -1)
    seed = secrets.randbelow(SEEDS) if seed < 0 else seed
    stops = tuple(id + tokenizer.first for id in f.get("stop_token_ids", ()))
    try:
        one = Request("", stop_tokens=stops, **_request(f))
        one.check()
    except UserError as error:
        raise refusal(error) from error
    return Asked(
        [
            dataclasses.replace(one, prompt=prompt, seed=(seed + i) % SEEDS)
            for prompt in prompts
            for i in range(n)
        ],
        n,
        stream,
        f.get("stream_options", {}).get("include_usage", False),
        f.get("echo", False),
        logprobs,
        method,
        f.get("retrieval", {}).get("sources", False),
    )


def check_model(f: dict, model: str):
    """Raises Refused if a body's fields name another model than the one that is served."""
    if f.get("model", model) != model:
        message = f"model = {f['model'][:60]!r}: there is no such model here; give {model!r}, or leave it out"
        raise Refused(message, "model", 404, "model_not_found")


def refusal(error: UserError) -> Refused:
    """What a Request, a Where or a Generator has against a field, by the name that a body has for it."""
    message, param = str(error), None
    if found := re.match(r"(\w+)((?:\.\w+)*)(?= = |: )", message):
        param = _NAMES.get(found[1], found[1]) + found[2]
        message = param + message[found.end() :]
    return Refused(message[:_MESSAGE], param)


def _scored(retrieval: dict):
    """Refuses what the tokens of a prompt cannot be scored with."""
    if odd := [n for n in retrieval if n not in ("k", "databases", "contributions", "sources")]:
        raise Refused(
            f"retrieval.{odd[0]}: the tokens of a prompt are scored with retrieval.k and retrieval.databases only; "
            f"leave it out, or logprobs, or echo",
            f"retrieval.{odd[0]}",
        )


def _request(f: dict) -> dict:
    """Fields of a Request, from those of a body."""
    r, most = f.get("retrieval", {}), f.get("max_completion_tokens", f.get("max_tokens", 16))
    if f.get("max_tokens", most) != most:
        raise wrong(
            "max_tokens",
            f["max_tokens"],
            f"max_completion_tokens = {most} says otherwise; give one",
        )
    given = {"tokens": most, "temperature": f.get("temperature", 1.0)}
    given |= {n: f[n] for n in _PLAIN if n in f}
    given["logprobs"] = f.get("logprobs", 0)
    given |= {"retrieval_step" if n == "step" else n: v for n, v in r.items() if n != "sources"}
    if r.get("sources"):
        given["contributions"] = True
    if "where" in r:
        given["where"] = Where(**r["where"])
    return given


def texts_of(value: str | list, name: str, tokenizer, length: int) -> list[str]:
    """The texts of what `prompt_of` read: of token ids those that they have.

    Raises:
      Refused: more ids than `length`, or such as no text has.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value[0], str):
        return value
    if isinstance(value[0], int):
        return [_text_of(value, name, tokenizer, length)]
    return [_text_of(ids, f"{name}[{i}]", tokenizer, length) for i, ids in enumerate(value)]


def _text_of(ids: list[int], name: str, tokenizer, length: int) -> str:
    """The text of token ids, the tokenizer's own, if they are those that the text has."""
    if len(ids) > length:
        remedy = (
            f"has {len(ids):,} tokens, more than the {length:,} that there is room for; shorten it"
        )
        raise wrong(name, ids, remedy)
    ours = [id + tokenizer.first for id in ids]
    if all(id < tokenizer.vocab for id in ours):
        found = tokenizer.decode(ours)
        if tokenizer.encode(found) == ours:
            return found
    raise wrong(
        name, ids, "must be the ids that this model's tokenizer gives a text; send the text instead"
    )


def prompt_of(value, name: str) -> str | list:
    """A text, texts, token ids, or lists of such ids."""
    if isinstance(value, str):
        return text(value, name)
    remedy = "must be a text, a list of texts, a list of token ids or a list of such lists, none of them empty"
    if not isinstance(value, list) or not value:
        raise wrong(name, value, remedy)
    if isinstance(value[0], str):
        return [text(one, f"{name}[{i}]") for i, one in enumerate(value)]
    rows = value if isinstance(value[0], list) else [value]
    if not all(isinstance(row, list) and row and all(map(_is_id, row)) for row in rows):
        raise wrong(name, value, remedy)
    return value


def _is_id(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MANY


def ids(most: int) -> reading.Reader:
    """A list of at most so many token ids."""

    def read(value, name: str) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) > most or not all(map(_is_id, value)):
            raise wrong(name, value, f"must be a list of at most {most:,} token ids")
        return tuple(value)

    return read


def _stop(value, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (text(value, name),)
    return texts(STOPS)(value, name)


def neutral(neutral, why: str) -> reading.Reader:
    """A reader of a field that does nothing here, and may say so only."""

    def read(value, name: str):
        if isinstance(value, bool) or value != neutral:
            raise wrong(name, value, f"{why}; leave it out, or give {neutral!r}")
        return value

    return read


def _object_of(readers: dict) -> reading.Reader:
    return lambda value, name: fields(value, name, readers)


_WHERE = {"date_from": text, "date_to": text, "licence": texts(_LIST), "source": texts(_LIST)}
_RETRIEVAL = {
    "k": whole(0, MANY),
    "step": whole(0, MANY),
    "align": flag,
    "in_prompt": flag,
    "neighbours": texts(_LIST),
    "databases": texts(_LIST),
    "where": _object_of(_WHERE),
    "contributions": flag,
    "sources": flag,
}
FIELDS = {
    "model": text,
    "method": text,
    "prompt": prompt_of,
    "max_tokens": whole(0, MANY),
    "max_completion_tokens": whole(0, MANY),
    "temperature": number,
    "top_p": number,
    "n": whole(1, CHOICES),
    "stream": flag,
    "stream_options": _object_of({"include_usage": flag, "include_obfuscation": flag}),
    "logprobs": whole(0, MOST_LOGPROBS),
    "echo": flag,
    "stop": _stop,
    "stop_token_ids": ids(_LIST),
    "ignore_eos": flag,
    "seed": whole(-1, SEEDS - 1),
    "user": text,
    "top_k": whole(0, MANY),
    "min_p": number,
    "repetition_penalty": number,
    "retrieval": _object_of(_RETRIEVAL),
    "best_of": whole(1, CHOICES),
    "presence_penalty": neutral(0, "there is repetition_penalty instead"),
    "frequency_penalty": neutral(0, "there is repetition_penalty instead"),
    "logit_bias": neutral({}, "tokens have no bias here"),
    "suffix": neutral("", "nothing is put into a text here"),
}
