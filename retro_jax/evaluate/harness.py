"""A model of EleutherAI's lm-evaluation-harness: its tasks, answered with retrieval in the loop.

`retro lm-eval` runs it. Needs `pip install 'retro_jax[lm-eval]'`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

try:
    import yaml
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    why = "the harness is not installed: pip install 'retro_jax[lm-eval]'"
    raise ModuleNotFoundError(why, name="lm_eval") from error


from retro_jax import progress
from retro_jax.config import Request
from retro_jax.errors import UserError
from retro_jax.evaluate.score import Pair
from retro_jax.evaluate.scorer import Scorer
from retro_jax.generate.chat import Chat
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import ids_of
from retro_jax.methods.method import method_of
from retro_jax.store.workdir import WorkDir

_TOKENS = 256  # that are generated, where a task does not say
_RESAMPLES = 1000
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NUMBERS = dict.fromkeys((*_LENGTHS, "top_k", "seed", "num_beams"), int)
_NUMBERS |= dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), float)
_KNOWN = {"until", "do_sample", *_NUMBERS}


@register_model("retro")
class RetroLM(LM):
    """A working directory that is trained, for `lm_eval.simple_evaluate(model=RetroLM(...))`.

    Args:
      workdir: the working directory. method: the name of the method that answers.
      k: neighbours of a chunk, 0 for none; by default as in training.
      align: padding before the context, so that a chunk ends where it does.
      rows: texts of a batch; by default `evaluate.batch`.
      batch_size, max_batch_size, device: what the harness gives to every model; not used.

    Raises:
      UserError: something is missing, or was made with another config.
    """

    def __init__(
        self, workdir: Path | str, method: str = "retro", k: int | None = None, align: bool = False,
        rows: int | None = None, batch_size=None, max_batch_size=None, device=None,
    ):  # fmt: skip
        super().__init__()
        # The harness's bootstrap would fork this process, whose threads may hold a lock just then.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        self._work = WorkDir.of(workdir)
        e, self._method = self._work.experiment, method
        self._k, self._align = method_of(e, method).k if k is None else k, align
        self._rows = e.evaluate.batch if rows is None else rows
        self.scorer = Scorer.open(self._work, method, rows=self._rows, align=align)
        self._chat: Chat | None = None

    @property
    def tokenizer_name(self) -> str:
        """By which the harness knows in its cache whose prompts they are."""
        return str(self._work.root).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own, in Jinja.

        Raises:
          UserError: it has none, or another was asked for by its name.
        """
        if isinstance(chat_template, str):
            raise UserError(
                f"chat_template = {chat_template}: a model has one template here; give True"
            )
        if not chat_template:
            self._chat = None
            return None
        self._chat = Chat(self.scorer.tokenizer)
        return self.scorer.tokenizer.template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation; from then on special tokens in contexts are tokens.

        add_generation_prompt: False where the last message is the beginning of the answer.
        """
        self._chat = self._chat or Chat(self.scorer.tokenizer)
        return self._chat.prompt(chat_history, begun=not add_generation_prompt)

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """log p of each continuation given its context, nats, and whether it is the most probable one."""
        pairs = [Pair(*r.args) for r in requests]
        scores = self.scorer.score(pairs, self._k, special_tokens=self._chat is not None)
        return [(s.logp, s.greedy) for s in scores]

    def loglikelihood_rolling(self, requests) -> list[float]:
        """log p of each text, nats."""
        return [s.logp for s in self.scorer.rolling([r.args[0] for r in requests], self._k)]

    def generate_until(self, requests) -> list[str]:
        """A continuation of each context, of which the last `train.length` tokens are read at most.

        Raises:
          UserError: a task asks for what `Request` has no field for.
        """
        made = [self._request(*r.args) for r in requests]
        tokenizer, model = self.scorer.tokenizer, self.scorer.model
        length = max((r.room(len(ids_of(tokenizer, r)), model) for r in made), default=1)
        sizes = {"rows": self._rows, "length": length, "k": self._k}
        with (
            Generator.open(self._work, self._method, **sizes) as generator,
            progress.bar("generating tokens", None) as advance,
        ):
            done = generator.generate_all(made, advance)
        for completion in done:
            if completion.retrieval.startswith("failed"):
                raise RuntimeError(f"retrieval {completion.retrieval}")
        return [c.text for c in done]

    def _request(self, context: str, how: dict) -> Request:
        if unknown := how.keys() - _KNOWN:
            raise UserError(
                f"generation_kwargs: {', '.join(sorted(unknown))}: not known here; leave it out of the "
                f"task, there are {', '.join(sorted(_KNOWN))}"
            )
        how = {name: _value(name, value) for name, value in how.items() if value is not None}
        if how.get("num_beams", 1) != 1:
            raise UserError(
                f"generation_kwargs: num_beams = {how['num_beams']}: beams are not known here; give 1"
            )
        if how.get("do_sample"):
            how.setdefault("temperature", 1.0)
        how = normalize_gen_kwargs(how, _TOKENS)
        drawn = ("top_k", "top_p", "min_p") if how["do_sample"] else ()
        return Request(
            prompt=self._end(context),
            tokens=how["max_gen_toks"],
            stop=tuple(u for u in how["until"] if u),
            temperature=how.get("temperature", 0.0),
            **{n: how[n] for n in (*drawn, "repetition_penalty", "seed") if n in how},
            k=self._k,
            align=self._align,
            special_tokens=self._chat is not None,
        )

    def _end(self, context: str) -> str:
        """As much of the end of a context as `train.length` has room for, BOS before it; a conversation whole."""
        tokenizer, room = self.scorer.tokenizer, self.scorer.length - 1
        if self._chat:
            return context
        ids = tokenizer.encode(context)
        while len(ids) > self.scorer.length - 1:  # what is cut may be encoded otherwise
            context = tokenizer.decode_bytes(ids[-room:]).decode(errors="ignore")
            ids, room = tokenizer.encode(context), room - 1
        return context


def _value(name: str, value):
    """What a task, or whoever runs it, says of generation; numbers may be text, as those of a command line are."""
    kind = _NUMBERS.get(name)
    if name == "do_sample" and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise UserError(f"generation_kwargs: do_sample = {value!r}: must be true or false")
        return value.lower() == "true"
    if kind is None:
        return value
    try:
        found = float(value)
        if kind is int and not found.is_integer():
            raise ValueError(value)
        return kind(found)
    except (TypeError, ValueError) as error:
        wanted = "a whole number" if kind is int else "a number"
        raise UserError(f"generation_kwargs: {name} = {value!r}: must be {wanted}") from error


class _Names(yaml.SafeLoader):
    """Reads a task's file for its name; what of it is code is left alone."""


_Names.add_multi_constructor("!", lambda loader, suffix, node: None)


def _task(file: Path) -> str:
    """The name of the task in a file."""
    try:
        found = yaml.load(file.read_text(), _Names)
        return found["task"]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(
            f"--tasks: {file}: no task ({error}); it needs a line task: NAME"
        ) from error


def run(
    model: RetroLM,
    tasks: Sequence[str],
    include_path: str | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
) -> dict:
    """The harness's results of tasks.

    Args:
      model: reads plain text again, whatever was asked of it before.
      tasks: names, or files FILE.yaml, whose folders are then folders of tasks too.
      include_path: a folder of more tasks. limit: items of each task; below 1, their share.
      num_fewshot: examples before each item; None: as the task says. chat: each item is a message, by the model's
        chat template.

    Raises:
      UserError: there is no task of this name.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    model.chat_template(False)
    folders, names = [include_path] if include_path else [], []
    for task in tasks:
        file = Path(task)
        names.append(_task(file) if file.suffix in (".yaml", ".yml") else task)
        folders += [str(file.parent)] if file.suffix in (".yaml", ".yml") else []
    manager = TaskManager(include_path=folders or None)
    if missing := [name for name in names if name not in manager.all_tasks]:
        raise UserError(f"--tasks: no task {', '.join(missing)}; is --include_path right?")
    return lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, num_fewshot=num_fewshot,
        limit=int(limit) if limit and limit >= 1 else limit,
        apply_chat_template=chat, bootstrap_iters=_RESAMPLES, log_samples=False,
    )  # fmt: skip
