"""Bits per byte against tokens seen, for RETRO and its language model: how much training is enough?

    pip install -e '.[report]'
    python benchmarks/curves.py --config experiments/small.py --plot=curves.png
    python benchmarks/curves.py --config experiments/small.py --neighbours 1 4 --seeds 0 1 2
    python benchmarks/curves.py --smoke      # does it run?

One run for each seed and number of neighbours, at a constant learning rate. At each number of steps the rate falls
over the last fifth, the model is scored (on, off, random, language_model), and the run goes on from before the
fall. So a curve's points are models that were trained to their end, and cost one run and its branches. The language
model reads nothing: it is trained once for each seed.

all: every held-out token. filtered: chunks that share fewer than 8 tokens in a row with what was read. novel: tokens
that end no run of tokens shared with what was read. far: the half of the tokens whose nearest neighbour is farther;
of the four this alone is known before the tokens are (docs/report.md). Each point is kept in WORKDIR/curves; a run
goes on where it was stopped.
"""

import contextlib
import json
import sys
from pathlib import Path

import common
import numpy as np

STEPS = (360, 720, 1440, 2880, 5760)
NAMES = ("on", "off", "random", "language_model")
FORMATS = {"steps": ",d", "tokens": ",d", "tokens/parameter": ".2f"} | dict.fromkeys(
    [*NAMES, "random - on", "language_model - on", "low", "high"], ".4f"
)


def figures(scored: Path, plain: Path, at: dict) -> list[dict]:
    """The rows of a point, one for each part; plain: where the language model was scored."""
    from retro_jax.evaluate import beside, rows, signals

    found, baseline = (rows.load(d / "evaluate/heldout/tokens.parquet") for d in (scored, plain))
    if not np.array_equal(found["target"], baseline["target"]):
        raise SystemExit(f"{scored} and {plain} were scored on other tokens")
    trained = baseline.facts["models"]["language_model"]["steps"]
    if trained != at["steps"]:
        raise SystemExit(
            f"{plain}: its language model has {trained} steps now, and {scored} has {at['steps']}; to add "
            "neighbours to curves that are complete, use another --workdir"
        )
    found.nats["language_model"] = baseline.nats["language_model"]
    made = []
    for part, mask in beside.parts_of(found).items():
        own = found.where(mask)
        content, system = (signals.effect(own, worse, "on") for worse in ("random", NAMES[-1]))
        made.append(
            {**at, "part": part, **{n: signals.bits_per_byte(own)[n] for n in NAMES}}
            | {"random - on": content["value"], "language_model - on": system["value"]}
            | {"low": system["low"], "high": system["high"]}
        )
    return made


def point(args, k: int, seed: int, steps: int) -> list[dict]:
    """Trains as far as `steps` and scores, or reads what was kept of it."""
    from retro_jax.cli.main import main as retro
    from retro_jax.store import files
    from retro_jax.store.workdir import WorkDir

    kept = args.workdir / "curves" / f"k{k}-seed{seed}-steps{steps}.json"
    of = {"config": str(args.config), "source": args.source, "fields": args.fields}
    if kept.exists():
        before = json.loads(kept.read_text())
        if before["of"] != of:
            raise SystemExit(f"{kept} is of {before['of']}, not {of}: use another --workdir")
        return before["rows"]
    first = args.neighbours[0]
    root, plain = (args.workdir / f"k{n}-seed{seed}" for n in (k, first))
    methods = ("retro", "language_model") if k == first else ("retro",)
    fields = {
        "corpus.source": args.source, "retrieval.neighbours": k, "train.seed": seed, "train.steps": steps,
        "train.schedule": "constant", "train.decay": 0.2, "methods": methods, "generate.contributions": False,
        "evaluate.generated": 0,
    }  # fmt: skip
    fields |= dict(field.split("=", 1) for field in args.fields) | {"methods": methods}
    if not args.source:
        del fields["corpus.source"]
    words = [f"--config={args.config}", f"--workdir={root}"]
    words += [f"--config.{name}={value}" for name, value in fields.items()]
    for command in (["prepare"], ["train"], ["evaluate", "--conditions=random"]):
        with contextlib.redirect_stdout(sys.stderr):
            if status := retro([*command, *words]):
                sys.exit(status)
    counts = json.loads((root / "train/retro/manifest.json").read_text())["counts"]
    train = WorkDir(root).experiment.train
    tokens = steps * train.batch * train.length
    at = {"k": k, "seed": seed, "steps": steps, "tokens": tokens}
    at["tokens/parameter"] = tokens / counts["parameters"]
    made = figures(root, plain, at)
    kept.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(kept, {"of": of, "rows": made})
    return made


def means(rows: list[dict], better: str, worse: str = "") -> tuple[list[int], list[float]]:
    """Tokens seen, and the mean of the seeds there: of a condition, or of how much worse another one is."""
    at = sorted({r["tokens"] for r in rows})
    worth = [(r["tokens"], r[worse] - r[better] if worse else r[better]) for r in rows]
    return at, [np.mean([value for tokens, value in worth if tokens == t]) for t in at]


def plot(rows: list[dict], file: Path):
    """A column for each part. Above, each condition with the first number of neighbours: means of the seeds, which
    are dots; below, the gain of `on`, a line for each number of neighbours."""
    from matplotlib.figure import Figure

    parts = list(dict.fromkeys(r["part"] for r in rows))
    first = rows[0]["k"]
    figure = Figure(figsize=(3.4 * len(parts), 6.4), layout="constrained")
    grid = figure.subplots(2, len(parts), sharey="row", squeeze=False)
    for part, (above, below) in zip(parts, grid.T):
        own = [r for r in rows if r["part"] == part]
        of_first = [r for r in own if r["k"] == first]
        for i, name in enumerate(NAMES):
            above.plot(*means(of_first, name), color=f"C{i}", label=name)
            seen = [(r["tokens"], r[name]) for r in of_first]
            above.plot(*zip(*seen), ".", color=f"C{i}", markersize=5, alpha=0.6)
        for i, k in enumerate(sorted({r["k"] for r in rows})):
            of_k = [r for r in own if r["k"] == k]
            for name, style in (("random", "--"), ("language_model", "-")):
                label = f"{name} - on, k={k}"
                below.plot(*means(of_k, "on", name), f"o{style}", color=f"C{i + 4}", label=label)
        below.axhline(0, color="black", linewidth=0.5)
        at = sorted({r["tokens"] for r in own})
        for axes in (above, below):
            axes.set_xscale("log")
            axes.set_xticks(at, [f"{t / 1e6:.2g} M" for t in at])
            axes.set_xticks([], minor=True)
        above.set_title(part)
        below.set_xlabel("training tokens")
    for axes, label in zip(grid[:, 0], ("bits per byte, held-out", "gain, bits per byte")):
        axes.set_ylabel(label)
    for axes in grid[:, -1]:
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main():
    parser = common.parser(__doc__)
    parser.set_defaults(source="", workdir=Path("runs/curves"))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument(
        "--neighbours", type=int, nargs="+", default=[2], help="k, one after the other"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--plot", type=Path)
    small = common.SMALL["fields"]
    fields = [f for f in small if not f.startswith(("methods", "train.steps"))]
    args = common.parse(parser, steps=[2], fields=fields)
    rows = []
    for seed in args.seeds:
        for steps in sorted(args.steps):  # the first points of all curves come early
            for k in args.neighbours:
                rows += point(args, k, seed, steps)
    if args.plot:
        plot(rows, args.plot)
    return common.show({"bits per byte, held-out": rows}, FORMATS, args.json)


if __name__ == "__main__":
    main()
