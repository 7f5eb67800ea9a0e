"""RETRO and what else one could do, on one database and one language model, on two CPU cores.

    retro prepare --config=experiments/compare.py
    retro compare runs/compare

The quickstart's corpus and decoder, 0.74 M tokens of training, in sequences of 768 tokens: a prompt of two
neighbours of 128 tokens leaves room for eight chunks of text. Every method that trains nothing uses the language
model that is trained at that length.

Hardware: 2 cores, no accelerator. Expected: the tables of docs/compare.md; of RETRO and the readers the second
one, since own continuations now take the place of every neighbour, not of one of two.
"""

from retro_jax.config import experiment_beside


def get_config():
    config = experiment_beside(__file__, "quickstart").get_config()
    config.name = "compare"
    # As the table was measured, but for own continuations.
    config.model.reading.cca_layers, config.model.reading.null_key = (2,), False
    config.method_settings.retro.own_continuation_steps = 202
    taught = dict(config.method_settings.retro)  # to read: what it gets, the other readers get
    config.method_settings.update(atlas=dict(taught), cepe=dict(taught))
    config.train.length, config.train.batch, config.train.steps = 768, 2, 480
    config.evaluate.stride, config.evaluate.batch = 576, 4
    config.evaluate.conditions, config.evaluate.generated = (), 32
    return config
