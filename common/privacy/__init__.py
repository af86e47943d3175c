"""Privacy: what an experiment asks for, what it costs, and the arithmetic both sides share."""
