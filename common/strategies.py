"""How the server combines what clients send: the strategies, a line each."""

from dataclasses import dataclass

from common.methods import Method


@dataclass(frozen=True)
class Strategy(Method):
    """One strategy.

    Attributes:
        weighs: whether clients count by `federation.weight-by`; the others count all alike, or by
            something else.
        by_mean: whether it needs no more of the updates than their mean, as where the server sees
            nothing else, or where noise was added to it.
        needs_common: whether it works on trained parameters that all tasks share.
    """

    weighs: bool = True
    by_mean: bool = False
    needs_common: bool = False


REDDI = "Reddi et al., Adaptive federated optimization, ICLR 2021, Algorithm 2"
YIN = "Yin et al., Byzantine-robust distributed learning: towards optimal rates, ICML 2018"
BLANCHARD = (
    "Blanchard et al., Machine learning with adversaries: Byzantine tolerant gradient descent, "
    "NeurIPS 2017, section 4"
)
DISTANCES = "distances between all pairs of updates each round"

STRATEGIES: dict[str, Strategy] = {
    "fedavg": Strategy(
        "server.aggregation.mean:Mean",
        "the mean of the clients' trunks, weighted as federation.weight-by says",
        "McMahan et al., Communication-efficient learning of deep networks, AISTATS 2017, "
        "Algorithm 1",
        "none",
        always_fits=True,
        by_mean=True,
    ),
    "fedavgm": Strategy(
        "server.aggregation.server_optimisers:FedAvgM",
        "the mean update with momentum on the server",
        "Hsu et al., Measuring the effects of non-identical data distribution, 2019, section 4.3",
        "a momentum as large as the trunk on the server",
        by_mean=True,
    ),
    "fedadam": Strategy(
        "server.aggregation.server_optimisers:FedAdam",
        "the mean update as the gradient of Adam on the server",
        f"{REDDI} (FedAdam)",
        "two moments as large as the trunk on the server",
        by_mean=True,
    ),
    "fedyogi": Strategy(
        "server.aggregation.server_optimisers:FedYogi",
        "the mean update as the gradient of Yogi on the server",
        f"{REDDI} (FedYogi)",
        "two moments as large as the trunk on the server",
        by_mean=True,
    ),
    "fedadagrad": Strategy(
        "server.aggregation.server_optimisers:FedAdagrad",
        "the mean update as the gradient of Adagrad on the server",
        f"{REDDI} (FedAdagrad)",
        "two arrays as large as the trunk on the server",
        by_mean=True,
    ),
    "qfedavg": Strategy(
        "server.aggregation.fair:QFedAvg",
        "clients with a high training loss count more, for a fairer spread of losses",
        "Li et al., Fair resource allocation in federated learning, ICLR 2020, Algorithm 2",
        "the length of every update each round",
        weighs=False,
    ),
    "median": Strategy(
        "server.aggregation.robust:Median",
        "the median of every parameter; withstands fewer than half the clients",
        f"{YIN}, Definition 1",
        "a partial sort of the clients for every parameter",
        weighs=False,
    ),
    "trimmed-mean": Strategy(
        "server.aggregation.robust:TrimmedMean",
        "the mean of every parameter without a share at either end",
        f"{YIN}, Definition 2",
        "a partial sort of the clients for every parameter",
        weighs=False,
    ),
    "krum": Strategy(
        "server.aggregation.robust:Krum",
        "the one trunk that is nearest to its neighbours",
        BLANCHARD,
        DISTANCES,
        weighs=False,
    ),
    "multikrum": Strategy(
        "server.aggregation.robust:MultiKrum",
        "the mean of the trunks that are nearest to their neighbours",
        BLANCHARD,
        DISTANCES,
        weighs=False,
    ),
    "bulyan": Strategy(
        "server.aggregation.robust:Bulyan",
        "trunks near their neighbours, then of every parameter the values near the median",
        "El Mhamdi et al., The hidden vulnerability of distributed learning in Byzantium, ICML "
        "2018, section 4",
        f"{DISTANCES}, and a partial sort of the clients for every parameter",
        weighs=False,
    ),
    "conflict-averse": Strategy(
        "server.aggregation.conflict_averse:ConflictAverse",
        "a step that improves no client at another's expense (FedMGDA+ and relatives)",
        "Hu et al., Federated learning meets multi-objective optimization, IEEE TNSE 2022, "
        "Algorithm 1; other aggregators of gradients by option",
        "products of all pairs of updates, and a small programme, each round",
        needs_common=True,
    ),
    "task-aware": Strategy(
        "server.aggregation.task_aware:TaskAware",
        "a mean per task over the clients that hold it, then across tasks",
        "Lu et al., FedHCA2: Towards hetero-client federated multi-task learning, CVPR 2024, its "
        "conflict-averse update across groups (across = 'cagrad')",
        "products of all pairs of updates each round",
        fewest_tasks=2,
    ),
    "clustered": Strategy(
        "server.aggregation.clustered:Clustered",
        "a trunk per group of clients or tasks; groups split and merge as their updates say",
        "Sattler et al., Clustered federated learning, IEEE TNNLS 2021, Algorithm 2; Briggs et "
        "al., Federated learning with hierarchical clustering of local updates, IJCNN 2020",
        "a trunk per group and a sketch of 4 kB per client on the server",
        needs_common=True,
    ),
}
