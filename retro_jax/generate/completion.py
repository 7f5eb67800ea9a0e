"""What became of a request: its text, and what was read for it."""

import dataclasses
from dataclasses import dataclass, field


@dataclass
class Completion:
    """What became of a request.

    Attributes:
      text: the continuation alone.
      tokens, logprobs: its token ids and the model's log p of each, nats.
      ends: how many characters of the text there are after each token.
      top: for each token {token id: log p} of the most probable ones, if `logprobs` asked for them.
      finish: stop (the end of a document, or a stop text), length or cancelled.
      chunks: what was looked up, and read from then on until the next one:
        text, of the chunk that retrieved; begin, the place of the first token that read it, among all
        tokens, the prompt's included; neighbours, each with database, document, chunk, offset (tokens
        before it in its document), metadata, distance and text; and if `contributions` was asked for,
        for each neighbour a contribution, in nats to all generated tokens that read it, and
        contributions, to each of them: log p with it less log p without it.
      first: the place of the first generated token.
      retrieval: on, off, or failed and why; what was generated after that read nothing.
      passage: what RETRO++ put before the prompt.
      seconds: waiting (in the queue), first (from the request to its first token) and total.
    """

    prompt: str
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    top: list[dict[int, float]] = field(default_factory=list)
    finish: str = "length"
    chunks: list[dict] = field(default_factory=list)
    first: int = 0
    retrieval: str = "on"
    passage: dict | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict:
        """As JSON is to have it."""
        return dataclasses.asdict(self)
