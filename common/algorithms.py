"""What a client does with trunk and heads: the algorithms, a line each."""

from dataclasses import dataclass

from common.methods import Method

MCMAHAN = "McMahan et al., Communication-efficient learning of deep networks, AISTATS 2017"


@dataclass(frozen=True)
class Algorithm(Method):
    """One algorithm.

    Attributes:
        shares: what travels: "trunk"; "all", the heads too; "nothing".
    """

    shares: str = "trunk"


ALGORITHMS: dict[str, Algorithm] = {
    "joint": Algorithm(
        "client.algorithms.joint:Joint",
        "the trunk is shared, heads stay home, both are trained together (FedPer)",
        "Arivazhagan et al., Federated learning with personalization layers, 2019, Algorithm 1",
        "the trunk in both directions",
        always_fits=True,
    ),
    "whole-model": Algorithm(
        "client.algorithms.joint:Joint",
        "heads are averaged too (FedAvg)",
        f"{MCMAHAN}, Algorithm 1",
        "trunk and all heads in both directions",
        always_fits=True,
        shares="all",
    ),
}
