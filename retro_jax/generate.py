"""A continuation with live retrieval: at the end of every chunk, its neighbours are looked up."""

from pathlib import Path

import jax
import numpy as np

from retro_jax import progress, steps, workdir
from retro_jax.config import Experiment, ModelConfig
from retro_jax.corpus.tokenizer import BOS, EOS, PAD, UNK
from retro_jax.errors import UserError
from retro_jax.model import decode
from retro_jax.model.layers import ROWS
from retro_jax.prepare import check_prepared
from retro_jax.train import sharding
from retro_jax.train.loop import restore_trained


def generate(experiment: Experiment, root: Path) -> dict:
    """Continues `generate.prompt`; writes and returns the text with the neighbours it read.

    Returns:
      prompt, text (the continuation alone), and chunks: for each complete chunk its text and its
      neighbours with document, chunk of that document, squared distance and text.
    """
    e, base, g = experiment, Path(root) / "prepare", experiment.generate
    check_prepared(e, root)
    tokenizer = steps.load_tokenizer(base)
    retriever = steps.load_retriever(e, base)
    mesh = sharding.one_device()  # a batch of one
    with jax.set_mesh(mesh):
        params = restore_trained(e, root, True, mesh)
        prompt = [BOS, *tokenizer.encode(g.prompt)]
        with progress.bar("generating", g.tokens) as advance:
            tokens, found = continue_tokens(
                e.model, params, prompt, g.tokens, retriever, g.temperature, g.seed, advance
            )
    m = e.model.chunk
    result = {
        "prompt": g.prompt,
        "text": tokenizer.decode(tokens[len(prompt) :]),
        "chunks": [
            {
                "text": tokenizer.decode(tokens[u * m : (u + 1) * m]),
                "neighbours": [
                    {
                        "document": (document := retriever.document_of(id))["id"],
                        "chunk": int(id) - document["first"],
                        "distance": round(float(distance), 4),
                        "text": tokenizer.decode(text.tolist()),
                    }
                    for text, id, distance in zip(n.tokens[0], n.ids[0], n.distances[0])
                    if id >= 0
                ],
            }
            for u, n in enumerate(found)
        ],
    }
    workdir.write_json(Path(root) / "generate.json", result)
    return result


def continue_tokens(
    model: ModelConfig,
    params: dict,
    prompt: list[int],
    count: int,
    retriever,
    temperature: float = 0.0,
    seed: int = 0,
    advance=lambda n: None,
) -> tuple[list[int], list]:
    """Adds up to `count` tokens to a prompt; stops early at EOS.

    The prompt is read in one pass, then one token at a time from caches (`model/decode.py`). A chunk is
    looked up as soon as its last token is known, and read by the step that reads that token.

    Args:
      prompt: token ids, BOS first.
      retriever: has k, and retrieve(chunks [n, M]) -> Neighbours.

    Returns:
      All tokens, and the Neighbours, in order, of each chunk that was complete before the last token.

    Raises:
      UserError: the model has no positions for so many tokens.
    """
    m, tokens = model.chunk, list(prompt)
    if model.positions == "learned" and len(prompt) + count - 1 > model.max_length:
        raise UserError(
            f"config field generate.tokens = {count}: with a prompt of {len(prompt)} tokens that is more than "
            f"the model's {model.max_length} positions; lower it, or shorten the prompt"
        )
    chunks, whole = -(-len(prompt) // m), len(prompt) // m
    padded = np.full((1, chunks * m), PAD, np.int32)
    padded[0, : len(prompt)] = prompt
    near = np.full((1, chunks, retriever.k, model.retrieved), PAD, np.int32)
    found = []
    if whole:
        got = retriever.retrieve(padded.reshape(chunks, m)[:whole])
        found = [got.of(slice(u, u + 1)) for u in range(whole)]
        near[0, :whole] = got.tokens
    rows = lambda x: jax.device_put(np.asarray(x, np.int32), jax.P(ROWS[0]))  # noqa: E731
    net = jax.jit(decode.decoder, static_argnums=0)(model, params)
    # A whole number of chunks, so that few lengths are compiled.
    room = -(-(len(prompt) + count) // m) * m
    cache = jax.jit(decode.start, static_argnums=(1, 2, 3))(net, 1, room, retriever.k)
    logits, cache = jax.jit(decode.prefill)(
        net, cache, rows(padded), rows([len(prompt)]), rows(near)
    )
    step, rng = jax.jit(decode.step, donate_argnums=1), np.random.default_rng(seed)
    for last in range(count - 1, -1, -1):
        token = _sample(np.array(logits[0], np.float64), temperature, rng)
        advance(1)
        if token == EOS:
            break
        tokens.append(token)
        if not last:
            break
        fresh = None
        if len(tokens) % m == 0:
            found.append(retriever.retrieve(np.array([tokens[-m:]], np.int32)))
            fresh = decode.Fresh(rows([0]), rows(found[-1].tokens))
        logits, cache = step(net, cache, rows([token]), fresh)
    return tokens, found


def _sample(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    logits[[PAD, BOS, UNK]] = -np.inf  # they are never text
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / temperature
    weights = np.exp(scaled)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
