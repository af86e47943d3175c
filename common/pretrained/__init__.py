"""Trunks that start from given weights, train in part, or learn adapters alone."""
