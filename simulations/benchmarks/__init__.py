"""How long a simulated round takes, as ratios to a plain PyTorch loop that does the same work."""
