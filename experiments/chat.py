"""A conversation about your documents, with a language model that you have: nothing is trained (`chat.py:MODEL`).

    retro prepare --config=experiments/chat.py:MODEL --workdir=runs/chat --config.corpus.source='text:documents/*.txt'
    retro train runs/chat
    retro generate runs/chat --chat --prompt='...'

MODEL is a directory as Hugging Face's save_pretrained writes it, or a GGUF file, as in experiments/retrofit.py.
Documents are found by their words (BM25); to know what they are worth to the model, hold some out
(`--config.corpus.heldout=0.1`). Sequences have 512 tokens, and two are scored at a time, so that a machine
without an accelerator can say what the documents are worth to the model. docs/chat.md goes on.
"""

from retro_jax.config import experiment_beside


def get_config(model: str = ""):
    if not model:
        raise ValueError(
            "experiments/chat.py: name the model, experiments/chat.py:DIRECTORY or :FILE.gguf"
        )
    config = experiment_beside(__file__, "retrofit").get_config(model)
    config.name, config.methods = "chat", ("language_model",)
    config.retrieval.embedder, config.retrieval.index = "words", "bm25"
    config.corpus.heldout = 0.0  # nothing is trained, and all is to be found
    config.train.steps, config.train.batch = 0, 2
    config.train.length = min(512, config.train.length)
    config.evaluate.stride, config.evaluate.batch = config.train.length // 2, 2
    config.evaluate.conditions, config.evaluate.generated = ("random",), 0
    return config
