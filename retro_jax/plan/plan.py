"""`retro plan`: the real train step compiled for a TPU slice that is not here, and what it needs there.

With libtpu (`pip install 'retro_jax[tpu]'`) the figures are the TPU compiler's own. Without it, and for
GPUs, they are counted from shapes (`count.needs`) and marked as an estimate.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
from rich import box
from rich.table import Table

from retro_jax import progress
from retro_jax.config import Experiment, MeshConfig
from retro_jax.corpus import tokenizer
from retro_jax.errors import UserError
from retro_jax.methods.method import Method, method_of
from retro_jax.model import cudnn, kernel
from retro_jax.plan import count, hlo, roofline, topology
from retro_jax.train import sharding
from retro_jax.train.hardware import GIB
from retro_jax.train.step import make_train_step
from retro_jax.weights import directory

# Share of a chip's memory that programs get; of a GPU's, what train.slurm has XLA take.
_USABLE = 0.94
_TEMPORARIES = 2.3  # what libtpu needed, over what is counted (docs/training.md, the compiled rows)
_HELD = ("parameters", "optimizer", "batch", "activations")


def parse_mesh(text: str) -> MeshConfig:
    """`REPLICAxDATAxMODEL`, one of them may be -1.

    Raises:
      UserError: it is not that.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(p.removeprefix("-").isdecimal() for p in parts):
        raise UserError(f"--mesh={text}: write it as REPLICAxDATAxMODEL, for example 1x16x1")
    return MeshConfig(*map(int, parts))


def vocab_of(e: Experiment) -> int:
    """Tokens of the vocabulary, without a working directory."""
    if e.train.base and not directory.tokenizer_of(Path(e.train.base)):
        return directory.vocab_of(Path(e.train.base))
    if e.corpus.tokenizer == "train":
        return e.corpus.vocab
    return tokenizer.load(Path(e.corpus.tokenizer)).vocab


def plan(
    e: Experiment, on: topology.Topology, vocab: int, method: Method, compiles: bool = True
) -> dict:
    """What a train step needs on each chip of a machine, compiled where that can be, and the smallest slice whose
    estimate fits; see `estimate`."""
    made = estimate(e, on, vocab, method, compiles)
    return made | {"smallest_that_fits": _smallest(e, on, vocab, method, made["fits"])}


def estimate(
    e: Experiment, on: topology.Topology, vocab: int, method: Method, compiles: bool = False
) -> dict:
    """What a train step of `e` needs on each chip of a machine.

    method: which it is; its network is that of `e`, whatever remat and blocks it was made with.

    Returns:
      fits, compiled (or estimated), bytes a chip by kind and in all; collectives by kind (count and bytes a chip and
      step; None if not compiled); FLOPs a step and what is computed again, seconds of a step by what bounds it, hours
      of the run at best and at worst (`roofline.Times`).

    Raises:
      UserError: the mesh does not fit the machine or the model.
    """
    abstract, method = topology.abstract_mesh(on, e.mesh), method_of(e, method.name)
    if e.model.attention == "flash":
        kernel.check_chip(on.chip.kind)
    elif e.model.attention == "cudnn":
        if on.kind in topology.SLICES:
            raise cudnn.not_for(on.chip.kind)
        raise UserError(
            "config field model.attention = 'cudnn': what cuDNN reads, writes and holds is not counted; "
            "plan with reference, whose figures are not cuDNN's"
        )
    sharding.check_divides(
        abstract, e.model, vocab, train_batch=e.train.batch // e.train.accumulate
    )
    needed = count.needs(e, vocab, abstract, method)
    mesh = topology.device_mesh(on, e.mesh) if compiles else None
    made = _compile(e, vocab, mesh, method) if mesh else None
    memory = {k: needed[k] for k in _HELD}
    if made:
        memory["temporaries"] = max(0, made["temporary"] - memory["activations"])
        memory["activations"] = min(memory["activations"], made["temporary"])
    else:
        memory["temporaries"] = _temporaries(needed)
    total = made["total"] if made else sum(memory.values())
    flops, fits = needed["flops"], total <= on.chip.memory * _USABLE
    took = roofline.times(needed["work"], on.chip, topology.speeds(on, abstract))
    seconds = [took.best, took.worst]
    return {
        "experiment": f"{e.name}, {method.name}",
        "topology": str(on),
        "chips": on.chips,
        "mesh": dict(abstract.shape),
        "batch": e.train.batch,
        "accumulate": e.train.accumulate,
        "remat": e.model.remat,
        "attention_block": e.model.attention_block,
        "compiled": bool(made),
        "fits": fits,
        "bytes_per_chip": memory | {"total": total, "of": on.chip.memory},
        "collectives": made and made["collectives"],
        "flops_per_step": flops,
        "recomputed": needed["recomputed"] / flops,
        "seconds_per_step": seconds,
        "seconds_by": {"products": took.products, "memory": took.memory, **took.axes},
        "bound": took.bound,
        "hours": [s * e.train.steps / 3600 for s in seconds],
    }


def _temporaries(needed: dict) -> int:
    return int(_TEMPORARIES * sum(needed[k] for k in ("gradients", "gathered", "readout")))


def _compile(e: Experiment, vocab: int, mesh: jax.sharding.Mesh, method: Method) -> dict:
    with jax.set_mesh(mesh):
        step = count.shapes(e, vocab, mesh, method)
        progress.say(f"compiling the train step for {mesh.size} chips (minutes)")
        lowered = make_train_step(method, e.train).lower(step.state, step.batch)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "vmem" in str(error):
                raise UserError(
                    "config field model.attention = 'flash': the memory inside a chip cannot hold a kernel of these "
                    "chunks and neighbours; set it to reference"
                ) from None
            needed = _refused(str(error))
            if needed is None:
                raise
            held = count.bytes_of((step.state, step.batch))
            return {"total": needed, "temporary": needed - held, "collectives": None}
    memory = compiled.memory_analysis()
    return {
        "temporary": memory.temp_size_in_bytes,
        "total": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes,
        "collectives": hlo.collectives(compiled.as_text()),
    }


def _refused(message: str) -> int | None:
    """Bytes that the compiler wanted, where it says that they do not fit into a chip's main memory."""
    found = re.search(r"Used ([\d.]+)([KMG]) of", message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return None
    return int(float(found[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[found[2]])


def _smallest(
    e: Experiment, on: topology.Topology, vocab: int, method: Method, fits: bool
) -> str | None:
    """The smallest slice of the same chips whose estimate fits, the batch being the same: `on` itself
    at most if that fits, and more than `on` if it does not."""
    for other in topology.larger(on):
        if other.chips >= on.chips and fits:
            return str(on)
        if other.chips <= on.chips and not fits:
            continue
        # A width that does not divide by so many chips: the rest are replicas.
        data = math.gcd(other.chips // max(1, e.mesh.model), e.model.decoder.d, e.model.encoder.d)
        mesh = MeshConfig(-1, max(1, data), e.mesh.model)
        try:
            abstract = topology.abstract_mesh(other, mesh)
            part = e.train.batch // e.train.accumulate
            sharding.check_divides(abstract, e.model, vocab, train_batch=part)
        except UserError:
            continue
        n = count.needs(dataclasses.replace(e, mesh=mesh), vocab, abstract, method)
        total = sum(n[k] for k in _HELD) + _temporaries(n)
        if total <= other.chip.memory * _USABLE:
            return f"{other} (estimated)"
    return None


def show_all(results: list[dict], as_json: bool):
    """Prints the plans of a search as a table, or as JSON."""
    if as_json:
        print(json.dumps(results, indent=2))
        return
    progress.say(f"{results[0]['experiment']} on {results[0]['topology']}, the best first")
    head = ("mesh", "parts", "remat", "block", "GiB", "s a step", "hours", "bound by")
    table = Table(*head, box=box.SIMPLE, padding=0)
    for r in results:
        memory = r["bytes_per_chip"]["total"] / GIB
        how = "" if r["fits"] else ", does NOT fit"
        table.add_row(
            "x".join(map(str, r["mesh"].values())), str(r["accumulate"]), r["remat"], str(r["attention_block"]),
            f"{memory:.1f}" + " (compiled)" * r["compiled"] + how, _range(r["seconds_per_step"]),
            _range(r["hours"]), r["bound"].removeprefix("links along "),
        )  # fmt: skip
    progress.show(table)
    r = results[0]
    if not r["fits"]:
        progress.say("None of these fits as compiled; take more chips.")
        return
    progress.say(
        f"Take --config.mesh.replica={r['mesh']['replica']} --config.mesh.data={r['mesh']['data']} "
        f"--config.mesh.model={r['mesh']['model']} --config.train.accumulate={r['accumulate']} "
        f"--config.model.remat={r['remat']} --config.model.attention_block={r['attention_block']}"
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _range(values: list[float]) -> str:
    return " to ".join(map(_figure, values))


def show(result: dict, as_json: bool):
    """Prints a plan as tables, or as JSON."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    r, memory = result, result["bytes_per_chip"]
    how = "compiled by libtpu" if r["compiled"] else "ESTIMATE, not compiled"
    kind = r["topology"].partition(":")[0]
    if kind not in topology.SLICES:
        how += "; for an H100 such a count of memory was up to 40 % too low and 44 % too high"
    elif not r["compiled"]:
        how += "; libtpu compiles it (pip install 'retro_jax[tpu]')"
    mesh = " x ".join(f"{name} {size}" for name, size in r["mesh"].items())
    progress.say(f"{r['experiment']} on {r['topology']}: {how}")
    table = Table("GiB a chip", "")
    table.columns[1].justify = "right"
    for name in ("parameters", "optimizer", "batch", "activations", "temporaries", "total", "of"):
        counted = " (counted from shapes)" if r["compiled"] and name == "activations" else ""
        table.add_row(
            name + counted, f"{memory[name] / GIB:.2f}", end_section=name in ("temporaries", "of")
        )
    progress.show(table)
    progress.say(("It fits." if r["fits"] else "It does NOT fit.") + f" Mesh: {mesh}.")
    if r["collectives"]:
        sent = Table("collective", "times a step", "GiB of whole arrays a step")
        for name, value in r["collectives"].items():
            sent.add_row(name, f"{value['count']:,}", f"{value['bytes'] / GIB:.2f}")
        progress.show(sent)
    progress.say(
        f"{r['flops_per_step']:.3e} FLOPs a step of {r['batch']} sequences"
        + (f" in {r['accumulate']} parts" if r["accumulate"] > 1 else "")
        + f"; rematerialisation adds {r['recomputed']:.0%}.\n"
        f"{_range(r['seconds_per_step'])} s a step and {_range(r['hours'])} hours in all; bound by {r['bound']} "
        f"({', '.join(f'{name} {_figure(s)} s' for name, s in r['seconds_by'].items())}).\n"
        f"Smallest {kind} that fits: {r['smallest_that_fits'] or 'none'}."
    )
