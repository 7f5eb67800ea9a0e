"""Before a machine is rented: what a train step needs on it, and whether it fits."""
