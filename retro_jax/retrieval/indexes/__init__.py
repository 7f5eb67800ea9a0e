"""One file for each index; `retrieval/index.py` has the contract and the table."""
