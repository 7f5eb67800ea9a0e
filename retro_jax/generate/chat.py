"""Conversations: messages become a prompt, by the chat template that came with the model's tokenizer.

What is retrieved comes in one of two ways. RETRO and kNN-LM look up what they generate, as ever. A method that reads
by its prompt (rag, replug) is the plain language model here, and the passages that the last question finds stand
before that question.
"""

import dataclasses
import datetime
import json
from collections.abc import Sequence

from retro_jax.config.request import Request
from retro_jax.corpus.tokenizer import BOS
from retro_jax.errors import UserError
from retro_jax.generate.generator import Generator

ROLES = ("system", "user", "assistant")
PASSAGES = 32  # at most
_BEFORE = "Use the following passages where they help.\n\n{passages}\n\nQuestion: {question}"


class Chat:
    """Writes prompts of conversations.

    Args:
      tokenizer: with a template.

    Raises:
      UserError: it has none, one that cannot be read, or Jinja2 is missing.
    """

    def __init__(self, tokenizer):
        if not tokenizer.template:
            raise UserError(
                "this model has no chat template: chat with a base whose tokenizer comes with one "
                "(chat_template.jinja, tokenizer_config.json, or in a GGUF file), or continue a plain prompt"
            )
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError as error:
            raise UserError("chat needs Jinja2: pip install 'retro_jax[chat]'") from error
        # As transformers has it: templates are written for that.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _marks()]
        )
        environment.filters["tojson"] = _json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        self._tokenizer, self._errors = (
            tokenizer,
            (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError),
        )
        try:
            self._template = environment.from_string(tokenizer.template)
        except TemplateError as error:
            raise UserError(f"the model's chat template cannot be read ({error})") from error
        names = {id: name for name, id in tokenizer.specials.items()}
        first, last = (names.get(id, "") for id in (BOS, tokenizer.ends[0]))
        self._names = {"bos_token": first, "eos_token": last}

    def prompt(
        self, messages: Sequence[dict], passages: Sequence[dict] = (), begun: bool = False
    ) -> str:
        """The prompt that asks for the next message, for a `Request` with special_tokens=True.

        Args:
          messages: {"role": one of ROLES, "content": text} each. What would be a special token in a text stays text.
          passages: {"text": ..} of each that stands before the last question.
          begun: the last message is the beginning of the answer, which the prompt ends with.

        Raises:
          UserError: the template refuses them.
        """
        given = [m | {"content": self._tokenizer.literally(m["content"])} for m in messages]
        if passages:
            at = _last_question(given)
            told = [self._tokenizer.literally(p["text"].strip()) for p in passages]
            told = "\n\n".join(f"[{i}] {text}" for i, text in enumerate(told, 1))
            asks = _BEFORE.format(passages=told, question=given[at]["content"])
            given[at] = given[at] | {"content": asks}
        try:
            written = self._template.render(
                messages=given,
                add_generation_prompt=not begun,
                tools=None,
                documents=None,
                **self._names,
            )
        except self._errors as error:
            raise UserError(
                f"messages: the model's chat template refuses them ({error})"
            ) from error
        if not begun:
            return written
        whole = given[-1]["content"]
        last = whole if whole in written else whole.strip()  # templates strip, or do not
        if last not in written:
            raise UserError(
                "messages: the model's chat template leaves out the last message, which the answer begins with"
            )
        return written[: written.rindex(last) + len(last)]


def asks(
    generator: Generator, chat: Chat, messages: Sequence[dict], request: Request
) -> tuple[Request, list[dict]]:
    """What to ask a generator for, and the passages that stand in its prompt, each as `Retriever.search` tells it.

    request: how the answer is to be generated, and what is to be retrieved for it.

    Raises:
      UserError: as `Chat.prompt` and `Retriever.search`.
    """
    passages, k = [], request.k
    if generator.method.by_chunk:
        if k > PASSAGES:
            raise UserError(f"k = {k}: at most {PASSAGES} passages can stand before a question")
        if most := generator.k if k < 0 else k:
            question = messages[_last_question(messages)]["content"]
            passages = generator.retriever.search(question, most, request.where, request.databases)
        k = 0
    prompt = chat.prompt(messages, passages)
    return dataclasses.replace(request, prompt=prompt, k=k, special_tokens=True), passages


def check(messages: Sequence[dict]):
    """Raises UserError unless messages are a conversation that ends with a question."""
    for number, m in enumerate(messages):
        role, content = m.get("role"), m.get("content")
        if role not in ROLES:
            raise UserError(
                f"messages[{number}].role = {role!r}: must be one of {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise UserError(f"messages[{number}].content: must be a text")
    if not messages or messages[-1]["role"] != "user":
        raise UserError("messages: the last one must be a user's, which is answered")


def _marks():
    """The tag {% generation %} of templates, which marks what a model was trained on; it writes what stands in it."""
    from jinja2 import ext, nodes

    class Marks(ext.Extension):
        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(
                parser.parse_statements(["name:endgeneration"], drop_needle=True), lineno=line
            )

    return Marks


def _last_question(messages: Sequence[dict]) -> int:
    return max(i for i, m in enumerate(messages) if m["role"] == "user")


def _refuse(message: str):
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
