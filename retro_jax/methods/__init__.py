"""How a language model uses what was retrieved: `method.py` has the contract, then one file for each method."""
