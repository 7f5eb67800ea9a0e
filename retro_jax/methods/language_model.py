"""The language model alone: the decoder, which reads nothing. What every other method is compared with."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from retro_jax.config.fields import binding
from retro_jax.methods.method import Method, Retrieved
from retro_jax.model import cache, decode, decoder, formulas, functional, sizes
from retro_jax.model.retro import PAD


class LanguageModel(Method):
    """RETRO's decoder without encoder and cross-attention, trained as it is on the same sequences."""

    name = "language_model"
    meaning = "nothing: a language model trained without retrieval"

    def shapes(self, vocab: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight."""
        return functional.shapes(self.model, vocab, self.network)

    def init(self, vocab: int, seed: int, but: frozenset = frozenset()) -> dict:
        """Fresh weights; see `functional.init`."""
        return functional.init(self.model, vocab, seed, self.network, but)

    def binding(self) -> dict[str, Any]:
        """The decoder: how anything is read does not matter, but for the layers that read. By them the weights of
        all layers are stacked and drawn (`stacks`, model/retro.py)."""
        m = self.model
        own = {"model.dtype": m.dtype, "model.reading.cca_layers": m.reading.cca_layers}
        return own | binding(m.decoder, "model.decoder.")

    def example(self, record: Mapping[str, np.ndarray], rng, step: float) -> dict:
        """The tokens [L] int32."""
        return {"tokens": record["tokens"].astype(np.int32)}

    def loss(self, params: dict, batch: dict) -> tuple:
        """Of all tokens that are not padding; of a text the first is predicted by nothing."""
        counts = _counts(batch["tokens"])
        logprobs = self.logprobs(params, batch["tokens"], _read(batch))
        return -(logprobs * counts).sum(), counts.sum()

    def row_losses(self, params: dict, batch: dict):
        """Of each row, [B]."""
        logprobs = self.logprobs(params, batch["tokens"], _read(batch))
        return -jnp.where(_counts(batch["tokens"]), logprobs, 0).sum(axis=1)

    def flops(self, vocab: int, length: int) -> int:
        """See `sizes.forward_flops`."""
        return sizes.forward_flops(self.model, vocab, length, self.k)

    def formula(self, vocab: int, length: int) -> float:
        """See `formulas.decoder`."""
        return formulas.decoder(self.model, vocab, length)

    def logprobs(self, params: dict, tokens, retrieved=None):
        """See `functional.token_logprobs`."""
        return functional.token_logprobs(self.model, params, tokens, _tokens(retrieved))

    def scores(self, params: dict, tokens, retrieved=None, never: tuple[int, ...] = ()):
        """See `functional.token_scores`."""
        return functional.token_scores(self.model, params, tokens, _tokens(retrieved), never)

    def decoder(self, params: dict):
        """See `decoder.decoder`."""
        return decoder.decoder(self.model, params)

    def params_of(self, net) -> dict:
        """See `decoder.params_of`."""
        return decoder.params_of(net)

    def start(self, net, rows: int, length: int, k: int):
        """See `decode.start`."""
        return decode.start(net, rows, length, k)

    def prefill(self, net, state, tokens, count, retrieved):
        """See `decode.prefill`."""
        return decode.prefill(net, state, tokens, count, retrieved.tokens)

    def step(self, net, state, tokens, active=None):
        """See `decode.step`."""
        return decode.step(net, state, tokens, active)

    def read(self, net, state, fresh: cache.Fresh):
        """See `decode.read`."""
        return decode.read(net, state, fresh)

    def empty(self, state, rows):
        """See `cache.emptied`."""
        return cache.emptied(state, rows)

    def place(self, state, rows, other, source):
        """See `cache.place`."""
        return cache.place(state, rows, other, source)


def _tokens(retrieved: Retrieved | None):
    return None if retrieved is None else retrieved.tokens


def _read(batch: dict) -> Retrieved | None:
    """What a batch of training has of neighbours."""
    return Retrieved(batch["neighbours"]) if "neighbours" in batch else None


def _counts(tokens):
    """Which tokens [B, L] the loss is of."""
    return (tokens != PAD).at[:, 0].set(False)
