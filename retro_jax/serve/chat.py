"""OpenAI's chat completions: messages are read here, and answered as completions are."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from retro_jax.config.request import MOST_LOGPROBS
from retro_jax.errors import UserError
from retro_jax.generate import chat
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator
from retro_jax.serve import api
from retro_jax.serve.answer import Answer, event
from retro_jax.serve.reading import Refused, fields, flag, needed, text, whole, wrong

_TOKENS = 256  # of an answer, where the body says nothing
MESSAGES = 256  # at most
_OWN = (
    "messages",
    "logprobs",
    "top_logprobs",
    "response_format",
)  # of a chat, and not of a completion
OTHER = ("prompt", "echo", "logprobs", "suffix", "best_of")  # of a completion, and not of a chat


@dataclass(frozen=True)
class Asked(api.Asked):
    """What one body asks for.

    Attributes:
      passages: those that stand in the prompt that was made of the messages.
      k: how many were asked for; -1: as many as the method reads.
    """

    passages: list[dict] = field(default_factory=list)
    messages: list[dict] = field(default_factory=list)
    k: int = -1

    def width(self, g: Generator) -> int:
        """See `api.Asked.width`; passages in the prompt are no neighbours of its requests."""
        if g.method.by_chunk:
            return g.k if self.k < 0 else self.k
        return super().width(g)


def asked(
    body, model: str, generators: dict[str, Generator], opened: Callable[[], chat.Chat], most: int
) -> Asked:
    """What a body, as JSON was read, asks for; what its last question finds is looked up.

    Args:
      model: the name of the one that is served. generators: by the names of their methods.
      opened: what writes prompts, or raises UserError. most: choices of a body.

    Raises:
      Refused: with status 404 for another model, otherwise 400.
    """
    f = fields(body, "", _FIELDS)
    messages = needed(
        f, "messages", 'a list, for example [{"role": "user", "content": "What is ..?"}]'
    )
    if "top_logprobs" in f and not f.get("logprobs"):
        raise wrong("top_logprobs", f["top_logprobs"], "goes with logprobs = true only")
    plain = {n: v for n, v in body.items() if n in f and n not in _OWN} | {"prompt": "-"}
    if f.get("logprobs"):
        plain["logprobs"] = f.get("top_logprobs", 0)
    if "max_tokens" not in plain and "max_completion_tokens" not in plain:
        plain["max_tokens"] = _TOKENS
    first = next(iter(generators.values()))
    made = api.asked(plain, model, first.tokenizer, most, first.length, list(generators))
    generator = generators[made.method]
    try:
        chat.check(messages)
        one, passages = chat.asks(generator, opened(), messages, made.requests[0])
    except UserError as error:
        raise api.refusal(error) from error
    changed = {"prompt": one.prompt, "k": one.k, "special_tokens": True}
    requests = [dataclasses.replace(r, **changed) for r in made.requests]
    whole_of = {x.name: getattr(made, x.name) for x in dataclasses.fields(made)}
    return Asked(
        **whole_of | {"requests": requests},
        passages=passages,
        messages=messages,
        k=made.requests[0].k,
    )


class ChatAnswer(Answer):
    """The answer to one body, as OpenAI's chat.completion."""

    def __init__(self, asked: Asked, model: str, tokenizer):
        super().__init__(asked, model, tokenizer)
        self._frame |= {"id": "chat" + self._frame["id"], "object": "chat.completion"}
        self._pieces = self._frame | {"object": "chat.completion.chunk"}

    def prompt(self, i: int) -> bytes:
        """The event with which choice i begins."""
        return self._said(i, {"role": "assistant", "content": ""})

    def piece(self, i: int, piece) -> bytes:
        """The event of what is new of choice i."""
        return self._said(i, {"content": piece.text}, self._content(self._logprobs(i, piece)))

    def last(self, i: int, completion: Completion) -> bytes:
        """The event with which choice i ends."""
        choice = super()._choice(i, "", None, completion)
        more = {n: choice[n] for n in ("finish_reason", "retrieval")}
        return self._said(i, {}, None, self._told(more))

    def usage(self, completions: Sequence[Completion]) -> bytes:
        """The event after all choices, if it was asked for."""
        if not self._asked.include_usage:
            return b""
        return event(self._pieces | {"choices": [], "usage": self._usage(completions)})

    def _said(self, i: int, delta: dict, logprobs=None, more: dict | None = None) -> bytes:
        choice = {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        usage = {"usage": None} if self._asked.include_usage else {}
        return event(self._pieces | {"choices": [choice | (more or {})]} | usage)

    def _choice(
        self, i: int, text: str, logprobs=None, completion: Completion | None = None
    ) -> dict:
        choice = super()._choice(i, text, self._content(logprobs), completion)
        message = {"role": "assistant", "content": choice.pop("text"), "refusal": None}
        return self._told({"message": message} | choice)

    def _told(self, choice: dict) -> dict:
        """With the passages that stand in the prompt."""
        return choice | {"retrieval": choice["retrieval"] | {"passages": self._asked.passages}}

    def _content(self, logprobs: dict | None) -> dict | None:
        """Log-probabilities as chats have them."""
        if not logprobs:
            return None
        tops = logprobs["top_logprobs"] or [{}] * len(logprobs["tokens"])
        every = zip(logprobs["tokens"], logprobs["token_logprobs"], tops)
        return {
            "content": [
                _token(token, p) | {"top_logprobs": [_token(*one) for one in top.items()]}
                for token, p, top in every
            ],
            "refusal": None,
        }


def _token(token: str, logprob: float) -> dict:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _messages(value, name: str) -> list[dict]:
    if not isinstance(value, list) or not 0 < len(value) <= MESSAGES:
        raise wrong(name, value, f"must be a list of 1 to {MESSAGES} messages")
    read = [
        fields(m, f"{name}[{i}]", {"role": text, "content": _content, "name": text})
        for i, m in enumerate(value)
    ]
    for i, m in enumerate(read):
        needed(m, "role", f"one of {', '.join(chat.ROLES)}")
        needed(m, "content", f"the text of {name}[{i}]")
        m["role"] = "system" if m["role"] == "developer" else m["role"]
    return [{"role": m["role"], "content": m["content"]} for m in read]


def _content(value, name: str) -> str:
    """A text, or parts of one."""
    if not isinstance(value, list):
        return text(value, name)
    parts = [fields(p, f"{name}[{i}]", {"type": text, "text": text}) for i, p in enumerate(value)]
    for i, p in enumerate(parts):
        if p.get("type") != "text" or "text" not in p:
            raise Refused(
                f"{name}[{i}]: must be a part of type text; nothing else is read here", name
            )
    return "".join(p["text"] for p in parts)


_FIELDS = {n: read for n, read in api.FIELDS.items() if n not in OTHER} | {
    "messages": _messages,
    "logprobs": flag,
    "top_logprobs": whole(0, MOST_LOGPROBS),
    "response_format": api.neutral({"type": "text"}, "an answer is a text here"),
}
