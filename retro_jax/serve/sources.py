"""What is told of a sentence's sources (evaluate/sources.py), for clients that ask for it."""

from retro_jax.evaluate import sources
from retro_jax.generate.chat import Chat
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator
from retro_jax.serve.prompts import Prompts


def of_neighbours(c: Completion, threshold: float) -> list[dict]:
    """The sentences of a continuation, by the contributions of the neighbours that it read (`sources.tell`)."""
    gains, read = sources.gains_of_completion(c)
    return sources.tell(c.text, gains, c.ends, read, threshold)


def of_passages(
    prompts: Prompts, g: Generator, chat: Chat, messages: list[dict], passages: list[dict],
    text: str, threshold: float,
) -> list[dict]:  # fmt: skip
    """The sentences of an answer, by the passages that stood before the question."""
    if not text:
        return []
    asked = sources.leaving_out(chat, messages, passages)
    return sources.tell(text, *prompts.gains(g, asked, text), passages, threshold)
