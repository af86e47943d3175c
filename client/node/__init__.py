"""A node on its owner's machine: Flower's SuperNode, a guard, and a worker that stays warm."""
