"""RETRO++ (Wang et al. 2023, arXiv 2304.06762, section 5): the nearest neighbour stands in the prompt too.

    B sequences, L tokens, C chunks of M tokens, K neighbours of R = 2 M tokens, W chunks of a row, D width

RETRO's network, which was not trained for it, reads rows: for each chunk one, which ends with it. In a row stand, from
its end backwards, the chunk, as many of the chunks before it as there is room for, and the nearest neighbour of the
chunk before it; before that there is padding. Every chunk of the row reads all its own neighbours by cross-attention.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from retro_jax.config import ModelConfig
from retro_jax.config.fields import require_one_of
from retro_jax.errors import UserError
from retro_jax.methods import prompt_rows
from retro_jax.methods.method import Retrieved
from retro_jax.methods.prompted import BUDGETS, Prompted, budget_setting, read_off
from retro_jax.model import cache, decode, formulas, functional, sizes
from retro_jax.model.layers import ROWS, by_rows
from retro_jax.model.retro import PAD

_PROMPT = 2  # chunks that a neighbour takes


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.retro_pp.*`."""

    budget: str = budget_setting()

    def __post_init__(self):
        require_one_of("method_settings.retro_pp.budget", self.budget, BUDGETS)


class State(NamedTuple):
    """Rows that are decoded: their text, what its chunks retrieved, and RETRO's cache of what stands in their rows."""

    cache: cache.Cache
    text: jax.Array  # [B, J] every token, PAD before the first where chunks are to end elsewhere
    near: jax.Array  # [B, J / M, K, R] of complete chunks
    count: jax.Array  # [B] tokens of the text so far
    begin: jax.Array  # [B] how much of that is padding


class RetroPP(Prompted):
    """RETRO, with the nearest neighbour of the last chunk before its text, anew at every chunk."""

    name = "retro_pp"
    meaning = "its real neighbours, the nearest of them in the prompt too"
    Settings = Settings
    network, weights_of, refills = True, "retro", True

    def __init__(self, model: ModelConfig, k: int = 0, settings=None, length: int = 0):
        super().__init__(model, k, settings, length)
        if model.decoder.positions == "learned":
            raise UserError(
                "method retro_pp: config field model.decoder.positions = 'learned': rows that begin with padding need "
                "relative or rotary positions"
            )
        if length and k:
            self._chunks(length // model.reading.chunk)  # refuses what leaves no room

    def _chunks(self, chunks: int) -> int:
        """W, for sequences of so many chunks."""
        window = self.length // self.model.reading.chunk or chunks + _PROMPT
        if self.settings.budget == "longer":
            window += _PROMPT
        elif window < 2 * _PROMPT:
            raise UserError(
                f"config field train.length = {self.length}: a neighbour leaves no room for two chunks of text; make "
                "it longer, or set method_settings.retro_pp.budget=longer"
            )
        return min(window, chunks + _PROMPT)

    def flops(self, vocab: int, length: int) -> int:
        """Of the rows of all chunks, and of their last chunks' readout."""
        m = self.model.reading.chunk
        chunks = -(-length // m)
        row = self._chunks(chunks) * m
        unread = 2 * (row - m) * self.model.decoder.d * vocab
        return chunks * (sizes.forward_flops(self.model, vocab, row, self.k) - unread)

    def formula(self, vocab: int, length: int) -> float:
        """A row of RETRO for every chunk, whose last chunk is read out."""
        m = self.model.reading.chunk
        chunks = -(-length // m)
        row = self._chunks(chunks) * m
        each = formulas.decoder(self.model, vocab, row) + formulas.reading(self.model, row, self.k)
        return chunks * (each - 2 * (row - m) * self.model.decoder.d * vocab)

    # Scoring.

    def chunk_scores(self, params: dict, tokens, retrieved: Retrieved, never, asked):
        """See `Prompted.chunk_scores`."""
        (b, length), m, near = tokens.shape, self.model.reading.chunk, retrieved.tokens
        chunks = near.shape[1]
        text = jnp.pad(tokens, ((0, 0), (0, chunks * m - length)))
        window, model = self._chunks(chunks), functional.network(self.model, params)

        def read(row, u, targets):
            own, read = (x.at[row].get(out_sharding=ROWS) for x in (text, near))
            row, neighbours = _row(own, read, u, window, m)
            h = model(row, neighbours)[0][:, -m - 1 : -1]
            return read_off(by_rows(model.logits(h)), targets, never)

        given = (
            jnp.broadcast_to(x, (b, chunks), out_sharding=ROWS)
            for x in (jnp.arange(b)[:, None], jnp.arange(chunks))
        )
        return prompt_rows.each_chunk(read, tuple(given), tokens, asked, m)

    # Generation.

    def start(self, net, rows: int, length: int, k: int) -> State:
        """Rows of at most `length` tokens, which read k neighbours."""
        m, r = self.model.reading.chunk, self.model.reading.retrieved
        chunks = -(-length // m)
        room = self._chunks(chunks) * m if k else chunks * m
        none = jnp.zeros(rows, jnp.int32, out_sharding=cache.over_rows(1))
        text = jnp.zeros((rows, chunks * m), jnp.int32, out_sharding=cache.over_rows(2))
        near = jnp.zeros((rows, chunks, k, r), jnp.int32, out_sharding=cache.over_rows(4))
        return State(decode.start(net, rows, room, k), text, near, none, none)

    def prefill(self, net, state: State, tokens, count, retrieved: Retrieved):
        """Reads prompts, each with what its complete chunks retrieved."""
        begin = jnp.argmax(tokens != PAD, axis=1).astype(jnp.int32)
        text = _filled_up(tokens, state.text.shape[1])
        near = _filled_up(retrieved.tokens, state.near.shape[1])
        missing = (
            state.near.shape[2] - near.shape[2]
        )  # who asks for no neighbours has places for them
        near = jnp.pad(near, ((0, 0), (0, 0), (0, missing), (0, 0)))
        logits, filled = self._filled(net, state, text, near, count)
        return logits, State(filled, text, near, count, begin)

    def step(self, net, state: State, tokens, active=None):
        """Reads one token of each row."""
        text = decode.put(state.text[:, None, :, None], tokens[:, None, None, None], state.count)
        logits, kept = decode.step(net, state.cache, tokens, active)
        count = state.count + (1 if active is None else active)
        return logits, State(kept, text[:, 0, :, 0], state.near, count, state.begin)

    def read(self, net, state: State, fresh: cache.Fresh) -> State:
        """Fills rows again with what was found and the text. Their last token is read again by the next step."""

        def rows(x):
            return x.at[fresh.rows].get(out_sharding=ROWS)

        count = rows(state.count) + 1
        chunk = jnp.maximum(count // self.model.reading.chunk - 1, 0)
        own = decode.put(rows(state.near)[:, None], fresh.tokens[:, None, None], chunk)[:, 0]
        filled = self._filled(net, state, rows(state.text), own, count)[1]
        filled = cache.last_unread(filled)
        kept = cache.place(state.cache, fresh.rows, filled, jnp.arange(len(fresh.rows)))
        near = state.near.at[fresh.rows].set(own, out_sharding=jax.typeof(state.near).sharding)
        return state._replace(cache=kept, near=near)

    def _filled(self, net, state: State, text, near, count):
        """Of texts [b, J] of `count` tokens: the logits of the next token [b, V], and the cache of their rows."""
        m, room, k = self.model.reading.chunk, state.cache.layers[0].key.shape[2], near.shape[2]
        empty = decode.start(net, len(text), room, k)
        if not k:
            return decode.prefill(net, empty, text[:, :room], count, near[:, : room // m])
        row, read = _row(text, near, count // m, room // m, m)
        return decode.prefill(net, empty, row, room - m + count % m, read)

    def empty(self, state: State, rows) -> State:
        """See `cache.emptied`."""
        kept = cache.emptied(state.cache, rows)
        return cache.emptied(state._replace(cache=kept), rows)

    def place(self, state: State, rows, other: State, source) -> State:
        """See `cache.place`."""

        kept = cache.place(state.cache, rows, other.cache, source)
        return State(kept, *cache.replaced(state[1:], rows, other[1:], source))


def _row(text, near, u, window: int, m: int):
    """The row that ends with chunk u.

    Args:
      text: [B, C M]. near: [B, C, K, R] what its chunks retrieved. u: [B]. window: W.

    Returns:
      tokens [B, W M] and neighbours [B, W, K, R].
    """
    b, chunks = text.shape[0], near.shape[1]
    text, near, u = map(by_rows, (text, near, u))
    first = jnp.maximum(0, u - (window - _PROMPT - 1))[:, None]  # chunk of the text in the row
    chunk = u[:, None] - (window - 1) + jnp.arange(window)  # in each place of the row
    own = (chunk >= first) & (chunk < chunks)
    at = jnp.clip(chunk, 0, chunks - 1)
    pieces = jnp.reshape(text, (b, chunks, m), out_sharding=ROWS)
    tokens = jnp.where(own[..., None], decode.pick(pieces, at), PAD)
    read = jnp.where(own[..., None, None], decode.pick(near, at), PAD)
    nearest = decode.pick(near, jnp.clip(u - 1, 0, chunks - 1))[:, 0]  # [B, R]
    nearest = jnp.where((u > 0)[:, None], nearest, PAD)
    # Its tokens stand right before the text.
    order = jnp.argsort(nearest != PAD, axis=-1, stable=True)
    nearest = jnp.take_along_axis(nearest, order, axis=-1)
    half = jnp.clip(chunk - (first - _PROMPT), 0, _PROMPT - 1)
    halves = jnp.reshape(nearest, (b, _PROMPT, m), out_sharding=ROWS)
    prompt = (chunk >= first - _PROMPT) & (chunk < first)
    tokens = jnp.where(prompt[..., None], decode.pick(halves, half), tokens)
    return jnp.reshape(tokens, (b, window * m), out_sharding=ROWS), read


def _filled_up(x, size: int):
    """PAD after the second axis, or none of what is beyond it."""
    x = x[:, :size]
    return jnp.pad(x, ((0, 0), (0, size - x.shape[1])) + ((0, 0),) * (x.ndim - 2))
