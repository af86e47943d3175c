"""The plain loop, the 1.00 of every ratio: federated training as a competent user writes it.

One `nn.Module`, a `torch.optim.SGD` per client and round, `state_dict` copies, batches taken by
index, a weighted average in a dict. It starts from the project's initial model, draws the project's
clients and visits rows in the project's order, so that it must end with the same trunk.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor, nn

from client.batches import Index, epoch_order, label_patterns, shuffle_key
from common.experiment import Experiment
from common.model import build_model
from common.seeding import sample_names
from simulations.benchmarks.contenders import Job
from simulations.benchmarks.rows import Columns
from simulations.benchmarks.turns import Turns

State = dict[str, Tensor]  # parameter name -> values
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "digit": F.cross_entropy,
    "parity": lambda output, target: F.binary_cross_entropy_with_logits(output.squeeze(1), target),
    "ink": lambda output, target: F.mse_loss(output.squeeze(1), target),
}


@dataclass
class ClientRows:
    """One client's rows.

    Attributes:
        key: of the client's shuffles.
        pixels: [N, 1, height, width], or flat for an MLP.
        targets: task that it holds -> [N] targets; 0 where there is no label.
        labelled: the same tasks -> bool [N].
    """

    key: int
    pixels: Tensor
    targets: dict[str, Tensor]
    labelled: dict[str, Tensor]

    def __post_init__(self) -> None:
        masks = {task: mask.cpu() for task, mask in self.labelled.items()}
        self.patterns = label_patterns(masks)
        self.is_complete = all(bool(mask.all()) for mask in masks.values())


class PlainModel(nn.Module):
    """The layers of the project's initial model, chained directly, as one does for one data set.

    Attributes:
        trunk_names: name of a trunk parameter here -> its name in the project.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        model = build_model(experiment, {"pixels": experiment.inputs["pixels"].shape})
        encoder: Any = model.trunk.get_submodule("encoder")
        stacks = [layer for stack in getattr(encoder, "stacks", {}).values() for layer in stack]
        self.trunk = nn.Sequential(*stacks, *encoder.layers)
        self.heads = nn.ModuleDict()
        for task in LOSSES:
            (self.heads[task],) = model.heads[f"task-{task}"].children()  # one linear layer
        theirs = [name for name, _ in model.trunk.named_parameters(prefix="trunk")]
        ours = [name for name, _ in self.trunk.named_parameters(prefix="trunk")]
        self.trunk_names = dict(zip(ours, theirs, strict=True))

    def forward(self, pixels: Tensor, tasks: Iterable[str]) -> dict[str, Tensor]:
        """Map [N, ...] to task -> [N, outputs]."""
        features = self.trunk(pixels)
        return {task: self.heads[task](features) for task in tasks}


def read_clients(experiment: Experiment) -> dict[str, ClientRows]:
    """Read the rows of all clients onto the device: client name -> rows."""
    columns = dict(np.load(experiment.data.path))
    columns["pixels"] = columns["pixels"][:, None]
    if experiment.trunk.architecture == "mlp":  # flat rows spare it an operation per step
        columns["pixels"] = columns["pixels"].reshape(len(columns["pixels"]), -1)
    numbers, starts = np.unique(columns["client"], return_index=True)
    ends = [*starts[1:], len(columns["client"])]
    return {
        str(number): read_client(
            shuffle_key(experiment.seed, str(number)),
            {name: column[start:end] for name, column in columns.items()},
            experiment.training.device,
        )
        for number, start, end in zip(numbers, starts, ends, strict=True)
    }


def read_client(key: int, columns: Columns, device: str) -> ClientRows:
    """Make tensors of one client's rows."""
    targets, labelled = {}, {}
    for task in LOSSES:
        column = torch.from_numpy(columns[task])
        mask = ~column.isnan()
        if mask.any():
            kind = torch.int64 if task == "digit" else torch.float32
            targets[task] = column.nan_to_num().to(kind).to(device)
            labelled[task] = mask.to(device)
    return ClientRows(key, torch.from_numpy(columns["pixels"]).to(device), targets, labelled)


def train_rounds(experiment: Experiment, clients: dict[str, ClientRows]) -> Iterator[State]:
    """Train round after round without end, and give the trunk after each."""
    model = PlainModel(experiment).to(experiment.training.device)
    initial = {name: values.clone() for name, values in model.state_dict().items()}
    trunk = {name: values for name, values in initial.items() if name.startswith("trunk.")}
    own: dict[str, State] = {}  # client -> its heads
    for number in itertools.count(1):
        sums = {name: torch.zeros_like(values) for name, values in trunk.items()}
        total = 0
        for client in draw_clients(experiment, clients, number):
            rows = clients[client]
            model.load_state_dict({**initial, **trunk, **own.get(client, {})})
            train_client(model, rows, experiment, number)
            state = model.state_dict()
            own[client] = {name: v.clone() for name, v in state.items() if name not in trunk}
            for name in trunk:
                sums[name] += state[name] * len(rows.pixels)
            total += len(rows.pixels)
        trunk = {name: values / total for name, values in sums.items()}
        yield {model.trunk_names[name]: values for name, values in trunk.items()}


def draw_clients(experiment: Experiment, clients: dict[str, ClientRows], number: int) -> list[str]:
    """Draw the clients of a round, those that the project's server draws."""
    wanted, names = experiment.federation.clients_per_round, list(clients)
    if wanted != "all":
        names = sample_names(names, wanted, experiment.seed, "sampling", number)
    return sorted(names)


def shuffle(rows: ClientRows, experiment: Experiment, number: int) -> Index:
    """Order a client's rows for a round, as the project's clients do."""
    balance = experiment.training.balance
    return epoch_order(len(rows.pixels), rows.patterns, balance, rows.key, number, 0)


def train_client(model: nn.Module, rows: ClientRows, experiment: Experiment, number: int) -> None:
    """Train on one client's rows for one epoch."""
    settings = experiment.training
    optimiser = torch.optim.SGD(model.parameters(), lr=settings.lr)
    order = torch.from_numpy(shuffle(rows, experiment, number)).to(rows.pixels.device)
    model.train()
    for batch in torch.split(order, settings.batch_size):
        optimiser.zero_grad()
        torch.autograd.backward(batch_loss(model, rows, batch))
        optimiser.step()


def batch_loss(model: nn.Module, rows: ClientRows, batch: Tensor) -> Tensor:
    """Add the tasks' mean losses over the rows of a batch that have a label."""
    outputs = model(rows.pixels[batch], rows.targets)
    losses = []
    for task, targets in rows.targets.items():
        output, target = outputs[task], targets[batch]
        if not rows.is_complete:
            labelled = rows.labelled[task][batch]
            if not labelled.any():
                continue
            output, target = output[labelled], target[labelled]
        losses.append(LOSSES[task](output, target))
    return functools.reduce(torch.add, losses)


def run(job: Job, turns: Turns) -> None:
    """Train in the arena."""
    experiment = job.make_experiment()
    torch.set_num_threads(job.threads)
    clients = read_clients(experiment)
    for trunk in train_rounds(experiment, clients):
        if job.device.startswith("cuda"):
            torch.cuda.synchronize()
        turns.end_round(lambda: {name: v.cpu().numpy() for name, v in trunk.items()})  # noqa: B023
