"""Reading by the prompt: what was retrieved stands before the text, and the language model reads both as one.

    B sequences, L tokens, C chunks of M tokens, K neighbours of R tokens, S streams, W window, J tokens that a row
    can have, V vocabulary, T = K R / S tokens that a stream has before its text at most

Each chunk has rows of its own, S for each, since what stands before its text is its own: the neighbours that the
chunk before it retrieved, then as many of the tokens before it as there is room for, then the chunk. Padding is
left out, so a row is what a language model would be given: no gaps, and positions from 0.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from retro_jax.config import ModelConfig
from retro_jax.errors import UserError
from retro_jax.methods import prompt_rows
from retro_jax.methods.method import Retrieved
from retro_jax.methods.prompted import Prompted, at, read_off
from retro_jax.model import cache, decode, formulas, functional, sizes
from retro_jax.model.layers import ROWS
from retro_jax.model.retro import PAD


class State(NamedTuple):
    """Rows that are decoded: their text, and a cache of the language model for each stream."""

    cache: cache.Cache  # of B S rows
    text: jax.Array  # [B, J] every token, PAD before the first where chunks are to end elsewhere
    count: jax.Array  # [B] tokens of it so far
    begin: jax.Array  # [B] how much of that is padding
    weights: jax.Array  # [B, S] the logarithm of each stream's


class InContext(Prompted):
    """A language model with neighbours in its prompt. A subclass says how many streams there are, and how much
    each of them counts."""

    weights_of = "language_model"

    def __init__(self, model: ModelConfig, k: int = 0, settings=None, length: int = 0):
        super().__init__(model, k, settings, length)
        if length and k:
            self._window(length, self.shown)  # refuses what leaves no room

    @property
    def shown(self) -> int:
        """How many of the k neighbours of a look-up stand in the prompt: all."""
        return self.k

    def chosen(self, net, text, near: Retrieved) -> Retrieved:
        """Those neighbours, of look-ups with text [B, ..., M] that found [B, ..., K, R]; the nearest first."""
        return near

    def streams(self, k: int) -> int:
        """S, the rows that k neighbours are spread over."""
        raise NotImplementedError

    def weigh(self, retrieved: Retrieved) -> jax.Array:
        """The logarithm of the weight of each stream [..., S], of neighbours [..., K, R]."""
        raise NotImplementedError

    def flops(self, vocab: int, length: int) -> int:
        """Of the rows of every look-up, each of the window's tokens, and of the readout of those that it is for."""
        m, streams = self.look_ups.every, self.streams(self.shown)
        row = sizes.forward_flops(self.model, vocab, self._window(length, self.shown), 0)
        unread = 2 * (self._window(length, self.shown) - m) * self.model.decoder.d * vocab
        return -(-length // m) * streams * (row - unread)

    def formula(self, vocab: int, length: int) -> float:
        """Rows of the window for every look-up and stream; of each the last tokens are read out."""
        m, window = self.look_ups.every, self._window(length, self.shown)
        row = formulas.decoder(self.model, vocab, window)
        row -= 2 * (window - m) * self.model.decoder.d * vocab
        return -(-length // m) * self.streams(self.shown) * row

    def _window(self, length: int, k: int) -> int:
        """W, for sequences of so many tokens, which are whole chunks."""
        before, room = (
            k * self.model.reading.retrieved // self.streams(k),
            length + self._more(length, k),
        )
        window = self.length or room
        if self.settings.budget == "longer":
            window += self._more(window, k)
        elif window < before + 2 * self.model.reading.chunk:
            raise UserError(
                f"config field train.length = {window}: neighbours of {before} tokens leave no room for two chunks "
                f"of text; make it longer, or set method_settings.{self.name}.budget=longer"
            )
        return min(window, room)

    def _more(self, length: int, k: int) -> int:
        """By how many tokens neighbours make a row of so many longer, at most."""
        return k * self.model.reading.retrieved // self.streams(k)

    def _texts(self, near):
        """What stands before each stream [..., S, T], of neighbours [..., K, R]; the nearest comes last."""
        *rest, k, r = near.shape
        streams = self.streams(k)
        shape = (*rest, streams, k * r // streams)
        return jnp.reshape(near[..., ::-1, :], shape, out_sharding=ROWS)

    # Scoring.

    def chunk_scores(self, params: dict, tokens, retrieved: Retrieved, never, asked):
        """See `Prompted.chunk_scores`."""

        def of(logits, targets, weights):
            return read_off(prompt_rows.mixed(logits, weights[:, :, None]), targets, never)

        return self._by_chunk(params, tokens, retrieved, asked, self.weigh, of)

    def tried(self, params: dict, tokens, retrieved: Retrieved | None = None, asked=None):
        """log p of each token under each of `choices` [B, L, A]: of other weights of the same streams."""
        others = [type(self)(self.model, self.k, s, self.length) for s in self.choices()]
        if retrieved is None or not retrieved.tokens.shape[2]:
            return jnp.stack([self.logprobs(params, tokens)] * len(others), axis=-1)

        def weigh(near):
            return jnp.stack([m.weigh(near) for m in others], axis=-1)  # [..., S, A]

        def of(logits, targets, weights):
            own = at(logits, targets[:, None]) - jax.nn.logsumexp(logits, axis=-1)  # [B, S, M]
            return jax.nn.logsumexp(own[..., None] + weights[:, :, None], axis=1)

        logp = self._by_chunk(params, tokens, retrieved, asked, weigh, of)
        return jnp.where(jnp.arange(tokens.shape[1])[:, None] > 0, logp, 0)

    def _by_chunk(self, params: dict, tokens, retrieved: Retrieved, asked, weigh, of):
        """What `of` makes of the logits of a chunk's tokens in its streams [B, S, M, V], of the tokens [B, M], and of
        what `weigh` said of the streams [B, S, ...]: arrays [B, M, ...], of all chunks [B, L, ...]. asked: [B, L] the
        tokens that it is wanted of; chunks without any are left out, and zeros there."""
        (b, length), m = tokens.shape, self._every(retrieved, tokens.shape[1])
        retrieved = self._looked_up(params, tokens, retrieved)
        chunks = retrieved.tokens.shape[1]
        whole = jnp.pad(tokens, ((0, 0), (0, chunks * m - length)))
        # What a chunk retrieved is read by the next one.
        before = jax.tree.map(lambda x: jnp.roll(x, 1, axis=1), retrieved)
        if self.look_ups.times:  # or what the first one did by all
            before = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], x.shape), retrieved)
        first = (jnp.arange(chunks) == 0)[:, None]
        before = before._replace(tokens=jnp.where(first[..., None], PAD, before.tokens))
        texts = self._texts(before.tokens)  # [B, C, S, T]
        weights = weigh(before)  # [B, C, S, ...]
        streams, window = texts.shape[2], self._window(chunks * m, retrieved.tokens.shape[2])
        end = (jnp.arange(chunks)[None, :, None] + 1) * m
        shape = (b, chunks, streams)
        ends = jnp.broadcast_to(end, shape)
        rows, places = self._every_row(texts, whole, ends, window)
        own = ends[..., None] - m + jnp.arange(m)
        at = jnp.take_along_axis(places, own, axis=-1) - 1  # where each target is in its row
        predicts = jnp.maximum(at - 1, 0)
        model = functional.network(self.model, params)

        def read(rows, predicts, weights, targets):  # [B, S, W], [B, S, M], [B, S, ...], [B, M]
            h = model(prompt_rows.flat(rows, 2))[0]  # [B S, W, D]
            i = prompt_rows.flat(predicts, 2)
            h = jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))(h, i)
            h = jnp.reshape(h, (b, streams * m, h.shape[-1]), out_sharding=ROWS)
            logits = jnp.reshape(model.logits(h), (b, streams, m, -1), out_sharding=ROWS)
            return of(logits, targets, weights)

        return prompt_rows.each_chunk(read, (rows, predicts, weights), tokens, asked, m)

    def _every(self, retrieved: Retrieved, length: int) -> int:
        """Tokens between look-ups: `look_ups.every`, or a chunk where one look-up of each is given."""
        q, k = retrieved.tokens.shape[1:3]
        each = q == self.look_ups.count(length) or k == self.fetches
        return self.look_ups.every if each else self.model.reading.chunk

    def _every_row(self, texts, tokens, ends, window: int):
        """`prompt_rows.rows` of every chunk and stream: texts [B, C, S, T], tokens [B, L], ends [B, C, S]."""
        every = jnp.broadcast_to(tokens[:, None, None], (*ends.shape, tokens.shape[1]))
        return prompt_rows.rows(texts, every, ends, ends, window)

    def _looked_up(self, params: dict, tokens, retrieved: Retrieved) -> Retrieved:
        """What stands in the prompts: of every `look_ups.every` tokens [B, C, K, R], of what is given a chunk of the
        model [B, ., ., R]."""
        (b, length), m = tokens.shape, self.model.reading.chunk
        chunks = retrieved.tokens.shape[1]
        each = m // self._every(retrieved, length)
        if retrieved.tokens.shape[1] == self.look_ups.count(length):
            each = 1

        def split(x):  # of a chunk what each of its look-ups found
            shape = (b, chunks * each, x.shape[2] // each, *x.shape[3:])
            return jnp.reshape(x, shape, out_sharding=ROWS)

        found = jax.tree.map(split, retrieved) if each > 1 else retrieved
        if self.shown == self.k:
            return found
        text = jnp.pad(tokens, ((0, 0), (0, chunks * m - length)))
        text = jnp.reshape(text, (b, chunks, m), out_sharding=ROWS)
        return self.chosen(self.decoder(dict(params)), text, found)

    # Generation.

    def start(self, net, rows: int, length: int, k: int) -> State:
        """Rows of at most `length` tokens, which read k neighbours."""
        k = min(k, self.shown)
        streams = self.streams(k) if k else 1
        room = length + (self._more(length, k) if k else 0)
        none = jnp.zeros(rows, jnp.int32, out_sharding=cache.over_rows(1))
        size = room if self.splices else length
        text = jnp.zeros((rows, size), jnp.int32, out_sharding=cache.over_rows(2))
        weights = jnp.zeros((rows, streams), out_sharding=cache.over_rows(2))
        return State(decode.start(net, rows * streams, room, 0), text, none, none, weights)

    def prefill(self, net, state: State, tokens, count, retrieved: Retrieved):
        """Reads prompts, each with what its last complete chunk retrieved before it."""
        m, every, length = self.model.reading.chunk, self.look_ups.every, tokens.shape[1]
        begin = jnp.argmax(tokens != PAD, axis=1).astype(jnp.int32)
        text = jnp.pad(tokens, ((0, 0), (0, state.text.shape[1] - length)))
        last = jnp.minimum(count // m, self.look_ups.times or length)
        near = jax.tree.map(lambda x: decode.pick(x, jnp.maximum(last - 1, 0)), retrieved)
        near = near._replace(tokens=jnp.where((count >= every)[:, None, None], near.tokens, PAD))
        near = self._of_last(net, text, last * m, near)
        end = count // every * every + every
        logits, filled, weights = self._filled(net, state, tokens, count, end, near)
        return logits, State(filled, text, count, begin, weights)

    def step(self, net, state: State, tokens, active=None):
        """Reads one token of each row."""
        b, streams = state.weights.shape
        text = decode.put(state.text[:, None, :, None], tokens[:, None, None, None], state.count)
        text = text[:, 0, :, 0]

        def each(x):
            return jnp.repeat(
                x, streams, axis=0, out_sharding=ROWS, total_repeat_length=b * streams
            )

        on = None if active is None else each(active)
        logits, kept = decode.step(net, state.cache, each(tokens), on)
        logits = prompt_rows.mixed(prompt_rows.split(logits, streams), state.weights)
        count = state.count + (1 if active is None else active)
        return logits, State(kept, text, count, state.begin, state.weights)

    def read(self, net, state: State, fresh: cache.Fresh) -> State:
        """Fills rows again with what was found and the text. Their last token is read again by the next step."""

        def rows(x):
            return x.at[fresh.rows].get(out_sharding=ROWS)

        def put(x, new):
            return x.at[fresh.rows].set(new, out_sharding=jax.typeof(x).sharding)

        found = Retrieved(fresh.tokens, fresh.distances)
        text, count, near = self._anew(net, rows(state.text), rows(state.count) + 1, found)
        end = count + self.look_ups.every
        _, filled, weights = self._filled(net, state, text, count, end, near)
        where = prompt_rows.spread(fresh.rows, state.weights.shape[1])
        filled = cache.last_unread(filled)
        return State(
            cache.place(state.cache, where, filled, jnp.arange(len(where))),
            put(state.text, text), put(state.count, count - 1), state.begin, put(state.weights, weights),
        )  # fmt: skip

    def _anew(self, net, text, count, near: Retrieved):
        """Rows [b, J] of `count` tokens whose last chunks have found something: them, the count, and what then stands
        before them."""
        return text, count, self._of_last(net, text, count, near)

    def _of_last(self, net, text, count, near: Retrieved) -> Retrieved:
        """What stands in the prompt, of what the last chunks before `count` [b] of rows [b, J] found."""
        if self.shown == self.k or not near.tokens.shape[1]:
            return near
        m = self.model.reading.chunk
        at = jnp.maximum(count[:, None] - m + jnp.arange(m), 0)
        asked = jnp.take_along_axis(text, at, axis=1)
        return self.chosen(net, asked, near)

    def _filled(self, net, state: State, tokens, count, end, near: Retrieved):
        """Of rows [b, L] of `count` tokens, whose chunk ends at `end`: the logits of the next token [b, V], the
        cache of their streams, and the streams' weights."""
        b, k = len(tokens), near.tokens.shape[1]
        streams, room = state.weights.shape[1], state.cache.layers[0].key.shape[2]
        if k:
            texts, weights = self._texts(near.tokens), self.weigh(near)
        else:  # all streams say the same
            texts = jnp.zeros((b, streams, 0), jnp.int32, out_sharding=cache.over_rows(3))
            weights = jnp.zeros((b, streams), out_sharding=cache.over_rows(2)) - math.log(streams)
        k = self.shown if self.splices else k
        window = self._window(state.text.shape[1], k) if k else room
        shape = (b, streams)
        rows, places = prompt_rows.rows(
            texts, jnp.broadcast_to(tokens[:, None], (*shape, tokens.shape[1])),
            jnp.broadcast_to(count[:, None], shape), jnp.broadcast_to(end[:, None], shape),
            min(window, texts.shape[-1] + tokens.shape[1]), window,
        )  # fmt: skip
        n = prompt_rows.flat(places[..., -1], 2)
        empty = decode.start(net, b * streams, room, 0)
        none = jnp.zeros(
            (b * streams, -(-rows.shape[-1] // self.model.reading.chunk), 0, 0), jnp.int32
        )
        logits, filled = decode.prefill(net, empty, prompt_rows.flat(rows, 2), n, none)
        return prompt_rows.mixed(prompt_rows.split(logits, streams), weights), filled, weights

    def empty(self, state: State, rows) -> State:
        """See `cache.emptied`."""
        streams = prompt_rows.spread(rows, state.weights.shape[1])
        kept = cache.emptied(state.cache, streams)
        return cache.emptied(state._replace(cache=kept), rows)

    def place(self, state: State, rows, other: State, source) -> State:
        """See `cache.place`."""
        streams = state.weights.shape[1]

        kept = cache.place(
            state.cache,
            prompt_rows.spread(rows, streams),
            other.cache,
            prompt_rows.spread(source, streams),
        )
        return State(kept, *cache.replaced(state[1:], rows, other[1:], source))
