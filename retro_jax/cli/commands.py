"""The commands, in the order in which a person meets them; each group of them is one file."""

from retro_jax.cli import (
    evaluation,
    generation,
    inspection,
    pipeline,
    planning,
    study,
    training,
    weights,
)

COMMANDS = {
    command.name: command
    for group in (training, pipeline, evaluation, study, generation, inspection, weights, planning)
    for command in group.COMMANDS
}
