"""Trunk and heads trained together."""

from client.algorithms.algorithm import LocalAlgorithm


class Joint(LocalAlgorithm):
    """Every step moves trunk and heads (FedPer, Arivazhagan et al. 2019, Algorithm 1).

    With heads that travel too, it is FedAvg's client (McMahan et al. 2017, Algorithm 1); with a
    trunk that stays home, training alone.
    """
