"""The quickstart's RETRO and language model, trained long enough to say something, on two CPU cores.

    retro run --config=experiments/small.py

Hardware: 2 cores, no accelerator; about an hour, reckoned from the quickstart's speed. It was not run to its end yet.

Eight times the quickstart's tokens, 3.4 for each parameter, and every condition of the evaluation. Neighbours that
are a chunk's own continuation, which teach the model to read, are a twentieth of the run and not two fifths of it.
"""

from retro_jax.config import experiment_beside


def get_config():
    config = experiment_beside(__file__, "quickstart").get_config()
    config.name = "small"
    config.train.steps = 5760
    config.evaluate.conditions, config.evaluate.generated = (), 32
    return config
