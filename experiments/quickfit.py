"""RETROfit of the quickstart's own baseline, end to end on two CPU cores.

    retro prepare --config=experiments/quickfit.py:base --workdir=runs/base
    retro train   runs/base
    retro export  runs/base --to=runs/base-model
    retro run     --config=experiments/quickfit.py:fit,runs/base-model --workdir=runs/fit
    retro run     --config=experiments/quickfit.py:scratch --workdir=runs/scratch

The base is the quickstart's decoder after 1,440 steps. The fit trains an encoder and cross-attention in layers 2
and 4 for a third of that, 480 steps; `scratch` trains the same RETRO as a whole until it has cost as many FLOPs as
base and fit together. `--config.train.freeze=False` trains the base too.

Hardware: 2 cores, no accelerator, 1.2 GiB of memory; 3, 5 and 8 minutes. Expected: near the table of
docs/retrofit.md, which was measured at commit 6839aae; since then own continuations take the place of every
neighbour, not of one of two.
"""

from retro_jax.config import experiment_beside

BASE, FIT = 1440, 480  # steps
SCRATCH = 1100  # steps of 21.9 GFLOP; a step of the base has 10.9, one of the fit 17.7


def get_config(what: str = "base"):
    kind, _, base = what.partition(",")
    if kind not in ("base", "fit", "scratch") or (kind == "fit") != bool(base):
        raise ValueError("experiments/quickfit.py: choose base, scratch or fit,DIRECTORY")
    config = experiment_beside(__file__, "quickstart").get_config()
    config.train.steps = {"base": BASE, "fit": FIT, "scratch": SCRATCH}[kind]
    config.methods = ("language_model",) if kind == "base" else ("retro",)
    config.model.reading.cca_layers = (2, 4)
    config.model.reading.null_key = False  # as the table was measured
    config.method_settings.retro.own_continuation_steps = 462 if kind == "scratch" else 202
    config.evaluate.conditions, config.evaluate.generated = (), 32
    config.name = f"quickfit-{kind}"
    if kind == "fit":
        given = experiment_beside(__file__, "retrofit").get_config(base)
        config.train.base, config.methods = base, ("retro", "language_model")
        config.corpus.tokenizer = given.corpus.tokenizer
    return config
