"""The quickstart's RETRO and language model, trained long enough to say something, on two CPU cores.

    retro run --config=experiments/small.py

Hardware: 2 cores, no accelerator; about an hour (measured beside other work: RETRO 60 minutes of one core, the
language model 25, the evaluation 5). Expected, one seed: held-out bits per byte on 1.15, off 1.16, random 1.16, self
0.85, language_model 1.20; what that says and what it does not: docs/quickstart.md, "Trained longer".

Ten times the quickstart's tokens, 3.4 for each parameter, and every condition of the evaluation. Neighbours that
are a chunk's own continuation, which teach the model to read, are a twentieth of the run and not two fifths of it.
"""

from retro_jax.config import experiment_beside


def get_config():
    config = experiment_beside(__file__, "quickstart").get_config()
    config.name = "small"
    config.train.steps = 5760
    config.train.schedule, config.train.decay = "constant", 0.2
    config.method_settings.retro.own_continuation_steps = 300
    config.evaluate.conditions, config.evaluate.generated = (), 32
    return config
