"""What the TPU's compiler says of attention: by the kernels, and by the reference.

    pip install -e '.[tpu]'
    python benchmarks/compiled.py --sizes 172m 1.5b --topology=v5e:2x2

One layer of two sequences of 2,048 tokens on one chip, in bfloat16 with relative positions, forward and with its
gradient: of the decoder to itself, of its chunks to two neighbours, and of the encoder to itself and to the chunk. No
chip is needed, and nothing is timed but the compiler. Bytes that a kernel reads and writes are counted as `retro plan`
counts them (each operand once, as it lies in memory), those of the reference by the compiler. docs/speed.md has whole
train steps, which `retro plan` compiles.
"""

import itertools
import time

import common

ROWS = ("replica", "data")


# Queries, keys and memories of a group, and groups of a chunk.
KINDS = {
    "itself": None,
    "two neighbours": (64, 128, 2, 1),
    "encoder, itself": (128, 128, 1, 2),
    "encoder, chunk": (128, 64, 1, 2),
}


def layer(kernel: bool, kind: str, sequences: int, length: int, heads: int, size: int, mesh):
    """A layer's attention, summed, and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp

    from retro_jax.model.attend import attend, attend_causal, self_distances
    from retro_jax.model.flash import flash, flash_distances
    from retro_jax.model.flash_chunks import flash_read

    block = 256
    if KINDS[kind] is None:
        queries, keys, memories, groups = length, length, 1, 1
        distances = len(flash_distances(length) if kernel else self_distances(length, block))
    else:
        queries, keys, memories, groups = KINDS[kind]
        groups, distances = groups * length // 64, queries + keys

    def shaped(*shape, spec=(ROWS,), dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec)))

    arguments = (
        shaped(sequences, groups, queries, heads, 1, size),
        *[shaped(sequences, groups, memories, keys, heads, size) for _ in "kv"],
        shaped(sequences, groups, memories, keys, dtype=bool),
        shaped(distances, heads, 1, size, spec=()),
        *[shaped(heads, 1, size, spec=()) for _ in "uw"],
    )

    def total(q, k, v, mask, *relative):
        if KINDS[kind] is not None:
            y, _ = attend(q, k, v, mask, relative, read=flash_read if kernel else None)
        elif kernel:
            y = flash(q, k, v, mask, relative)
        else:
            y = attend_causal(q, k, v, mask, relative, block)
        return y.astype(jnp.float32).sum()

    return total, arguments


def main():
    """Prints the table."""
    made = common.parser(__doc__, corpus=False)
    made.add_argument(
        "--sizes", nargs="+", default=["172m", "1.5b"], help="of experiments/retro.py"
    )
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    made.add_argument("--topology", default="v5e:2x2")
    made.add_argument("--sequences", type=int, default=2)
    made.add_argument("--length", type=int, default=2048)
    args = common.parse(made, sizes=["172m"], kinds=["two neighbours"], sequences=1, length=64)

    import jax

    from retro_jax.config import MeshConfig, experiment_beside, from_config_dict
    from retro_jax.plan import topology

    jax.config.update("jax_platforms", "cpu")
    chips = topology.device_mesh(topology.parse(args.topology), MeshConfig(1, 1, -1))
    if chips is None:
        raise SystemExit("needs libtpu: pip install 'retro_jax[tpu]'")
    mesh = jax.sharding.Mesh(chips.devices[:, :, :1], chips.axis_names, axis_types=chips.axis_types)
    rows = []
    for size in args.sizes:
        d = from_config_dict(
            experiment_beside(common.QUICKSTART, "retro").get_config(size)
        ).model.decoder
        for kind, name in itertools.product(args.kinds, ("reference", "flash")):
            shape = args.sequences, args.length, d.heads, d.head_size
            total, arguments = layer(name == "flash", kind, *shape, mesh)
            wanted = (0, 1, 2, 4, 5, 6)
            for what, of in (
                ("forward", total),
                ("and gradient", jax.value_and_grad(total, wanted)),
            ):
                with jax.set_mesh(mesh):
                    begin = time.perf_counter()
                    compiled = (
                        jax.jit(of).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
                    )
                memory = compiled.memory_analysis().temp_size_in_bytes
                rows.append(
                    {
                        "size": size, "heads": f"{d.heads} x {d.head_size}", "reads": kind,
                        "attention": name, "what": what,
                        "temporaries, MiB": memory / 2**20,
                        "GB read and written": compiled.cost_analysis()["bytes accessed"] / 1e9,
                        "compiled in s": time.perf_counter() - begin,
                    }
                )  # fmt: skip
    formats = {"temporaries, MiB": ",.0f", "GB read and written": ".2f", "compiled in s": ".0f"}
    title = f"one layer on one chip of {args.topology}, {args.sequences} x {args.length} tokens"
    common.show({title: rows}, formats, args.json)


if __name__ == "__main__":
    main()
