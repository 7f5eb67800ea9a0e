"""The paper's four RETROs, from scratch: `retro.py:172m`, `:425m`, `:1.5b`, `:7.5b`.

    retro beam  --config=experiments/retro.py:172m --workdir=gs://BUCKET/172m -- ...   (docs/pipeline.md)
    retro train --config=experiments/retro.py:172m --workdir=/mnt/BUCKET/172m --distributed      (on every host)
    experiments/tpu/launch.sh --name=retro172m --tpu=v5litepod-16 --zone=us-west4-a --bucket=BUCKET -- \\
        --config=experiments/retro.py:172m --workdir=/mnt/BUCKET/172m                            (the same, on a pod)

Hyper-parameters are the paper's (tables 2, 10 and 12, appendix C.1): 419 billion tokens, sequences of 2,048,
k = 2, AdamW, weight decay 0.1, 750 steps of warm-up, cosine to a tenth. Its text and retriever are not
public. Instead: C4 as TensorFlow Datasets prepares it, and a BERT-base in the folder `bert`.

Hours are what `retro plan` counts, from best to worst; expected is the paper's, on C4, with its database of
1.75 trillion tokens (table 14). With 10 billion tokens or fewer, its figure 4 has a gain of 0.01 to 0.02.

| | TPU | chips | hours | bits per byte on C4: baseline, off, on |
|---|---|---|---|---|
| 172m | v5e 4x4 | 16 | 347 to 840 | 0.98, 0.98, 0.82 |
| 425m | v5e 8x8 | 64 | 164 to 539 | 0.92, 0.92, 0.77 |
| 1.5b | v5p 4x4x4 | 64 | 140 to 427 | 0.84, 0.84, 0.71 |
| 7.5b | v5p 4x4x8 | 128 | 129 to 515 | 0.78, 0.78, 0.66 |

None of them has been run.
"""

import dataclasses

from retro_jax.config import (
    CorpusConfig,
    Experiment,
    MeshConfig,
    RetrievalConfig,
    TrainConfig,
    to_config_dict,
)
from retro_jax.model import sizes

# Size of the RETRO: learning rate, sequences a batch, steps.
SIZES = {
    "172m": (2e-4, 256, 800_000),
    "425m": (2e-4, 256, 800_000),
    "1.5b": (2e-4, 256, 800_000),
    "7.5b": (1e-4, 1024, 200_000),
}
PARTS = 4  # that a batch is computed in, for the chips below


def get_config(size: str = "172m"):
    if size not in SIZES:
        raise ValueError(f"experiments/retro.py:{size}: choose one of {', '.join(SIZES)}")
    rate, batch, steps = SIZES[size]
    paper = sizes.PAPER[list(SIZES).index(size)][2]
    model = dataclasses.replace(paper, dtype="bfloat16", remat="full")
    return to_config_dict(
        Experiment(
            name=f"retro-{size}",
            corpus=CorpusConfig(
                source="tfds:c4/en:train#text",
                heldout=0.0001,
                vocab=sizes.VOCAB,
                bad_documents="skip",
            ),
            retrieval=RetrievalConfig(embedder="bert", settings={"bert": {"directory": "bert"}}),
            model=model,
            train=TrainConfig(
                learning_rate=rate,
                batch=batch,
                accumulate=PARTS,
                steps=steps,
                checkpoint_every=1000,
                log_every=100,
            ),
            mesh=MeshConfig(),
        )
    )
