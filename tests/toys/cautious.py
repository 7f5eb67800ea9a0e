"""The language model that is never quite sure: a method without training of its own."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config.fields import setting
from retro_jax.methods.language_model import LanguageModel


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.cautious.*`."""

    share: float = setting(0.01, "of its probability that every token has in equal parts")


class Cautious(LanguageModel):
    """(1 - share) p(token) + share / V, of the language model's p."""

    name = "cautious"
    meaning = "nothing: the language model, mixed with chance"
    Settings = Settings
    weights_of = "language_model"

    def logprobs(self, params: dict, tokens, retrieved=None):
        """[B, L] float32."""
        vocab = params["embedding"].shape[0]
        return self._mixed(super().logprobs(params, tokens), vocab)

    def scores(self, params: dict, tokens, retrieved=None, never: tuple[int, ...] = ()):
        """The most probable token stays the same."""
        found, vocab = super().scores(params, tokens, None, never), params["embedding"].shape[0]
        mixed = {n: self._mixed(getattr(found, n), vocab) for n in ("logprobs", "top")}
        return found._replace(**mixed)

    def prefill(self, net, state, tokens, count, retrieved):
        """Logits [B, V] that are log-probabilities."""
        logits, state = super().prefill(net, state, tokens, count, retrieved)
        return self._mixed(jax.nn.log_softmax(logits), logits.shape[-1]), state

    def step(self, net, state, tokens, active=None):
        """The same of one token."""
        logits, state = super().step(net, state, tokens, active)
        return self._mixed(jax.nn.log_softmax(logits), logits.shape[-1]), state

    def _mixed(self, logprobs, vocab: int):
        share = self.settings.share
        return jnp.logaddexp(logprobs + np.log1p(-share), np.log(share / vocab))
