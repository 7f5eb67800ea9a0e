"""The small experiment on natural language: pages about C and C++, on two CPU cores.

    git clone --depth 1 https://github.com/MicrosoftDocs/cpp-docs
    retro run --config=experiments/docs.py:cpp-docs

The argument is where the clone lies; its pages are read from there, 40 MB of text (CC BY 4.0;
commit a2e592a was measured).

Hardware: 2 cores, no accelerator; about 50 minutes (each model on one core, beside other work: RETRO 27 minutes, the
language model 11; prepare took 5, the evaluation 5). Expected, means of three seeds: held-out bits per byte on 0.983,
off 1.193, random 1.204, language_model 1.150 (docs/quickstart.md, "Trained longer").
"""

from retro_jax.config import experiment_beside

PROMPT = """\
# How to read a text file

To read a file, include the header `<fstream>` and construct an `ifstream` object with the name of the file. The
following example shows how to read a file line by line, and how to report an error if it can't be opened.

```cpp
#include <fstream>
#include <iostream>
#include <string>

int main()
{
"""


def get_config(clone: str = "cpp-docs"):
    config = experiment_beside(__file__, "small").get_config()
    config.name = "docs"
    # These pages repeat themselves: what teaches reading need not be kept, and what is copied teaches little else.
    config.method_settings.retro.own_continuation_kept = 0.0
    config.corpus.source = f"text:{clone}/docs/**/*.md"
    config.corpus.heldout = 0.01
    config.generate.prompt = PROMPT
    return config
