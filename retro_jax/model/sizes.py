"""The paper's four sizes (tables 2 and 10), counted from the network itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

from retro_jax.config import DecoderConfig, ModelConfig, ReadingConfig
from retro_jax.model import functional
from retro_jax.model.layers import AXES

VOCAB = 128_000
LENGTH = 2048
NEIGHBOURS = 2


def every_third_from_6(layers: int) -> tuple[int, ...]:
    """The CCA layers P = 6, 9, 12, ...: the only rule that fits the paper's parameter counts. Of fewer than
    12 layers, every third from the middle."""
    return tuple(range(min(6, max(1, layers // 2)), layers + 1, 3))


def _paper(d: int, heads: int, head_size: int, layers: int) -> ModelConfig:
    return ModelConfig(
        decoder=DecoderConfig(d=d, heads=heads, head_size=head_size, layers=layers),
        reading=ReadingConfig(cca_layers=every_third_from_6(layers)),
    )


# name of the baseline, name of the RETRO, and their common configuration
PAPER = (
    ("132M", "172M", _paper(896, 16, 64, 12)),
    ("368M", "425M", _paper(1536, 12, 128, 12)),
    ("1309M", "1451M", _paper(2048, 16, 128, 24)),
    ("6982M", "7532M", _paper(4096, 32, 128, 32)),
)


def is_projection(name: str) -> bool:
    """Whether the paper's counts include a weight: no norms, no biases, no embeddings."""
    return not name.endswith(("scale", "_bias", "embedding", "readout", "positions"))


def forward_flops(config: ModelConfig, vocab: int, length: int, neighbours: int) -> int:
    """FLOPs of all matrix products of one sequence's forward pass, readout included.

    Counted in the traced program (a multiplication and an addition are 2): of a long sequence's
    self-attention, what is computed (see `attend.attend_causal`), not all that is masked.
    neighbours = 0 is the model without retrieval.
    """
    if config.attention == "cudnn":  # its products are not in the traced program
        config = dataclasses.replace(config, attention="reference")
    with jax.set_mesh(jax.make_mesh((1, 1, 1), AXES, devices=jax.local_devices()[:1])):
        params = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32)
            for name, shape in functional.shapes(config, vocab, neighbours > 0).items()
        }
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        chunks = -(-length // config.reading.chunk)
        retrieved = (1, chunks, neighbours, config.reading.retrieved)
        args = [params, tokens]
        if neighbours:
            args.append(jax.ShapeDtypeStruct(retrieved, jnp.int32))
        traced = jax.make_jaxpr(lambda *a: functional.apply(config, *a))(*args)
    return dot_flops(traced.jaxpr)


def live(jaxpr):
    """A traced program without what none of its results needs, as a compiler leaves it out.

    The gradient of a product computes those of both factors, also where one of them is frozen.
    """
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def dot_flops(jaxpr) -> int:
    """FLOPs of the matrix products of a traced program, loops counted as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shared = np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
            total += 2 * int(shared) * int(np.prod(eqn.outvars[0].aval.shape))
        if eqn.primitive.name == "pallas_call":  # its blocks are loops of unknown length
            total += eqn.params["cost_estimate"].flops
            continue
        inner = [dot_flops(x) for x in jaxprs_in_params(eqn.params)]
        if eqn.primitive.name == "cond":  # one of them runs
            total += max(inner)
            continue
        total += (eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1) * sum(inner)
    return total


def table() -> list[dict]:
    """One row for each of the eight models; parameters read off the model's own shapes."""
    rows = []
    for baseline, retro, config in PAPER:
        base_flops = forward_flops(config, VOCAB, LENGTH, 0)
        for name, retrieval in ((baseline, False), (retro, True)):
            shapes = functional.shapes(config, VOCAB, retrieval)
            projections = {n: s for n, s in shapes.items() if is_projection(n)}
            tables = {n: s for n, s in shapes.items() if n.endswith("embedding")}
            flops = forward_flops(config, VOCAB, LENGTH, NEIGHBOURS) if retrieval else base_flops
            rows.append(
                {
                    "name": name,
                    "kind": "RETRO" if retrieval else "baseline",
                    "d": config.decoder.d,
                    "layers": config.decoder.layers,
                    "heads": config.decoder.heads,
                    "head_size": config.decoder.head_size,
                    "cca_layers": list(config.reading.cca_layers) if retrieval else [],
                    "parameters_non_embedding": functional.count(projections),
                    "parameters_embedding": functional.count(tables),
                    "parameters_total": functional.count(shapes),
                    "flops_per_token": flops // LENGTH,
                    "retrieval_overhead": flops / base_flops - 1,
                }
            )
    return rows
