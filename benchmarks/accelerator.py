"""The first hour on an accelerator: what the chip reaches, and what retro_jax reaches on it.

    pip install -e .                                         # beside the JAX of the accelerator
    python benchmarks/accelerator.py --json first.json       # 20 minutes
    python benchmarks/accelerator.py --parts peaks train     # some of it
    python benchmarks/accelerator.py --smoke                 # does it run? tiny shapes, on any machine

Each part is a process of its own, and has a limit of its own: one that fails or takes too long says so in the table
`left out`, and the others go on. Everything computes in bfloat16 with float32 parameters; times are medians.

MFU is the model's FLOPs (forward once, gradient twice, nothing for what is computed again) over what the chip's maker
says it reaches, once with all of masked self-attention counted (`whole`) and once with the half of it that is not
masked (`half`). `of the product` has the largest matrix product of the same run below instead. Weights are random, text
is random but where neighbours are looked up.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time

import chip
import common

# (size, sequences, remat, attention_block, attention) of the train steps; the sequences have 2,048 tokens. Those of
# `flash` are left out where there is no TPU, those of `cudnn` where there is no GPU.
STEPS = (
    ("172m", 8, "none", 256, "reference"), ("172m", 8, "none", 256, "flash"), ("172m", 8, "none", 256, "cudnn"),
    ("172m", 8, "full", 256, "reference"), ("172m", 8, "full", 256, "flash"), ("172m", 8, "full", 256, "cudnn"),
    ("425m", 8, "none", 512, "reference"), ("425m", 8, "none", 512, "flash"), ("425m", 8, "none", 512, "cudnn"),
    ("172m", 8, "none", 2048, "reference"), ("172m", 32, "full", 512, "reference"),
    ("425m", 8, "full", 256, "reference"),
)  # fmt: skip
PARTS = {
    "peaks": 60,
    "train": 660,
    "generate": 300,
    "search": 90,
    "retro_pytorch": 90,
}  # seconds, 20 minutes in all
FORMATS = {
    "TFLOP/s": ",.1f", "GB/s": ",.0f", "ms": ",.2f", "tokens/s": ",.0f", "MFU, whole": ".1%", "MFU, half": ".1%",
    "of the product": ".1%", "peak GiB": ".2f", "planned GiB": ".2f", "planned ms, best": ",.0f",
    "planned ms, worst": ",.0f", "compiled in s": ".0f", "of off": ".2f",
    "us a query": ",.1f", "recall@10": ".3f",
}  # fmt: skip


WORK = {
    "peaks": lambda args, i: chip.peaks(args),
    "train": chip.step,
    "generate": chip.generate,
    "search": lambda args, i: chip.search(args),
    "retro_pytorch": lambda args, i: chip.retro_pytorch(args),
}


def apart(args: argparse.Namespace, part: str, limit: int) -> tuple[list[dict], str]:
    """What a part says, in a process of its own; or [] and why not."""
    words = [a for a in sys.argv[1:] if a != "--smoke"] + (["--smoke"] if args.smoke else [])
    command = [sys.executable, sys.argv[0], *words, f"--only={part}", f"--reached={args.reached}"]
    # Programs that two generators share are compiled once.
    env = {"JAX_COMPILATION_CACHE_DIR": str(args.workdir / ".jax_cache")} | os.environ
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=env)
    except subprocess.TimeoutExpired:
        return [], f"took more than {limit} s"
    if done.returncode:
        if args.json:
            args.json.with_suffix(f".{part}.log").write_text(done.stderr)
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        return [], (named or lines)[-1][:300]
    return json.loads(done.stdout.splitlines()[-1]), ""


def measured(args: argparse.Namespace) -> dict[str, list[dict]]:
    """The tables: of each part, and what was left out."""
    tables, missing = {}, []
    for part in args.parts:
        begin, limit = time.perf_counter(), PARTS[part]
        parts = {"train": args.steps, "generate": args.rows}.get(part)
        each = [f"{part},{i}" for i in range(len(parts))] if parts else [part]
        for one in each:
            left = limit - (time.perf_counter() - begin)
            rows, why = apart(args, one, max(30, int(left))) if left > 30 else ([], "no time left")
            if why:
                name = parts[int(one.partition(",")[2])] if parts else ""
                missing.append({"part": f"{part} {name}".strip(), "why": why})
            tables.setdefault(part, []).extend(rows)
            if args.json:  # what was measured stays, whatever comes
                common.save(tables | {"left out": missing}, args.json)
        print(f"{part}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        if part == "peaks" and tables[part]:
            args.reached = max(r["TFLOP/s"] or 0 for r in tables[part]) * 1e12
    tables["left out"] = missing
    return {title: rows for title, rows in tables.items() if rows}


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--product", type=int, default=8192, help="rows of the matrices")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="that are searched")
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[1, 8, 64], help="that are generated together"
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--reached", type=float, default=0.0, help=argparse.SUPPRESS)
    args = common.parse(parser, length=256, product=256, vectors=2000, rows=[1])
    args.steps = (("tiny", 1, "full", 64, "reference"),) if args.smoke else STEPS
    if args.only:
        part, _, number = args.only.partition(",")
        print(json.dumps(WORK[part](args, int(number or 0))))
        return
    common.show(measured(args), FORMATS, args.json)


if __name__ == "__main__":
    main()
