"""RETRO and what else one could do, on one database and one language model, on two CPU cores.

    retro prepare --config=experiments/compare.py
    retro compare runs/compare

The network of experiments/small.py on Python's library, with as many tokens of training (ten for each parameter), in
sequences of 768: a prompt of two neighbours of 128 tokens leaves room for eight chunks of text. Every method that
trains nothing uses the language model that is trained at that length.

Hardware: 2 cores, no accelerator.
"""

from retro_jax.config import experiment_beside


def get_config():
    config = experiment_beside(__file__, "small").get_config()
    config.name = "compare"
    config.train.length, config.train.batch, config.train.steps = 768, 2, 3840
    config.method_settings.retro.update(
        read_from=480, own_continuation_steps=200, own_continuation_kept_steps=3072
    )
    taught = dict(config.method_settings.retro)  # to read: what it gets, the other readers get
    # CEPE's base is the trained language model, which is frozen: it reads from the first step.
    config.method_settings.update(atlas=dict(taught), cepe=taught | {"read_from": 0})
    config.evaluate.stride, config.evaluate.batch = 576, 4
    return config
