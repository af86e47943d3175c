"""What a client does with trunk and heads: the algorithms, a line each."""

from dataclasses import dataclass

from common.methods import Method

MCMAHAN = "McMahan et al., Communication-efficient learning of deep networks, AISTATS 2017"
CONTROL = "control"  # begins the names of SCAFFOLD's variates, which travel beside the trunk

ONCE = "one message a round; the trunk each way"


@dataclass(frozen=True)
class Algorithm(Method):
    """One algorithm.

    Attributes:
        shares: what travels: "trunk"; "all", the heads too; "nothing".
        travels: what travels beside that, each an array for every array of the trunk: it begins
            their names.
        keeps: what stays home beside heads, for people.
        fits_last: whether the last evaluation fits what the clients keep.
        more_epochs: whether it trains for epochs of its own beside training.epochs.
        needs_common: whether it works on trained parameters that all tasks share.
    """

    shares: str = "trunk"
    travels: tuple[str, ...] = ()
    keeps: str = "heads"
    fits_last: bool = False
    more_epochs: bool = False
    needs_common: bool = False


ALGORITHMS: dict[str, Algorithm] = {
    "joint": Algorithm(
        "client.algorithms.joint:Joint",
        "the trunk is shared, heads stay home, both are trained together (FedPer)",
        "Arivazhagan et al., Federated learning with personalization layers, 2019, Algorithm 1",
        ONCE,
        always_fits=True,
    ),
    "fedrep": Algorithm(
        "client.algorithms.fedrep:FedRep",
        "heads are fitted to the trunk received, then the trunk to the heads",
        "Collins et al., Exploiting shared representations for personalized federated learning, "
        "ICML 2021, Algorithm 1",
        f"{ONCE}; head epochs beside the trunk's",
        more_epochs=True,
    ),
    "fedbabu": Algorithm(
        "client.algorithms.fedbabu:FedBABU",
        "heads stand still, as initialised, while the trunk trains; they are fitted at the end",
        "Oh et al., FedBABU: toward enhanced representation for federated image classification, "
        "ICLR 2022, Algorithm 1",
        f"{ONCE}; every evaluation fits heads",
        fits_last=True,
        more_epochs=True,
    ),
    "fedprox": Algorithm(
        "client.algorithms.fedprox:FedProx",
        "joint, with the trunk drawn to the one received",
        "Li et al., Federated optimization in heterogeneous networks, MLSys 2020, eq. 2",
        ONCE,
    ),
    "ditto": Algorithm(
        "client.algorithms.ditto:Ditto",
        "a personal model beside the shared one, its trunk drawn to the shared trunk",
        "Li et al., Ditto: fair and robust federated learning through personalization, ICML 2021, "
        "Algorithm 1",
        f"{ONCE}; two models trained",
        keeps="heads, a personal trunk with heads of its own",
        more_epochs=True,
    ),
    "mr-mtl": Algorithm(
        "client.algorithms.mr_mtl:MeanRegularised",
        "every client has its own trunk, drawn to the mean of all",
        "Liu et al., On privacy and personalization in cross-silo federated learning, NeurIPS "
        "2022, Algorithm A1",
        ONCE,
        keeps="heads, the personal trunk",
    ),
    "scaffold": Algorithm(
        "client.algorithms.scaffold:Scaffold",
        "joint, with control variates that take the clients' drift out of every gradient",
        "Karimireddy et al., SCAFFOLD: stochastic controlled averaging for federated learning, "
        "ICML 2020, Algorithm 1, option II",
        "one message a round; twice the trunk each way",
        travels=(CONTROL,),
        keeps="heads, the client's control variate",
        needs_common=True,
    ),
    "apfl": Algorithm(
        "client.algorithms.apfl:APFL",
        "a mixture of a personal and the shared trunk",
        "Deng et al., Adaptive personalized federated learning, 2020, Algorithm 1",
        f"{ONCE}; two models trained",
        keeps="heads, a personal trunk with heads of its own",
    ),
    "fedala": Algorithm(
        "client.algorithms.fedala:FedALA",
        "joint, after received and personal trunk were mixed by learned weights",
        "Zhang et al., FedALA: adaptive local aggregation for personalized federated learning, "
        "AAAI 2023, Algorithm 1",
        f"{ONCE}; mixing epochs before the others",
        keeps="heads, the personal trunk, mixing weights",
        needs_common=True,
    ),
    "local": Algorithm(
        "client.algorithms.joint:Joint",
        "every client trains alone; only sums and counts travel",
        cost="one message a round, without a trunk",
        always_fits=True,
        shares="nothing",
        keeps="everything",
    ),
    "whole-model": Algorithm(
        "client.algorithms.joint:Joint",
        "heads are averaged too (FedAvg)",
        f"{MCMAHAN}, Algorithm 1",
        "one message a round; trunk and all heads each way",
        always_fits=True,
        shares="all",
        keeps="nothing",
    ),
}
