"""Trained weights to directories that others read: this project's own layout, or Hugging Face's of the decoder.

Either holds config.json, *.safetensors (more than one where there are more than 5 GB), the tokenizer and a model
card. What `retro export` writes is a base like any other: reading it gives the same weights back.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.corpus.tokenizer import BOS, EOS
from retro_jax.errors import UserError
from retro_jax.store import files
from retro_jax.weights import exported, huggingface, pretrained
from retro_jax.weights.card import Card
from retro_jax.weights.directory import TOKENIZERS
from retro_jax.weights.families import FAMILIES
from retro_jax.weights.name_table import letters, to_theirs
from retro_jax.weights.tensors import INDEX, Tensors

SHARD = 5 * 10**9  # bytes of a file
# Of a base, what only others read: special tokens, templates, how it generates.
_BESIDE = (
    "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip


def check(to: Path):
    """Raises UserError, before anything slow has run, if nothing can be written there."""
    if to.exists():
        raise UserError(f"--to={to}: exists already; name a new directory, or delete it")
    if jax.process_count() > 1:
        raise UserError("retro export is for one process; leave --distributed out")


def export(about: Card, params: dict, tokenizer: Path, to: Path, decoder: bool) -> dict:
    """Writes trained weights.

    Args:
      about: the experiment, and what the card says of it.
      params: by name, on a mesh. tokenizer: the directory of the corpus's.
      to: a directory that does not exist yet; it is whole or absent.
      decoder: in the layout of Hugging Face, without what retrieval adds.

    Returns:
      The config.json that was written.

    Raises:
      UserError: the directory exists, or Hugging Face has no such decoder.
    """
    check(to)
    e, retrieval = about.experiment, about.retrieval
    vocab = params["embedding"].shape[0]
    read = _reader(e, params)
    partial = files.aside(to)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        if decoder:
            config, tensors = _theirs(e, tokenizer, vocab, read)
        else:
            kept = any(p.dtype == jnp.bfloat16 for p in params.values())
            config = exported.describe(e.model, vocab, retrieval, "bfloat16" if kept else "float32")
            names = pretrained.shapes(e.model, vocab, retrieval)
            tensors = ((name, read(name)) for name in names)
        size = _write(partial, tensors)
        files.write_json(partial / "config.json", config)
        beside = [tokenizer / name for name in TOKENIZERS]
        beside += [Path(e.train.base) / name for name in _BESIDE] if e.train.base else []
        for file in filter(Path.is_file, beside):
            shutil.copyfile(file, partial / file.name)
        files.write(partial / "README.md", about.text(to.name, vocab, decoder, size))
        for file in partial.iterdir():
            files.force(file)
        files.replace(partial, to)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--to={to}: cannot be written ({error}); make room") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return config


def _reader(e: Experiment, params: dict):
    """A weight by its layer's number, from the devices, one at a time."""
    at = pretrained.where(e.model, params)

    def read(name: str) -> np.ndarray:
        stacked, index = at[name]
        return np.asarray(params[stacked] if index is None else params[stacked][index])

    return read


def _write(directory: Path, tensors: Iterator[tuple[str, np.ndarray]]) -> int:
    """Files of at most SHARD bytes and, if there are several, their index; returns all bytes."""
    parts, held, total = [], {}, 0

    def save():
        file = directory / f"part{len(parts)}"
        save_file(held, file, metadata={"format": "pt"})  # which transformers asks for
        file.chmod(0o644)  # the library leaves it to its owner alone
        parts.append((file, list(held)))
        held.clear()

    with progress.bar("writing weights", None) as advance:
        for name, value in tensors:
            if held and sum(x.nbytes for x in held.values()) + value.nbytes > SHARD:
                save()
            held[name] = np.ascontiguousarray(value)
            total += value.nbytes
            advance(1)
        save()
    where = {}
    for number, (file, names) in enumerate(parts, 1):
        several = f"model-{number:05}-of-{len(parts):05}.safetensors"
        name = several if len(parts) > 1 else "model.safetensors"
        file.rename(directory / name)
        where |= dict.fromkeys(names, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        files.write_json(directory / INDEX, index)
    return total


def _theirs(
    e: Experiment, tokenizer: Path, vocab: int, read
) -> tuple[dict, Iterator[tuple[str, np.ndarray]]]:
    """config.json and tensors of the decoder as Hugging Face has it: those of the base, with other numbers, or
    of the family that has such decoders."""
    base = Path(e.train.base) if e.train.base else None
    config = pretrained.read_config(base) if base and (base / "config.json").exists() else {}
    old = rows = None
    if config.get("model_type") in FAMILIES:
        config = {k: v for k, v in config.items() if k != "torch_dtype"}
        old, rows = Tensors(base), huggingface.vocabulary(base, config)[1]
        shared = rows is not None and rows[BOS] == rows[EOS]
        names = ("embedding",) if e.model.decoder.tied else ("embedding", "readout")
        if shared and any((read(name)[BOS] != read(name)[EOS]).any() for name in names):
            raise UserError(
                "--decoder: BOS and EOS are one token in the base's layout, and were trained to be two; "
                "export without --decoder"
            )
    elif (tokenizer / "tokenizer.json").exists():
        raise UserError(
            "--decoder: this decoder's tokens are four more than its tokenizer.json's, which transformers "
            "would not know; export without --decoder"
        )
    else:
        config = huggingface.config_of(e.model.decoder, vocab)
    family = FAMILIES[config["model_type"]]
    config["dtype"] = str(read("embedding").dtype)

    def table(ours: str, theirs: str) -> np.ndarray:
        made = read(ours)
        if rows is None:
            return made
        found = next(n for n in (theirs, theirs.removeprefix(family.optional)) if n in old)
        filled = np.array(old[found], made.dtype)  # what the tokenizer never makes is the base's
        filled[rows[rows >= 0]] = made[rows >= 0]
        return filled

    def tensors():
        yield family.embedding, table("embedding", family.embedding)
        if not e.model.decoder.tied:
            yield family.readout, table("readout", family.readout)
        sizes = letters(e.model.decoder)
        known = pretrained.shapes(e.model, vocab, False)
        for theirs, pattern, ours in huggingface.names(family, e.model.decoder):
            if ours[0] in known:
                parts = [read(name) for name in ours]
                yield theirs, to_theirs(parts, pattern, sizes | {"p": len(parts)})

    return config, tensors()
