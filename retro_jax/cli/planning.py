"""`retro plan`, `retro sizes`."""

import dataclasses
import json
import os

from rich import box
from rich.table import Table

from retro_jax.cli.command import Command, Flag
from retro_jax.cli.experiment import experiment_of
from retro_jax.errors import UserError
from retro_jax.terminal import Terminal


def _plan(args, fields) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # it counts and compiles, and runs on no chip
    if args.topology is None:
        raise UserError("retro plan: --topology is missing, for example --topology=v5e:4x4")
    e = experiment_of(args, fields)
    from retro_jax.methods.method import method_of
    from retro_jax.plan import plan, topology

    if args.mesh is not None:
        e = dataclasses.replace(e, mesh=plan.parse_mesh(args.mesh))
    on, method = topology.parse(args.topology), method_of(e, args.method or e.methods[0])
    vocab = plan.vocab_of(e)
    if args.search:
        from retro_jax.plan.search import BEST, search

        if args.mesh is not None:
            raise UserError("--mesh and --search: the search is for the mesh")
        best = BEST if args.compile is None else args.compile
        if best < 0:
            raise UserError(f"--compile={best}: must be a number of configurations, or 0 for none")
        plan.show_all(search(e, on, vocab, method, best), args.json)
    elif args.compile:
        raise UserError("--compile: how many that --search finds are compiled; give --search too")
    else:
        plan.show(plan.plan(e, on, vocab, method, compiles=args.compile is None), args.json)
    return 0


def _sizes(args, fields) -> int:
    from retro_jax.model.sizes import table

    rows = table()
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    out = Table(
        title="the paper's sizes, in millions of parameters and GFLOP a token (forward)",
        caption="params: projections; total: embeddings (vocabulary 128,000) and all\n"
        "retrieval: FLOPs it adds (k = 2, 2048 tokens)",
        box=box.SIMPLE,
        padding=0,
        title_justify="left",
        caption_justify="left",
    )
    for name in ("model", "d", "L", "heads", "CCA"):
        out.add_column(name, no_wrap=True)
    for name in ("params", "total", "GFLOP", "retrieval"):
        out.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        cca = r["cca_layers"]
        out.add_row(
            f"{r['kind']} {r['name']}",
            str(r["d"]),
            str(r["layers"]),
            f"{r['heads']}x{r['head_size']}",
            f"{cca[0]}-{cca[-1]} by 3" if cca else "",
            f"{r['parameters_non_embedding'] / 1e6:.2f}",
            f"{r['parameters_total'] / 1e6:.2f}",
            f"{r['flops_per_token'] / 1e9:.2f}",
            f"+{r['retrieval_overhead']:.0%}" if cca else "",
        )
    Terminal().print(out)
    return 0


COMMANDS = (
    Command(
        "plan",
        "what a train step needs on a machine that is not here, and how long the run takes",
        "retro plan --config=experiments/retro.py:1.5b --topology=v5e:4x4",
        "nothing",
        _plan,
        (
            Flag("--topology", "v5e:4x4, v5p:4x4x4*2 (two slices) or h100:8"),
            Flag("--mesh", "REPLICAxDATAxMODEL, 1x16x1 for example"),
            Flag(
                "--search",
                "for the fastest mesh, accumulate, remat and attention_block that fit",
                bool,
            ),
            Flag(
                "--compile",
                "how many of the best that --search finds are compiled for a TPU, by default 3; 0, with or without "
                "--search: counts only",
                int,
            ),
            Flag("--method", "the method that is trained; by default the first of the experiment"),
            Flag("--json", "as JSON", bool),
        ),
    ),
    Command(
        "sizes",
        "the paper's four sizes, counted from the model",
        "retro sizes --json",
        "nothing",
        _sizes,
        (Flag("--json", "as JSON", bool),),
        experiment=False,
    ),
)
