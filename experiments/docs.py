"""The small experiment on natural language: pages about C and C++, on two CPU cores.

    git clone --depth 1 https://github.com/MicrosoftDocs/cpp-docs
    retro run --config=experiments/docs.py:cpp-docs

The argument is where the clone lies; its pages are read from there, 40 MB of text (CC BY 4.0).

Hardware: 2 cores, no accelerator; about an hour and a quarter, reckoned from the quickstart's speed. It was not run
to its end yet.
"""

from retro_jax.config import experiment_beside


def get_config(clone: str = "cpp-docs"):
    config = experiment_beside(__file__, "small").get_config()
    config.name = "docs"
    config.corpus.source = f"text:{clone}/docs/**/*.md"
    config.corpus.heldout = 0.01
    return config
