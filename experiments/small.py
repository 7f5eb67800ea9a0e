"""The quickstart's RETRO and language model, trained long enough to say something, on two CPU cores.

    retro run --config=experiments/small.py

SMALLHEAD
"""

from retro_jax.config import experiment_beside


def get_config():
    config = experiment_beside(__file__, "quickstart").get_config()
    config.name = "small"
    config.train.steps = 5760
    config.method_settings.retro.own_continuation_steps = 300
    config.evaluate.conditions, config.evaluate.generated = (), 32
    return config
