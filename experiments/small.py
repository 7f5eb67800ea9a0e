"""The quickstart's RETRO and language model, trained long enough to say something, on two CPU cores.

    retro run --config=experiments/small.py

Hardware: 2 cores, no accelerator; about an hour (each model on one core: RETRO 52 minutes, the language model 25, the
evaluation 5). Expected, seed 1: held-out bits per byte on 1.15, off 1.17, random 1.17, language_model 1.16; seeds and
what they say: docs/quickstart.md, "Trained longer".

Fourteen times the quickstart's tokens, 3.4 for each parameter, and every condition of the evaluation. Neighbours that
are a chunk's own continuation, which teach the model to read, are a twentieth of the run and not half of it; 2 %
are kept until the rate falls, so that the model does not forget it. The rate is constant before: a run can be given
more steps.
"""

from retro_jax.config import experiment_beside


def get_config():
    config = experiment_beside(__file__, "quickstart").get_config()
    config.name = "small"
    config.train.steps = 5760
    config.train.schedule, config.train.decay = "constant", 0.2
    config.method_settings.retro.update(
        own_continuation_steps=300, own_continuation_kept=0.02, own_continuation_kept_steps=4608
    )
    config.evaluate.conditions, config.evaluate.generated = (), 32
    return config
