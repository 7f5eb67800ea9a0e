"""One file for each embedder; `retrieval/embedder.py` has the contract and the table."""
