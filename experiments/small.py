"""A smaller RETRO than the quickstart's, trained long enough to say something, on two CPU cores.

    retro run --config=experiments/small.py

Hardware: 2 cores, no accelerator; about 45 minutes (each model on one core, beside other work: RETRO 27 minutes, the
language model 11; the evaluation 5). Expected, means of three seeds: held-out bits per byte on 1.276, off 1.299, random
1.303, language_model 1.293; what they say: docs/quickstart.md, "Trained longer".

A network of half the quickstart's width, so that ten tokens for each parameter can be had on two cores. For its first
eighth RETRO is trained as a language model and reads nothing; then neighbours that are a chunk's own continuation teach
it to read (retro_jax/methods/retro.py), for 300 steps. 2 % of such neighbours are kept for most of the run, so that it
does not forget to. The rate is constant before it falls: a run can be given more steps. Every condition is scored.
"""

from retro_jax.config import experiment_beside


def get_config():
    config = experiment_beside(__file__, "quickstart").get_config()
    config.name = "small"
    for part in (config.model.decoder, config.model.encoder):
        part.d, part.heads = 64, 2
    config.train.steps = 5760
    config.train.schedule, config.train.decay = "constant", 0.2
    config.method_settings.retro.update(
        read_from=720,
        own_continuation_steps=300,
        own_continuation_kept=0.02,
        own_continuation_kept_steps=4608,
    )
    config.evaluate.conditions, config.evaluate.generated = (), 32
    return config
