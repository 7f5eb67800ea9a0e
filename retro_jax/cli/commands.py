"""The commands, in the order in which a person meets them; each group of them is one file."""

from retro_jax.cli import data, evaluation, generation, pipeline, planning, training, weights

COMMANDS = {
    command.name: command
    for group in (training, pipeline, evaluation, generation, data, weights, planning)
    for command in group.COMMANDS
}
