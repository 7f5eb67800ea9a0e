"""One file for each kind of condition; `evaluate/condition.py` has the contract and the table."""
