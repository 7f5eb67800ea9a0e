"""RETRO on Python's own standard library, end to end, on two CPU cores.

    retro run --config=experiments/quickstart.py

Hardware: 2 cores, no accelerator, 1.5 GiB of memory; 5.4 minutes.
Expected: held-out bits per byte on 1.90, off 1.93, random 1.94, language_model 1.92 (docs/quickstart.md). Only these
are scored; `--conditions=all` scores all there are. experiments/small.py trains longer. The retriever is
a sketch of BM25 that ScaNN searches, and exact BM25 for the order of what it finds (docs/pipeline.md).

The model is the paper's, made small: one encoder layer instead of two, chunked cross-attention in
layer 3 of 4, and one embedding for decoder and encoder, so that a token looks the same on both sides.
Not the paper's: every cross-attention has a null key, so that it may read nothing; and for the first 215 steps
neighbours are the chunk's own continuation, at first all and then fewer, which teaches the model to read
(retro_jax/methods/retro.py). The rest of the run, and all of the evaluation, is on real neighbours only.
"""

from retro_jax.config import (
    CorpusConfig,
    DecoderConfig,
    EncoderConfig,
    EvaluateConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    ReadingConfig,
    RetrievalConfig,
    TrainConfig,
    to_config_dict,
)
from retro_jax.config.request import Request

PROMPT = '''\
class Reader:
    """Read records from a file, one at a time."""

    def __init__(self, filename, mode='r', encoding=None):
        self.filename = filename
        self.mode = mode
        self._file = open(filename, mode, encoding=encoding)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, traceback):
'''


def get_config():
    return to_config_dict(
        Experiment(
            name="quickstart",
            methods=("retro", "language_model"),
            method_settings={"retro": {"own_continuation": 1.0, "own_continuation_steps": 215}},
            corpus=CorpusConfig(source="python:", bad_documents="skip", heldout=0.05, vocab=4096),
            retrieval=RetrievalConfig(embedder="lexical", index="scann", neighbours=2),
            model=ModelConfig(
                decoder=DecoderConfig(d=128, layers=4, heads=4, head_size=32),
                encoder=EncoderConfig(d=128, layers=1, heads=4, head_size=32, share_embedding=True),
                reading=ReadingConfig(cca_layers=(3,), null_key=True),
            ),
            train=TrainConfig(
                length=256,
                batch=4,
                steps=420,
                learning_rate=3e-3,
                warmup=100,
                b2=0.98,
            ),
            evaluate=EvaluateConfig(stride=192, batch=8, conditions=("random",), generated=0),
            generate=Request(
                prompt=PROMPT,
                temperature=0.7,
                top_p=0.9,
                repetition_penalty=1.1,
                contributions=True,
            ),
            mesh=MeshConfig(cpu_devices=2),
        )
    )
