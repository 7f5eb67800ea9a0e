"""kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172): what followed where the language model was in a similar state.

    p(y) = (1 - weight) p_LM(y) + weight q(y)
    q(y) = sum over the k nearest (key, value) of 1[value = y] softmax(-distance / temperature)

A key is what the last feed-forward reads of a token of the database, its value the token after it; a distance is
squared L2. The datastore is made of one pass over the database, or over a part of it (`tokens`), in sequences of
train.length, once the language model is trained. Documents that are held out are never in the database; a document of
the database that is scored would find itself.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config.fields import require, require_at_least, require_share, setting
from retro_jax.methods.datastore import Known, Store, read
from retro_jax.methods.language_model import LanguageModel
from retro_jax.methods.prompted import read_off
from retro_jax.model import decoder
from retro_jax.model.layers import by_rows
from retro_jax.store.workdir import WorkDir

_OF = "method_settings.knn_lm."
_NONE = -1e30  # the logarithm of a weight of 0
_BLOCK = 256  # tokens whose logits are held at a time


@dataclass(frozen=True)
class Settings:
    """The fields `method_settings.knn_lm.*`."""

    k: int = setting(256, "nearest states of the database that count for a token")
    weight: float = setting(0.1, "lambda, of what they say; the rest is the language model's")
    temperature: float = setting(10.0, "of their weights: softmax(-distance / temperature)")
    tokens: int = setting(
        0, "of the database, whose states are kept, at even distances; 0: of all its tokens"
    )

    def __post_init__(self):
        require_at_least(1, _OF, self, "k")
        require_share(_OF, self, "weight")
        require(self.temperature > 0, f"{_OF}temperature", self.temperature, "must be above 0")
        require_at_least(0, _OF, self, "tokens")


class KnnLm(LanguageModel):
    """The language model, mixed with what followed the nearest states of the database, anew at every token.

    Before `prepare` has opened its datastore it is the language model alone.
    """

    name = "knn_lm"
    meaning = "what followed the nearest of the language model's own states in the database"
    Settings = Settings
    weights_of = "language_model"
    _store = None

    @property
    def random(self) -> "KnnLm":
        """The same with the values of the datastore permuted."""
        other = copy.copy(self)
        other._store = self._store and self._store.permuted()
        return other

    def prepare(self, work: WorkDir):
        """Makes the datastore, and opens it."""
        self._store = self._store or Store.of(work, self, self.settings.k, self.settings.tokens)

    def choices(self) -> list[Settings]:
        """Its own settings first; k, weight and temperature around what the paper's authors and others found."""
        fewer = [k for k in (8, 32, 128) if k < self.settings.k]
        grid = itertools.product((*fewer, self.settings.k), _WEIGHTS, _TEMPERATURES)
        same = {"tokens": self.settings.tokens}
        return [self.settings, *(Settings(*values, **same) for values in grid)]

    # Scoring.

    def jitted(self, name: str, **fixed) -> Callable:
        """Two programs, with the search between them: a program of several devices on a CPU whose callbacks search may
        wait for itself for ever."""
        if not self._store:
            return super().jitted(name, **fixed)
        states = jax.jit(lambda p, t: read(decoder.decoder(self.model, p), t)[0][:, :-1])

        def of_found(params, tokens, found):
            other = copy.copy(self)
            other._store = Known(found)
            return getattr(other, name)(params, tokens, None, **fixed)

        program = jax.jit(of_found)

        def score(params, tokens, retrieved=None):
            found = self._store.find(np.asarray(states(params, tokens)), self.settings.k)
            where = getattr(tokens, "sharding", None)
            return program(params, tokens, jax.device_put(found, where) if where else found)

        return score

    def logprobs(self, params: dict, tokens, retrieved=None):
        """log p of each token [B, L]."""
        if not self._store:
            return super().logprobs(params, tokens)
        return self._tried(params, tokens, [self.settings])[..., 0]

    def tried(self, params: dict, tokens, retrieved=None):
        """log p of each token under each of `choices` [B, L, A]."""
        return self._tried(params, tokens, self.choices())

    def _tried(self, params: dict, tokens, choices: list[Settings]):
        fed, h, model = read(decoder.decoder(self.model, dict(params)), tokens)
        values, distances = self._store.search(fed[:, :-1], self.settings.k)
        targets = tokens[:, 1:]

        def of(h, targets):
            return model.logit_of(h, targets) - jax.nn.logsumexp(model.logits(h), axis=-1)

        own = _blocks(of, h[:, :-1], targets)
        same = values == targets[..., None]

        def near(k: int, temperature: float):
            weights = _weights(distances, k, temperature)
            return jax.nn.logsumexp(jnp.where(same, weights, _NONE), axis=-1)

        known = functools.cache(near)
        mixed = [_mixed(own, known(c.k, c.temperature), distances, c.weight) for c in choices]
        return jnp.pad(jnp.stack(mixed, axis=-1), ((0, 0), (1, 0), (0, 0)))

    def scores(self, params: dict, tokens, retrieved=None, never: tuple[int, ...] = ()):
        """And the most probable tokens."""
        if not self._store:
            return super().scores(params, tokens, None, never)
        fed, h, model = read(decoder.decoder(self.model, dict(params)), tokens)
        found = self._store.search(fed[:, :-1], self.settings.k)

        def of(h, values, distances, targets):
            return read_off(self._mixture(model.logits(h), values, distances), targets, never)

        out = _blocks(of, h[:, :-1], *found, tokens[:, 1:])
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (1, 0))), out)

    def _mixture(self, logits, values, distances):
        """log of the mixture [..., V], of logits [..., V] and what was found [..., k]."""
        s, vocab = self.settings, logits.shape[-1]
        logits = by_rows(logits)
        weights = jnp.exp(_weights(distances, s.k, s.temperature))

        def add(values, weights):
            return jnp.zeros(vocab).at[values].add(weights)

        for _ in range(values.ndim - 1):
            add = jax.vmap(add)
        near = jnp.log(jnp.maximum(add(values, weights), jnp.exp(-80.0)))
        return _mixed(jax.nn.log_softmax(logits), near, distances[..., None, :], s.weight)

    # Generation.

    def prefill(self, net, state, tokens, count, retrieved):
        """See `decode.prefill`; the logits are the mixture's logarithms."""
        logits, state = super().prefill(net, state, tokens, count, retrieved)
        return self._looked_up(logits, state), state

    def step(self, net, state, tokens, active=None):
        """See `decode.step`; the logits are the mixture's logarithms."""
        logits, state = super().step(net, state, tokens, active)
        return self._looked_up(logits, state), state

    def _looked_up(self, logits, state):
        if not self._store:
            return logits
        return self._mixture(logits, *self._store.search(state.fed, self.settings.k))


_WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
_TEMPERATURES = (1.0, 3.0, 10.0, 30.0, 100.0)


def _weights(distances, k: int, temperature: float):
    """log softmax(-distance / temperature) of the first k [..., k]; of what was not found a weight of 0."""
    counts = jnp.isfinite(distances) & (jnp.arange(distances.shape[-1]) < k)
    score = jnp.where(counts, -distances / temperature, _NONE)
    return jnp.where(counts, jax.nn.log_softmax(score), _NONE)


def _mixed(own, near, distances, weight: float):
    """log((1 - weight) p + weight q), of log p and log q; p alone where nothing was found."""
    both = jnp.logaddexp(jnp.log1p(-weight) + own, jnp.log(jnp.maximum(weight, 1e-30)) + near)
    return jnp.where(jnp.isfinite(distances).any(axis=-1), both, own)


def _blocks(function, *arrays):
    """`function` of blocks of the second axis, so that no [B, L, V] array exists."""
    size = arrays[0].shape[1]
    made = [function(*(x[:, i : i + _BLOCK] for x in arrays)) for i in range(0, size, _BLOCK)]
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *made)
