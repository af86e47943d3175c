"""Sums that the server learns while it learns no summand: SecAgg+ as two state machines."""
