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
}
