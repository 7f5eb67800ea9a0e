"""One file for each step of the pipeline; `recipe.py` has their order, `step.py` the contract."""
