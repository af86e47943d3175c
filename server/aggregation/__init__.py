"""How the trunks of a round become the next trunk: one rule a file, pure NumPy and PyTorch."""
