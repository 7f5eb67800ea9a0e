"""How many parameters is a database worth? RETRO and its language model at five sizes, on two CPU cores.

    git clone --depth 1 https://github.com/MicrosoftDocs/cpp-docs
    git clone --depth 1 https://github.com/MicrosoftDocs/VBA-Docs
    git clone --depth 1 https://github.com/python/peps
    retro study experiments/scaling.py:. --jobs=2

The argument is the folder where the clones lie (84 MB of text, CC BY 4.0; of the PEPs, public domain, 0.4 MB are read).

Decoders of 0.04, 0.1, 0.21, 0.56 and 1.27 M parameters without embeddings, 20 tokens for each of these. Documents are
split into two halves, A and B, by a hash of their names. All models are trained on A, and RETRO's neighbours are from
A. They are scored on pages of A that are held out, with a database of A and with one of B (`unseen`), documents that
no model was trained on (some nearly repeat trained ones); and on PEPs, another kind of text.

All were run, the three smallest with three seeds each, the two largest with one, between commits 62b2309 and b9f0a62:
docs/study.md, "How many parameters is a database worth?". Their rows are in scaling.parquet beside this file;
`--collect` makes its page. On one core of an EPYC width 28 takes one minute for the language model and two for RETRO,
44 two and three, 64 six and nine, 104 half an hour and one and a half, 156 three hours and five. Learning rates were
chosen by the loss on held-out pages.

The paper's own study, its four RETROs and their language models on C4, is `experiments/scaling.py:paper`:

    retro study experiments/scaling.py:paper --list        (what each costs, and PREPARED, where its text is to lie)
    retro beam  --config=experiments/retro.py:172m --workdir=gs://BUCKET/scaling/prepared/PREPARED -- ...
    retro train --config=experiments/retro.py:172m --workdir=/mnt/BUCKET/scaling/runs/retro-172m \\
        --prepared=/mnt/BUCKET/scaling/prepared/PREPARED --distributed       (each run so, on every host of its slice)
    retro study experiments/scaling.py:paper --workdir=/mnt/BUCKET/scaling   (scores what is trained; the page)

Training FLOPs, and hours from best to worst, as `retro plan --config=experiments/retro.py:172m --topology=h100:16
--mesh=1x16x1` counts them (of a language model: experiments/baseline.py:132m). None has been run.

| run | FLOPs | hours of 16 H100 | of the TPU slice in experiments/retro.py |
|---|---|---|---|
| baseline-132m | 7.3e20 | 136 to 329 | 277 to 639 (v5e 4x4) |
| retro-172m | 1.0e21 | 197 to 455 | 347 to 840 (v5e 4x4) |
| baseline-368m | 1.6e21 | 251 to 535 | 132 to 430 (v5e 8x8) |
| retro-425m | 1.9e21 | 313 to 666 | 164 to 539 (v5e 8x8) |
| baseline-1.3b | 4.4e21 | 459 to 1,080 | 120 to 367 (v5p 4x4x4) |
| retro-1.5b | 5.1e21 | 532 to 1,253 | 140 to 427 (v5p 4x4x4) |
| baseline-7b | 2.0e22 | 428 to 1,830 | 119 to 456 (v5p 4x4x8) |
| retro-7.5b | 2.2e22 | 476 to 2,061 | 129 to 515 (v5p 4x4x8) |
"""

from pathlib import Path

from retro_jax.config import Study, experiment_beside

PAGES = "0.2*share:{half}:text:{folder}/cpp-docs/docs/**/*.md + 0.8*share:{half}:text:{folder}/VBA-Docs/**/*.md"
# Width of the decoder, and heads; four layers. What these have of parameters without embeddings: 52 d^2.
SIZES = {28: 2, 44: 2, 64: 2, 104: 4, 156: 6}
SEEDS = {28: 3, 44: 3, 64: 3, 104: 1, 156: 1}
TOKENS = 20  # for each parameter of the decoder without embeddings
BATCH, LENGTH = 4, 256
# Tried at the two smallest sizes: learning rates of the language model, and of it the share at which what reads learns.
# Parabolas through the language models' losses have their least at 0.022 for width 28 and 0.013 for 44, and so it falls
# as 1 / d. RETRO does not begin to read where encoder and cross-attention learn as fast as that.
TRIED = {"language_model": (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2), "retro": (0.2, 1.0)}
RATE = 0.6  # times 1 / d
READING = 0.43


def get_study(folder: str = "."):
    return paper() if folder == "paper" else small(folder)


def small(folder: str) -> Study:
    runs, curves = {}, {"language_model": [], "retro": []}
    for d in sorted(SIZES):
        for method, curve in curves.items():
            own = {f"{method}-{d}-seed{s}": run(method, d, s) for s in range(SEEDS[d])}
            curve += own
            if d in sorted(SIZES)[:2]:
                own |= {f"{method}-{d}-rate{x}": run(method, d, 0, x) for x in TRIED[method]}
            runs |= own
    base = get_config(folder)
    unseen = PAGES.format(folder=folder, half="0.5-1")
    kept = Path(__file__).with_name("scaling.parquet")  # of all runs so far
    rows = str(kept) if kept.exists() else ""
    return Study("scaling", base, runs, {"unseen": unseen}, curves, rows, folder)


def run(method: str, d: int, seed: int, rate: float = 0.0) -> dict:
    """The fields of a run; rate: the language model's learning rate, or RETRO's `reading_rate`, if it is another."""
    size = {"d": d, "heads": SIZES[d], "head_size": d // SIZES[d]}
    steps = TOKENS * 52 * d**2 // (BATCH * LENGTH)
    taught = {
        "read_from": steps // 4,
        "own_continuation_steps": min(300, steps // 4),
        "reading_rate": rate or READING,
    }
    return {
        **{f"method_settings.retro.{n}": v for n, v in taught.items() if method == "retro"},
        "methods": (method,),
        "train.seed": seed,
        "train.steps": steps,
        "train.learning_rate": (method == "language_model" and rate) or round(RATE / d, 5),
        **{
            f"model.{part}.{name}": n for part in ("decoder", "encoder") for name, n in size.items()
        },
    }


def get_config(folder: str = "."):
    config = experiment_beside(__file__, "quickstart").get_config()
    config.name = "scaling"
    config.corpus.source = PAGES.format(folder=folder, half="0-0.5")
    config.corpus.heldout, config.corpus.vocab = 0.01, 2048
    config.corpus.heldout_sources = (f"peps=share:0-0.03:text:{folder}/peps/peps/*.rst",)
    config.train.batch, config.train.length = BATCH, LENGTH
    config.evaluate.conditions = ("random", "database_1", "database_10")
    config.generate.contributions = False
    config.mesh.cpu_devices = 1
    return config


def paper() -> Study:
    """The paper's four RETROs and their language models, on C4."""
    beside = {m: experiment_beside(__file__, m) for m in ("retro", "baseline")}
    base, runs, curves = beside["retro"].get_config("172m"), {}, {"retro": [], "language_model": []}
    for method, m in zip(curves, beside.values()):
        for size in m.SIZES:
            config = m.get_config(size)
            runs[config.name] = dict(_differences(base.to_dict(), config.to_dict()))
            curves[method].append(config.name)
    base.evaluate.conditions = ("random", "database_1", "database_10")
    return Study("scaling-paper", base, runs, curves=curves)


def _differences(a: dict, b: dict, at: str = ""):
    """The fields, and what they are in b, in which a config b is other than a."""
    for name, value in b.items():
        if isinstance(value, dict):
            yield from _differences(a[name], value, f"{at}{name}.")
        elif value != a[name] and at + name != "name":
            yield at + name, value
