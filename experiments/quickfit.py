"""RETROfit of the quickstart's own baseline, end to end on two CPU cores (docs/retrofit.md).

    retro train  --config=experiments/quickstart.py --workdir=runs/base --config.train.models="('baseline',)"
    retro export --config=experiments/quickstart.py --workdir=runs/base --config.train.models="('baseline',)" \\
        --to=runs/base-model
    retro run    --config=experiments/quickfit.py:runs/base-model --workdir=runs/quickfit
"""
