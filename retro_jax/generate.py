"""A continuation with live retrieval: at the end of every chunk, its neighbours are looked up."""

from pathlib import Path

import jax
import numpy as np

from retro_jax import progress, steps, workdir
from retro_jax.config import Experiment, ModelConfig
from retro_jax.corpus.tokenizer import BOS, EOS, PAD, UNK
from retro_jax.model import functional
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

    Every token is predicted by a full forward pass over all tokens so far, padded to one shape, with
    the neighbours of every chunk that is complete: slow, and right by construction.

    Args:
      prompt: token ids, BOS first.
      retriever: has retrieve(chunks [n, M]) -> Neighbours.

    Returns:
      All tokens, and the Neighbours of each complete chunk in order.
    """
    m = model.chunk
    chunks = -(-(len(prompt) + count) // m)
    tokens, found, neighbours = list(prompt), [], None
    rng = np.random.default_rng(seed)
    logits_at = jax.jit(lambda p, x, n, t: functional.apply(model, p, x, n)[0, t])
    padded = np.full((1, chunks * m), PAD, np.int32)
    padded[0, : len(tokens)] = tokens
    for _ in range(count):
        while (len(found) + 1) * m <= len(tokens):
            u = len(found)
            found.append(retriever.retrieve(padded[:, u * m : (u + 1) * m]))
            if neighbours is None:
                neighbours = np.full((1, chunks, *found[0].tokens.shape[1:]), PAD, np.int32)
            neighbours[0, u] = found[-1].tokens[0]
        logits = np.asarray(logits_at(params, padded, neighbours, len(tokens) - 1), np.float64)
        token = _sample(logits, temperature, rng)
        advance(1)
        if token == EOS:
            break
        padded[0, len(tokens)] = token
        tokens.append(token)
    return tokens, found


def _sample(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    logits[[PAD, BOS, UNK]] = -np.inf  # they are never text
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / temperature
    weights = np.exp(scaled)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
