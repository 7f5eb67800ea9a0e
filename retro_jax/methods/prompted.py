"""What all methods have that read by the prompt: a budget, look-ups, and how logits are read off."""

import jax
import jax.numpy as jnp

from retro_jax.config.fields import setting
from retro_jax.methods.language_model import LanguageModel
from retro_jax.methods.method import LookUps, Retrieved
from retro_jax.model.functional import Scores

BUDGETS = ("window", "longer")


def budget_setting():
    """The field `budget` of a method's settings."""
    return setting(
        "window",
        "window: neighbours take the place of the oldest tokens; longer: they come on top of train.length",
    )


class Prompted(LanguageModel):
    """What has neighbours in its prompt, new ones at every chunk; a subclass says what it makes of the chunks."""

    reads, follows, by_chunk = True, True, True

    @property
    def look_ups(self) -> LookUps:
        """Every chunk is looked up with its own tokens."""
        return LookUps(self.model.reading.chunk, self.model.reading.chunk)

    def logprobs(self, params: dict, tokens, retrieved: Retrieved | None = None, asked=None):
        """log p of each token [B, L], those of a chunk given what the chunks before it retrieved."""
        if retrieved is None or not retrieved.tokens.shape[2]:
            return super().logprobs(params, tokens)
        return self.scores(params, tokens, retrieved, asked=asked)[0]

    def scores(
        self,
        params: dict,
        tokens,
        retrieved: Retrieved | None = None,
        never: tuple[int, ...] = (),
        asked=None,
    ):
        """And the most probable tokens."""
        if retrieved is None or not retrieved.tokens.shape[2]:
            return super().scores(params, tokens, None, never)
        found = self.chunk_scores(params, tokens, retrieved, never, asked)
        predicted = jnp.arange(tokens.shape[1]) > 0  # the first one is by nothing
        return jax.tree.map(lambda x: jnp.where(predicted, x, 0), found)

    def chunk_scores(self, params: dict, tokens, retrieved: Retrieved, never, asked):
        """The same of all tokens, made chunk by chunk of what was retrieved; see `prompt_rows.each_chunk`."""
        raise NotImplementedError


def read_off(logits, targets, never: tuple[int, ...]):
    """The `Scores` of the targets [B, M], of logits [B, M, V]."""
    ids, total = jnp.arange(logits.shape[-1]), jax.nn.logsumexp(logits, axis=-1)
    rivals = jnp.where(jnp.isin(ids, jnp.array(never, int)), -jnp.inf, logits)
    best = rivals.argmax(axis=-1).astype(jnp.int32)
    return Scores(at(logits, targets) - total, best, rivals.max(axis=-1) - total)


def at(logits, targets):
    """The entries [..., M] of the targets [..., M], of logits [..., M, V]."""
    targets = jnp.broadcast_to(targets, logits.shape[:-1])
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
