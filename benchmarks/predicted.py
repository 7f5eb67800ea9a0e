"""What `retro plan` counts for a train step, beside how long the step takes: six shapes on the processor that is here.

    taskset -c 0 python benchmarks/predicted.py

Peaks are measured in the same run: a product of large matrices, and a copy of an array that no cache holds. *At best*
products and memory hide one another; *at worst* they follow one another. Rounds go by turns over the shapes, peaks
among them. docs/speed.md has the figures.
"""

import dataclasses
import statistics
import time

import chip
import common
import numpy as np

VOCAB = 4096
# Width, layers, tokens of a sequence, sequences, what is computed again.
SHAPES = (
    (128, 4, 512, 4, "none"),
    (256, 4, 512, 4, "none"),
    (256, 4, 512, 4, "full"),
    (256, 4, 2048, 1, "none"),
    (256, 12, 512, 2, "none"),
    (512, 4, 512, 2, "none"),
)
SMALLEST = ((32, 1, 256, 1, "none"),)  # with --smoke


def experiment(d: int, layers: int, length: int, sequences: int, remat: str):
    """The quickstart's experiment with another network, in float32."""
    from retro_jax.config import experiment_beside, from_config_dict

    e = from_config_dict(experiment_beside(common.QUICKSTART, "quickstart").get_config())
    heads = {"d": d, "heads": d // 64 or 1, "head_size": min(d, 64)}
    model = dataclasses.replace(
        e.model,
        decoder=dataclasses.replace(e.model.decoder, layers=layers, **heads),
        encoder=dataclasses.replace(e.model.encoder, **heads),
        reading=dataclasses.replace(e.model.reading, cca_layers=(layers,)),
        remat=remat,
    )
    train = dataclasses.replace(e.train, length=length, batch=sequences, accumulate=1)
    return dataclasses.replace(e, model=model, train=train)


def step_of(e):
    """The work of a step of RETRO as `retro plan` counts it, and a function that takes one."""
    import jax

    from retro_jax.methods.method import method_of
    from retro_jax.plan import count
    from retro_jax.train import sharding
    from retro_jax.train.step import init_state, make_train_step

    method, mesh = method_of(e, "retro"), sharding.one_device()
    with jax.set_mesh(mesh):
        state = [init_state(method, e.train, VOCAB)]
        given = jax.device_put(chip.batch_of(e, VOCAB))
        make = make_train_step(method, e.train)

    def take():
        with jax.set_mesh(mesh):
            state[0], metrics = make(state[0], given)
            if not np.isfinite(float(metrics["loss"])):
                raise FloatingPointError("the loss is not finite")

    return count.needs(e, VOCAB, mesh.abstract_mesh, method)["work"], take


def main():
    """Prints the table."""
    made = common.parser(__doc__, corpus=False)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--product", type=int, default=2048, help="rows of the large matrices")
    args = common.parse(made, product=128)
    shapes = SMALLEST if args.smoke else SHAPES

    from retro_jax.plan import roofline
    from retro_jax.train.hardware import Chip

    steps = [step_of(experiment(*shape)) for shape in shapes]
    peaks, each = [], [[] for _ in steps]
    for i in range(1 + args.rounds):  # the first compiles
        *_, product, copy = chip.peaks(args)
        peaks.append((product["TFLOP/s"] * 1e12, copy["GB/s"] * 1e9))
        for took, (_, take) in zip(each, steps, strict=True):
            begin = time.perf_counter()
            take()
            took += [time.perf_counter() - begin] if i else []
    flops, bandwidth = (statistics.median(p) for p in zip(*peaks, strict=True))
    here = Chip("here", flops, 0, bandwidth, 1.0, 1.0)
    rows = []
    for shape, took, (work, _) in zip(shapes, each, steps, strict=True):
        t, measured = roofline.times(work, here, {}), statistics.median(took)
        worst = t.products + t.memory
        rows.append(
            dict(zip(("width", "layers", "tokens", "sequences", "remat"), shape, strict=True))
            | {
                "measured, ms": 1e3 * measured, "products, ms": 1e3 * t.products, "memory, ms": 1e3 * t.memory,
                "bound": t.bound, "measured / at best": measured / t.best, "measured / at worst": measured / worst,
            }
        )  # fmt: skip
    title = f"products {flops / 1e9:.0f} GFLOP/s in float32, memory {bandwidth / 1e9:.1f} GB/s"
    number = ("measured, ms", "products, ms", "memory, ms")
    formats = dict.fromkeys(number, ".0f")
    formats |= dict.fromkeys(("measured / at best", "measured / at worst"), ".2f")
    common.show({title: rows}, formats, args.json)


if __name__ == "__main__":
    main()
