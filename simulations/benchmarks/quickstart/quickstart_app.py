"""A small network on made-up rows, trained and evaluated by Flower's FedAvg as its quickstart does.

Both apps stand in one file; the server notes the time at the end of every round.
"""

import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

server_app = ServerApp()
client_app = ClientApp()


def make_network() -> nn.Module:
    """Make the network of the digits experiment."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def make_rows() -> tuple[Tensor, Tensor]:
    """Make up as many rows as a client of the digits has."""
    return torch.randn(117, 64), torch.randint(0, 10, (117,))


def load(message: Message) -> nn.Module:
    """Put the received arrays into a network."""
    network = make_network()
    record = message.content["arrays"]
    network.load_state_dict(record.to_torch_state_dict())  # type: ignore[union-attr]
    return network


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one epoch."""
    network, (inputs, labels) = load(message), make_rows()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    order = torch.randperm(len(inputs))
    for start in range(0, len(order), 16):
        rows = order[start : start + 16]
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    metrics = MetricRecord({"num-examples": len(inputs)})
    arrays = ArrayRecord(network.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received network."""
    network, (inputs, labels) = load(message), make_rows()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(network(inputs), labels)
    metrics = MetricRecord({"loss": float(loss), "num-examples": len(inputs)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    times = Path(str(context.run_config["times"]))

    def note(records: list[RecordDict], weight: str) -> MetricRecord:
        with times.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        return MetricRecord({})

    nodes = len(list(grid.get_node_ids()))
    strategy = FedAvg(
        fraction_train=1.0,
        fraction_evaluate=1.0,
        min_available_nodes=nodes,
        evaluate_metrics_aggr_fn=note,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(make_network().state_dict()),
        num_rounds=int(context.run_config["rounds"]),
    )
