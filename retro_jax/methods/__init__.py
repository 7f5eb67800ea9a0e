"""How a language model uses what was retrieved: `method.py` has the contract and the table `METHODS`; each
method is one file."""
