"""How a retriever learns from what a language model makes of each document: losses of its scores.

    n queries, K documents of each; scores s [n, K] of the retriever, p_R = softmax(s)

Each is a mean over queries, nats, and differentiable in the scores alone: what the reader says is a target.
"""

import jax
import jax.numpy as jnp


def lsr(scores, logp, beta: float = 1.0):
    """REPLUG's (Shi et al. 2023, equation 6): KL(p_R || Q), Q = softmax(log p(y | d, x) / beta).

    logp: [n, K] of what follows, given each document; sums over its tokens. (The authors' code computes KL(Q || p_R).)
    """
    own = jax.nn.log_softmax(scores)
    target = jax.nn.log_softmax(jax.lax.stop_gradient(logp) / beta)
    return (jnp.exp(own) * (own - target)).sum(axis=-1).mean()


def pdist(scores, logp, tau: float = 1.0):
    """Atlas's perplexity distillation (Izacard et al. 2022, section 2.2): KL(target || p_R), target = softmax(logp /
    tau).

    logp: [n, K] of what follows, given each document; means over its tokens.
    """
    return _kl(jax.nn.log_softmax(logp / tau), scores)


def emdr2(scores, logp):
    """Atlas's EMDR2 (Singh et al. 2021): - log sum over documents of p(y | d, x) p_R(d), logp [n, K] as sums."""
    own = jax.nn.log_softmax(scores)
    return -jax.nn.logsumexp(own + jax.lax.stop_gradient(logp), axis=-1).mean()


def loop(scores, logp_without, tau: float = 1.0):
    """Atlas's leave-one-out: KL(target || p_R), target = softmax(-log p(y | all documents but this) / tau).

    logp_without: [n, K] means over the tokens of what follows, each with one document left out.
    """
    return _kl(jax.nn.log_softmax(-logp_without / tau), scores)


def adist(scores, attention, tau: float = 1.0):
    """Atlas's attention distillation: KL(target || p_R), target = softmax(attention / tau).

    attention: [n, K] what the reader's cross-attention gave each document, weighted by the norms of the values.
    """
    return _kl(jax.nn.log_softmax(attention / tau), scores)


def _kl(target, scores):
    """KL(exp(target) || softmax(scores)), log target [n, K]."""
    target = jax.lax.stop_gradient(target)
    return (jnp.exp(target) * (target - jax.nn.log_softmax(scores))).sum(axis=-1).mean()
