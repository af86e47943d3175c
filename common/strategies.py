"""How the server combines what clients send: the strategies, a line each."""

from common.methods import Method

STRATEGIES: dict[str, Method] = {
    "fedavg": Method(
        "server.aggregation.mean:Mean",
        "the mean of the clients' trunks, weighted as federation.weight-by says",
        "McMahan et al., Communication-efficient learning of deep networks, AISTATS 2017, "
        "Algorithm 1",
        "none",
        always_fits=True,
    ),
    "conflict-averse": Method(
        "server.aggregation.conflict_averse:ConflictAverse",
        "a step that improves no client at another's expense (FedMGDA+ and relatives)",
        "Hu et al., Federated learning meets multi-objective optimization, IEEE TNSE 2022, "
        "Algorithm 1; other aggregators of gradients by option",
        "products of all pairs of updates, and a small programme, each round",
    ),
    "task-aware": Method(
        "server.aggregation.task_aware:TaskAware",
        "a mean per task over the clients that hold it, then across tasks",
        "Lu et al., FedHCA2: Towards hetero-client federated multi-task learning, CVPR 2024, its "
        "conflict-averse update across groups (across = 'cagrad')",
        "products of all pairs of updates each round",
        fewest_tasks=2,
    ),
    "clustered": Method(
        "server.aggregation.clustered:Clustered",
        "a trunk per group of clients or tasks; groups split and merge as their updates say",
        "Sattler et al., Clustered federated learning, IEEE TNNLS 2021, Algorithm 2; Briggs et "
        "al., Federated learning with hierarchical clustering of local updates, IJCNN 2020",
        "a trunk per group and a sketch of 4 kB per client on the server",
    ),
}
