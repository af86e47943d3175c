"""Open every client's data as a run would, and count what is there, without training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.agreement import (
    agree,
    describe,
    input_shapes,
    missing_task,
    require_clients,
    require_labels,
)
from common.availability import require_known
from common.clients import open_clients
from common.dataset import SPLITS, ClientData
from common.encoding import encode
from common.errors import DataError, FedMTLError
from common.experiment import Experiment
from common.pretrained.prepare import require_weights
from server.federation import initial_trunk
from simulations.formats import format_count

MOST_ROWS = 50  # of the table of clients; all count in its totals

Result = TypeVar("Result")


@dataclass(frozen=True)
class ClientCount:
    """What one client holds.

    Attributes:
        name: stable name of the client.
        rows: split -> number of rows.
        labelled: task -> labelled training rows; a task that the client does not hold is absent.
    """

    name: str
    rows: dict[str, int]
    labelled: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """What a federation holds.

    Attributes:
        clients: those that take part.
        shapes: input -> shape of one row.
        left_out: other clients -> why, where `data.unusable` allows it.
    """

    clients: list[ClientCount]
    shapes: dict[str, tuple[int, ...]]
    left_out: dict[str, str]


def check_clients(experiment: Experiment) -> Check:
    """Read and encode every client's data.

    Raises:
        ConfigError: source, path or partition is wrong, or there is no trunk to share.
        DataError: the data of a client cannot serve; a line for every problem of every client.
    """
    source = open_clients(experiment)
    problems: list[str] = []
    descriptions = _try_each(
        source.names, lambda name: describe(source.read(name), experiment), problems
    )
    if problems:
        raise DataError("\n".join(problems))
    agreement = agree(descriptions, experiment)
    require_labels(descriptions, experiment)
    left_out = {d.client: d.left_out for d in descriptions if d.left_out}
    require_clients(len(descriptions) - len(left_out), experiment)
    require_known(experiment.federation.availability, source.names)
    for description in descriptions:
        reason = None if description.left_out else missing_task(description, experiment)
        problems += [f"client '{description.client}': {reason}"] if reason else []
    counts = _try_each(
        [name for name in source.names if name not in left_out],
        lambda name: _count(encode(source.read(name), experiment, agreement)),
        problems,
    )
    if problems:
        raise DataError("\n".join(problems))
    require_weights(experiment)
    initial_trunk(experiment, agreement)  # refuses a model that shares nothing
    return Check(counts, dict(input_shapes(agreement)), left_out)


def print_check(experiment: Experiment, check: Check, console: Console) -> None:
    """Print a row per client, totals, and the shapes of the inputs."""
    table = Table(title=f"{experiment.name}: {format_count(len(check.clients), 'client')}")
    table.add_column("client")
    for split in SPLITS:
        table.add_column(f"{split}\nrows", justify="right")
    for task in experiment.tasks:
        table.add_column(f"{task}\nlabelled", justify="right")
    shown = check.clients[:MOST_ROWS]
    for client in shown:
        table.add_row(Text(client.name), *_cells(experiment, client))
    if len(check.clients) > len(shown):
        table.add_row(f"and {len(check.clients) - len(shown):,} more")
    table.add_section()
    table.add_row("all", *_cells(experiment, _total(check.clients)), style="bold")
    console.print(table)
    console.print("labelled: training rows with a target for the task", style="dim")
    for name, shape in check.shapes.items():
        console.print(f"input {name}: {' x '.join(map(str, shape))}", highlight=False)
    for client in shown:
        for note in client.notes:
            console.print(Text(f"{client.name}: {note}", style="yellow"))
    for reason in check.left_out.values():
        console.print(Text(f"left out: {reason}", style="yellow"))


def _try_each(
    names: Iterable[str], read: Callable[[str], Result], problems: list[str]
) -> list[Result]:
    """Do it for every client; what is wrong with one is noted and does not hide the next."""
    results = []
    for name in names:
        try:
            results.append(read(name))
        except FedMTLError as error:
            problems += [
                line if name in line else f"{name}: {line}" for line in str(error).splitlines()
            ]
    return results


def _count(data: ClientData) -> ClientCount:
    return ClientCount(
        name=data.name,
        rows={split: len(data.splits[split]) for split in SPLITS},
        labelled={task: int(mask.sum()) for task, mask in data.train.labelled.items()},
        notes=data.notes,
    )


def _total(clients: list[ClientCount]) -> ClientCount:
    tasks = {task for client in clients for task in client.labelled}
    return ClientCount(
        name="all",
        rows={split: sum(client.rows[split] for client in clients) for split in SPLITS},
        labelled={t: sum(client.labelled.get(t, 0) for client in clients) for t in tasks},
        notes=(),
    )


def _cells(experiment: Experiment, client: ClientCount) -> list[str]:
    rows = [f"{client.rows[split]:,}" for split in SPLITS]
    return rows + [f"{client.labelled.get(task, 0):,}" for task in experiment.tasks]
