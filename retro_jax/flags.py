"""The command line: --config, --workdir, and what a stage takes beside them."""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from retro_jax.config import from_config_dict
from retro_jax.errors import UserError

FLAGS = {
    "prepare": {"estimate": str, "rebuild": bool},
    "train": {"distributed": bool},
    "evaluate": {
        "text": str, "name": str, "databases": str, "task": str, "limit": int, "k": int, "align": bool,
    },
    "generate": {"prompts": str, "interactive": bool, "rows": int},
    "plan": {"topology": str, "mesh": str, "baseline": bool, "json": bool},
    "serve": {"host": str, "port": int, "rows": int, "length": int},
    "export": {"to": str, "decoder": bool, "baseline": bool},
    "database": {"database": str, "add": str, "delete": str},
}  # fmt: skip


def parse(stage: str, argv: list[str]):
    """--config, --workdir and the stage's own flags -> (Experiment, Path, flags)."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Experiment file.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of the artefacts.", flag_values=values)
    define = {bool: flags.DEFINE_bool, str: flags.DEFINE_string, int: flags.DEFINE_integer}
    owners = {}
    for own, names in FLAGS.items():
        for name, kind in names.items():
            if name not in owners:
                unset = False if kind is bool else None
                define[kind](name, unset, f"Of {own}.", flag_values=values)
            owners.setdefault(name, []).append(own)
    for path in (a.removeprefix("--config=") for a in argv if a.startswith("--config=")):
        if not Path(path.partition(":")[0]).is_file():
            raise UserError(f"--config={path}: no such file")
    sys.argv = ["retro", *argv]  # where ml_collections looks for --config.FIELD=VALUE
    try:
        left = values(sys.argv)[1:]
        # A file that cannot be loaded shows only when the config is read.
        config = values.config and values.config.to_dict()
    except UserError:
        raise
    except Exception as error:  # whatever an experiment file can raise
        # str() of a KeyError, which an unknown field is, would quote its text.
        text = error
        while isinstance(text, Exception):
            text = text.args[0] if len(text.args) == 1 else str(text)
        words = str(text).strip()
        if "Traceback (most recent call last)" in words:  # ends with what was raised
            last = words.splitlines()[-1]
            words = last.partition("Error: ")[2] or last
        raise UserError(
            f"config: {' '.join(words.split())} (`retro --help` shows how fields are set)"
        ) from error
    if config is None:
        raise UserError("--config is missing, for example --config=experiments/quickstart.py")
    if left:
        raise UserError(f"not understood: {' '.join(left)} (retro --help)")
    for name, own in owners.items():
        if values[name].present and stage not in own:
            raise UserError(f"--{name} is for retro {' and '.join(own)}, not retro {stage}")
    if stage == "plan" and values.topology is None:
        raise UserError("retro plan: --topology is missing, for example --topology=v5e:4x4")
    experiment = from_config_dict(config)
    return experiment, Path(values.workdir or Path("runs") / experiment.name), values
