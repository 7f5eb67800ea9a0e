"""Texts to tokens and to vectors, and back: what clients ask for beside continuations."""

import base64

import numpy as np

from retro_jax.retrieval.encoder import Encoder
from retro_jax.serve.api import MANY, check_model, ids, prompt_of, texts_of
from retro_jax.serve.reading import Refused, fields, flag, needed, text, whole, wrong

_INPUTS = 2048  # texts of a body
_FORMATS = ("float", "base64")


def tokenize(tokenizer, length: int, body) -> dict:
    """A text's token ids, those that a prompt may have.

    Returns:
      tokens, count, and max_model_len: how many a prompt and its continuation can have.

    Raises:
      Refused: the body is not understood.
    """
    f = fields(body, "", {"model": text, "prompt": text, "add_special_tokens": flag})
    found = [id - tokenizer.first for id in tokenizer.encode(needed(f, "prompt", "a text"))]
    return {"tokens": found, "count": len(found), "max_model_len": length}


def detokenize(tokenizer, body) -> dict:
    """The text of token ids.

    Raises:
      Refused: the body is not understood, or the tokenizer has no such token.
    """
    f = fields(body, "", {"model": text, "tokens": ids(MANY)})
    ours = [id + tokenizer.first for id in needed(f, "tokens", "a list of token ids")]
    if unknown := [id for id in ours if id >= tokenizer.vocab]:
        raise wrong("tokens", unknown[0] - tokenizer.first, "the tokenizer has no such token")
    return {"prompt": tokenizer.decode(ours)}


def embeddings(encoder: Encoder, tokenizer, model: str, length: int, body) -> dict:
    """The vectors with which chunks are searched for, of texts of any length.

    Returns:
      OpenAI's list of embeddings: numbers, or their bytes (float32, little-endian) in base64.

    Raises:
      Refused: the body is not understood, or words are searched here and not vectors.
    """
    f = fields(body, "", _EMBEDDINGS)
    check_model(f, model)
    if (form := f.get("encoding_format", "float")) not in _FORMATS:
        raise wrong("encoding_format", form, f"must be one of {', '.join(_FORMATS)}")
    found = texts_of(needed(f, "input", 'a text, for example "It was"'), "input", tokenizer, length)
    if len(found) > _INPUTS:
        raise Refused(f"input: {len(found):,} texts; send at most {_INPUTS:,} in a body", "input")
    if encoder.searched != "vectors":
        raise Refused(
            "words are searched here, and no vectors: this model has no embeddings", "model"
        )
    vectors = encoder(found)["vectors"]
    if f.get("dimensions", vectors.shape[1]) != vectors.shape[1]:
        raise wrong("dimensions", f["dimensions"], f"vectors have {vectors.shape[1]} here")
    count = sum(len(tokenizer.encode(one)) for one in found)
    return {
        "object": "list", "model": model, "usage": {"prompt_tokens": count, "total_tokens": count},
        "data": [
            {"object": "embedding", "index": i, "embedding": _told(vector, form)}
            for i, vector in enumerate(vectors)
        ],
    }  # fmt: skip


def _told(vector: np.ndarray, form: str) -> list[float] | str:
    if form == "float":
        return vector.astype(float).tolist()
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


_EMBEDDINGS = {
    "model": text, "input": prompt_of, "encoding_format": text, "dimensions": whole(1, MANY), "user": text,
}  # fmt: skip
