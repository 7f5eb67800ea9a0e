"""What is asked for: a prompt, how it is continued, and what is retrieved for it."""

import math
from dataclasses import dataclass

from retro_jax.config.fields import setting
from retro_jax.config.filters import Where
from retro_jax.errors import UserError

MOST_STOPS, MOST_LOGPROBS = 16, 5


@dataclass(frozen=True)
class Request:
    """One continuation. The fields of `generate` in a config, of an HTTP request, of a line of a file."""

    prompt: str = setting("def main(argv=None):\n", "the text that is continued")
    tokens: int = setting(128, "how many to add at most; 0 only looks up what the prompt retrieves")
    temperature: float = setting(0.0, "0: the most probable token")
    top_k: int = setting(0, "draw from so many most probable tokens; 0: all")
    top_p: float = setting(1.0, "from the fewest most probable ones that have so much probability")
    min_p: float = setting(
        0.0, "from those at least so probable, relative to the most probable one"
    )
    repetition_penalty: float = setting(
        1.0, "above 1 makes tokens that were there already less probable"
    )
    seed: int = setting(0, "the same gives the same text")
    stop: tuple[str, ...] = setting((), "texts that end the continuation, and are not part of it")
    stop_tokens: tuple[int, ...] = setting(
        (), "token ids that end it, as the end of a document does"
    )
    ignore_eos: bool = setting(False, "go on where a document ends")
    logprobs: int = setting(0, "report the log p of so many most probable tokens at each place")
    # What is retrieved.
    k: int = setting(-1, "neighbours that a chunk reads; -1: as in training; 0: no retrieval")
    retrieval_step: int = setting(
        0, "tokens from one look-up of the last chunk to the next; 0: a chunk"
    )
    align: bool = setting(
        False, "chunks end where the prompt ends: its last tokens retrieve at once"
    )
    in_prompt: bool = setting(False, "RETRO++: the nearest passage also stands before the prompt")
    neighbours: tuple[str, ...] = setting(
        (), "texts that every chunk reads instead of what is looked up"
    )
    databases: tuple[str, ...] = setting(
        ("prepared",), "what is searched, each NAME or NAME=WEIGHT"
    )
    where: Where = setting(Where(), "which documents may be read")
    contributions: bool = setting(False, "what each neighbour was worth to each token")
    special_tokens: bool = setting(
        False, "special tokens that stand in the prompt are tokens, as chat templates write them"
    )

    def __post_init__(self):
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        for name in ("stop", "neighbours", "databases"):
            values = getattr(self, name)
            if isinstance(values, str):
                raise UserError(
                    f"{name} = {values!r}: must be a list of texts, for example [{values!r}]"
                )
            object.__setattr__(self, name, tuple(values))

    def width(self, default: int) -> int:
        """How many neighbours a chunk reads, where `default` is what -1 stands for."""
        if self.neighbours:
            return len(self.neighbours) if self.k else 0
        return default if self.k < 0 else self.k

    def room(self, prompt: int, model) -> int:
        """The most tokens that it can have in all, its prompt having so many, BOS included.
        model: its ModelConfig."""
        chunk, retrieved = model.reading.chunk, model.reading.retrieved
        more = self.align * (chunk - 1) + self.in_prompt * (retrieved + 2)
        return prompt + self.tokens + more

    def check(self, named: str = ""):
        """Raises UserError for the first field whose value cannot work; `named` precedes its name."""
        for name, ok, remedy in (
            ("tokens", self.tokens >= 0, "must not be negative"),
            ("temperature", _within(self.temperature, 0, 100), "must lie between 0 and 100"),
            ("top_k", 0 <= self.top_k < 2**31, "must be 0, for all, or a number of tokens"),
            ("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("min_p", _within(self.min_p, 0, 1), "must lie between 0 and 1"),
            ("repetition_penalty", _within(self.repetition_penalty, 0.01, 100),
             "must lie between 0.01 and 100; 1 is none"),
            ("seed", 0 <= self.seed < 2**32, "must lie between 0 and 2^32 - 1"),
            ("stop", len(self.stop) <= MOST_STOPS and all(self.stop),
             f"must be at most {MOST_STOPS} texts, none of them empty"),
            ("stop_tokens", all(isinstance(t, int) and t >= 0 for t in self.stop_tokens),
             "must be token ids, for example [5, 7]"),
            ("logprobs", 0 <= self.logprobs <= MOST_LOGPROBS,
             f"must lie between 0 and {MOST_LOGPROBS}"),
            ("k", self.k >= -1, "must be a number of neighbours, 0 for none, or -1 for the default"),
            ("retrieval_step", self.retrieval_step >= 0, "must be a number of tokens, or 0"),
            ("databases", bool(self.databases), "must name a database, for example 'prepared'"),
            ("neighbours", all(self.neighbours), "none of the texts may be empty"),
        ):  # fmt: skip
            if not ok:
                raise UserError(f"{named}{name} = {getattr(self, name)!r}: {remedy}")


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high
