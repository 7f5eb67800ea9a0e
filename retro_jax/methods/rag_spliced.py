"""In-context retrieval whose neighbours become a part of the text: they stand where they were found, before the chunk
that comes next, and stay."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from retro_jax.methods import rag
from retro_jax.methods.in_context import State
from retro_jax.methods.method import Retrieved
from retro_jax.model import decode
from retro_jax.model.layers import ROWS
from retro_jax.model.retro import PAD


@dataclass(frozen=True)
class Settings(rag.Settings):
    """The fields `method_settings.rag_spliced.*`."""

    of: ClassVar[str] = "method_settings.rag_spliced."


class RagSpliced(rag.Rag):
    """`rag` whose rows are neighbours and chunks in turns, as far back as the window goes.

    What stands before a chunk never changes, so a cache could go on where it is. Here a row begins again at every
    look-up, as with `rag`, because the oldest tokens leave the window.
    """

    name = "rag_spliced"
    meaning = "its real neighbours, spliced into the text of the language model"
    Settings = Settings
    variant_of = "rag"
    splices = True

    def _more(self, length: int, k: int) -> int:
        """Those of every chunk."""
        return super()._more(length, k) * -(-length // self.model.reading.chunk)

    def _every_row(self, texts, tokens, ends, window: int):
        """The rows of every chunk, and for each of the L tokens how many of a row are up to it."""
        (_, chunks, _, width), m = texts.shape, self.model.reading.chunk
        whole = _in_turns(texts[:, :, 0], tokens)  # [B, C (T + M)]
        upto = jnp.cumsum(whole != PAD, axis=-1)
        at, end = jnp.arange(whole.shape[1]), (jnp.arange(chunks) + 1) * (width + m)
        # As long as it would be if its last chunk were complete.
        full = upto[:, end - m - 1] + m  # [B, C]
        kept = (whole != PAD)[:, None] & (at < end[:, None])
        kept &= full[..., None] - upto[:, None] < window
        order = jnp.argsort(~kept, axis=-1, stable=True)[..., :window]
        every = jnp.broadcast_to(whole[:, None], kept.shape)
        rows = jnp.take_along_axis(jnp.where(kept, every, PAD), order, axis=-1)
        of_token = jnp.arange(tokens.shape[1])
        of_token = of_token // m * (width + m) + width + of_token % m
        places = jnp.cumsum(kept, axis=-1)[..., of_token]
        return rows[:, :, None], places[:, :, None]

    def prefill(self, net, state: State, tokens, count, retrieved: Retrieved):
        """Reads prompts, with what each of their chunks retrieved after it."""
        m, k = self.model.reading.chunk, retrieved.tokens.shape[2]
        text = tokens
        if k:
            near = self._texts(retrieved.tokens)[:, :, 0]  # of each chunk, after it
            whole = jnp.arange(near.shape[1])[:, None] < (count // m)[:, None, None]
            text = _in_turns(tokens, jnp.where(whole, near, PAD))
        order = jnp.argsort(text == PAD, axis=-1, stable=True)
        text, size = jnp.take_along_axis(text, order, axis=-1), state.text.shape[1]
        text = jnp.pad(text, ((0, 0), (0, max(0, size - text.shape[1]))))[:, :size]
        have = (text != PAD).sum(axis=-1).astype(jnp.int32)
        none = jax.tree.map(lambda x: x[:, 0, :0], retrieved)
        logits, filled, weights = self._filled(net, state, text, have, have + m - count % m, none)
        return logits, State(filled, text, have, jnp.zeros_like(have), weights)

    def step(self, net, state: State, tokens, active=None):
        """Reads one token of each row. Where the text already has a token at the row's place, that one is read: after
        `read` it is the last token of the neighbours, and not the drawn one."""
        last = state.text.shape[1] - 1
        there = decode.pick(state.text, jnp.minimum(state.count, last))
        there = jnp.where(state.count <= last, there, PAD)
        return super().step(net, state, jnp.where(there != PAD, there, tokens), active)

    def _anew(self, net, text, count, near: Retrieved):
        """The rows with their neighbours at their ends; nothing stands before them."""
        added = self._texts(near.tokens)[:, 0]
        order = jnp.argsort(added == PAD, axis=-1, stable=True)
        added = jnp.take_along_axis(added, order, axis=-1)
        at = jnp.arange(text.shape[1]) - count[:, None]
        there = (at >= 0) & (at < added.shape[1])
        new = jnp.take_along_axis(added, jnp.clip(at, 0, added.shape[1] - 1), axis=-1)
        longer = count + (added != PAD).sum(axis=-1).astype(count.dtype)
        none = jax.tree.map(lambda x: x[:, :0], near)
        return jnp.where(there, new, text), longer, none


def _in_turns(one, other):
    """Two texts of C pieces each, [B, C, X] or [B, C X]: [B, C (X + Y)], a piece of each in turn."""
    pieces = next(x.shape[:2] for x in (one, other) if x.ndim == 3)
    both = [jnp.reshape(x, (*pieces, -1), out_sharding=ROWS) for x in (one, other)]
    return jnp.reshape(jnp.concatenate(both, axis=-1), (pieces[0], -1), out_sharding=ROWS)
