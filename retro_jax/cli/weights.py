"""`retro export`."""

from pathlib import Path

from retro_jax.cli.command import Command, Flag
from retro_jax.cli.experiment import open_work, ready
from retro_jax.errors import UserError


def _export(args, fields) -> int:
    import jax

    from retro_jax.methods.method import method_of
    from retro_jax.store import artefact
    from retro_jax.train import sharding
    from retro_jax.train.restore import restore_trained
    from retro_jax.weights.card import Card
    from retro_jax.weights.export import check, export

    if args.to is None:
        raise UserError("retro export: --to is missing, for example --to=models/fitted")
    work, to = ready(open_work(args, fields)), Path(args.to)
    check(to)
    e = work.experiment
    method = method_of(e, args.method or e.methods[0])
    if method.trainer.model != e.model:
        raise UserError(
            f"retro export: the network of {method.name} is one of its own, which no other program reads; only the "
            "weights of retro and of language models can be exported"
        )
    mesh = sharding.make_mesh(e.mesh)
    with jax.set_mesh(mesh):
        params = restore_trained(work, method, mesh)
    evaluations = {path.name: artefact.read(path)["counts"] for path in work.evaluations()}
    about = Card(e, method.network, evaluations, method.notes)
    export(about, params, work.prepared("tokenizer"), to, args.decoder)
    print(to)
    return 0


COMMANDS = (
    Command(
        "export",
        "weights, tokenizer and a model card, for others to read",
        "retro export runs/mine --to=models/fitted",
        "the directory of --to: config.json, *.safetensors, the tokenizer, README.md",
        _export,
        (
            Flag("--to", "a directory that does not exist yet"),
            Flag(
                "--method",
                "the method whose weights they are; by default the first of the experiment",
            ),
            Flag("--decoder", "in Hugging Face's layout, without what retrieval adds", bool),
        ),
    ),
)
