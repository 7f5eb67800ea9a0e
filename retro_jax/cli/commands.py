"""The commands, in the order in which a person meets them; each group of them is one file."""

from retro_jax.cli import evaluation, generation, inspection, pipeline, planning, training, weights

COMMANDS = {
    command.name: command
    for group in (training, pipeline, evaluation, generation, inspection, weights, planning)
    for command in group.COMMANDS
}
