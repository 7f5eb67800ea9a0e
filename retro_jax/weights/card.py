"""The model card of an export: README.md, as hubs of models show it."""

from dataclasses import dataclass
from pathlib import Path

from retro_jax.config import Experiment
from retro_jax.model import functional

_HEAD = """---
library_name: {library}
pipeline_tag: text-generation
license: other
{tags}{base}---

# {name}

"""
_RETRO = """A RETRO (Borgeaud et al. 2021, arXiv 2112.04426): a language model that reads, while it predicts a
chunk of {chunk} tokens, what its last chunk retrieved from a database: {k} neighbours of {retrieved} tokens in
training. It needs a database; without one it is the language model alone.

| | |
|---|---|
| parameters | {parameters:,}, of which retrieval added {added:,} |
| decoder | {layers} layers of width {d}, {heads} heads of {head_size} |
| cross-attention | in layers {cca} |
| encoder | {encoder_layers} layers of width {encoder_d} |
| trained on | {trained} |
| base | {base} |
"""
_DECODER = """The language model alone, without what retrieval adds: {layers} layers of width {d}, {heads} heads of
{head_size}, {parameters:,} parameters.

| | |
|---|---|
| trained on | {trained} |
| base | {base} |
"""
_USE = """
## Use

```
retro run --config=experiments/retrofit.py:{name} --workdir=runs/{name} --config.train.steps=0 \\
  --config.corpus.source='text:my/*.txt'
```

in a clone of retro_jax prepares a database of that text, scores held-out documents with and without it, and
continues a prompt; `retro generate` and `retro serve` then use it.
"""
_LIMITS = """
## Limits

{reads}Figures hold for the text that they were measured on and for nothing else. The licences of the training text,
of the base and of the database hold for what is made of them; set `license` above before you publish.
"""
_READS = "What it reads decides what it says: the database is part of the model. "


@dataclass(frozen=True)
class Card:
    """What a card says of a model.

    Attributes:
      retrieval: a whole RETRO, or a decoder alone. evaluations: the figures of each text that was scored.
      notes: sentences about how it was trained.
    """

    experiment: Experiment
    retrieval: bool
    evaluations: dict[str, dict]
    notes: str = ""

    def text(self, name: str, vocab: int, decoder: bool, size: int) -> str:
        """The card. name: of the model. decoder: without what retrieval adds. size: bytes of the weights."""
        retrieval = self.retrieval and not decoder
        text = _begin(self.experiment, name, vocab, retrieval, size)
        if retrieval:
            text += f"\n{self.notes}\n" if self.notes else ""
            text += _tables(self.evaluations) + _USE.format(name=name)
        return text + _LIMITS.format(reads=_READS if retrieval else "")


def _begin(e: Experiment, name: str, vocab: int, retrieval: bool, size: int) -> str:
    m, d, t = e.model, e.model.decoder, e.train
    alone, parameters = (
        functional.count(functional.shapes(m, vocab, r)) for r in (False, retrieval)
    )
    facts = {
        "chunk": m.reading.chunk, "k": e.retrieval.neighbours, "retrieved": m.reading.retrieved,
        "added": parameters - alone, "parameters": parameters, "layers": d.layers, "d": d.d,
        "heads": d.heads, "head_size": d.head_size, "cca": ", ".join(map(str, m.reading.cca_layers)),
        "encoder_layers": m.encoder.layers, "encoder_d": m.encoder.d, "base": _base(e),
        "length": t.length,
        "trained": f"{e.corpus.source}, {t.steps * t.batch * t.length:,} tokens in sequences of "
                   f"{t.length}",
    }  # fmt: skip
    if t.steps == 0 or (t.base and t.freeze and not retrieval):
        facts["trained"] = "nothing here: the weights are the base's"
    head = f"base_model: {Path(t.base).name}\n" if t.base else ""
    # (A decoder in Hugging Face's layout is read by its library; the paper's, by this one.)
    library = "retro_jax" if d.positions == "relative" or retrieval else "transformers"
    tags = "tags:\n- retro\n- retrieval\n" if retrieval else ""
    text = _HEAD.format(library=library, tags=tags, base=head, name=name)
    text += (_RETRO if retrieval else _DECODER).format(**facts)
    return text + f"| weights | {size / 1e9:.2f} GB |\n"


def _base(e: Experiment) -> str:
    if not e.train.base:
        return "none: trained from scratch"
    if e.train.freeze:
        return f"{Path(e.train.base).name}, whose weights are as they were"
    return f"{Path(e.train.base).name}, trained further"


def _tables(evaluations: dict[str, dict]) -> str:
    """A table for each text that was evaluated: all of it, and what overlaps little with what was read."""
    text = ""
    for name, counts in evaluations.items():
        bits, filtered = counts.get("bits_per_byte"), counts.get("bits_per_byte_filtered")
        if not bits or not filtered:
            continue
        share = counts.get("filtered_share_of_bytes")
        little = f" ({share:.0%} of them)" if share is not None else ""
        text += f"\n## Bits per byte on {name}\n\n"
        text += f"| condition | all bytes | little overlap{little} |\n|---|---|---|\n"
        for condition, value in bits.items():
            few = f"{filtered[condition]:.4f}" if filtered[condition] is not None else "none"
            text += f"| {condition} | {value:.4f} | {few} |\n"
    return text or "\nIt has not been evaluated (`retro evaluate` does).\n"
