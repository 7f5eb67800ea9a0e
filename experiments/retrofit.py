"""RETROfit: retrieval for a language model that you have (`retrofit.py:DIRECTORY` or `retrofit.py:FILE.gguf`).

    retro run --config=experiments/retrofit.py:models/pythia-160m --workdir=runs/fitted \\
        --config.corpus.source='text:corpus/**/*.txt'

DIRECTORY holds the model as Hugging Face's save_pretrained writes it (GPT-2, GPT-NeoX, Llama, Mistral, Qwen2,
Qwen3: config.json, *.safetensors, tokenizer.json), or as `retro export` does; FILE.gguf as llama.cpp has it (Llama,
Qwen2, Qwen3; pip install 'retro_jax[gguf]'). Its weights stay as they are, bit
for bit: without neighbours the result is the model that you had. Trained are an encoder and chunked
cross-attention in every third layer from the 6th (of fewer than 12, from the middle).

By choice:

    --config.model.reading.cca_layers='(4, 8)'  other layers
    --config.model.reading.cca_zero=True        step 0 is the base: cross-attention starts as the identity
    --config.train.freeze=False                 the base is trained too (InstructRetro, arXiv 2310.07713, prefers
                                                it), at a tenth of the learning rate (--config.train.base_rate)

Hyper-parameters are the paper's (section 4.2, table 12): about 6 million sequences of 2,048 tokens, 3 % of its
pre-training, learning rate 2e-4 to 2e-5 (1e-4 from 4 billion parameters on). Expected there: better than the
base soon, in the end nearly a RETRO from scratch. What it took and gave on a small scale: docs/retrofit.md.

Hardware: as training the base, in less memory (no gradients and moments of the base): `retro plan` tells.
Hours: 3 % of the base's pre-training, and its embedding and search of the corpus (docs/pipeline.md).
"""

from pathlib import Path

from retro_jax.config import (
    CorpusConfig,
    EncoderConfig,
    EvaluateConfig,
    Experiment,
    ModelConfig,
    ReadingConfig,
    RetrievalConfig,
    TrainConfig,
    to_config_dict,
)
from retro_jax.model import functional, sizes
from retro_jax.weights import directory
from retro_jax.weights.base import model_like

LENGTH, BATCH = 2048, 256


def get_config(base: str = ""):
    if not base:
        raise ValueError(
            "experiments/retrofit.py: name the base, experiments/retrofit.py:DIRECTORY or :FILE.gguf"
        )
    path = Path(base)
    given, whole = directory.model_of(path)
    decoder = given.decoder
    large = decoder.d >= 1024
    model = model_like(
        given,
        whole,
        ModelConfig(
            decoder=decoder,
            encoder=EncoderConfig(
                d=min(decoder.d, 896),
                heads=decoder.heads if decoder.d < 896 else 16,
                head_size=decoder.head_size if decoder.d < 896 else 64,
            ),
            reading=ReadingConfig(cca_layers=sizes.every_third_from_6(decoder.layers)),
            dtype="bfloat16" if large else "float32",
            remat="full" if large else "none",
        ),
    )
    # No longer than what the base was made for: past that it would only look worse than it is.
    longest = (LENGTH, decoder.max_length or LENGTH, directory.length_of(path) or LENGTH)
    chunk = model.reading.chunk
    length = min(longest) // chunk * chunk
    own = directory.tokenizer_of(path) or path / directory.TOKENIZERS[0]
    parameters = functional.count(functional.shapes(model, 64, retrieval=False))
    return to_config_dict(
        Experiment(
            name=f"{path.stem if path.suffix == '.gguf' else path.name}-retrofit",
            corpus=CorpusConfig(
                source="",  # is yours to name
                tokenizer=str(own),
                bad_documents="skip",
            ),
            retrieval=RetrievalConfig(neighbours=2),
            model=model,
            train=TrainConfig(
                base=base,
                length=length,
                batch=BATCH,
                steps=6_000_000 // BATCH,
                learning_rate=1e-4 if parameters > 4e9 else 2e-4,
                checkpoint_every=500,
            ),
            evaluate=EvaluateConfig(stride=length // 2 // chunk * chunk),
        )
    )
