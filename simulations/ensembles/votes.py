"""What members say of rows, as probabilities or as values in the target's own unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from client.kept_model import KeptModel
from client.prediction import compute_answers
from common.encoding import encode_rows
from common.partition import pool_tables
from common.splits import IndexArray
from common.tables import ClientTable, TableSource
from common.wire import FloatArray
from simulations.ensembles.members import Member
from simulations.ensembles.rows import JUDGED, SharedRows, own_places

CPU = torch.device("cpu")
Said = dict[str, Tensor]  # task -> what one model says


@dataclass(frozen=True)
class Ballot:
    """The votes on one client's labelled rows of one task and split.

    Attributes:
        client: who holds the rows.
        target: int64 [n] codes of classes (multiclass, binary), else float64 [n, outputs], as in
            `common.targets.Target`.
        votes: float64 [members, n, ...]: probabilities [classes], [] of class 1, or [labels]; or
            values [outputs] in the target's own unit.
    """

    client: str
    target: Tensor
    votes: Tensor


@dataclass(frozen=True)
class Poll:
    """The votes on all rows of one task.

    Attributes:
        members: who voted, in the order of the ballots.
        ballots: split of `JUDGED` -> one per client that has labelled rows.
    """

    members: tuple[str, ...]
    ballots: Mapping[str, Sequence[Ballot]]


def poll_runs(members: Sequence[Member], rows: SharedRows) -> dict[str, Poll]:
    """Let every run vote on a client's rows with its trunk and that client's heads.

    A client's rows count for a task where it has a head of it in every run.

    Raises:
        CheckpointError: a model is not complete.
        DataError: rows cannot be encoded.
    """
    found: dict[str, dict[str, list[Ballot]]] = {}
    for client in rows.numbers["test"]:
        said = [_ask(member.model(client), _take(member, client, rows)) for member in members]
        for task in said[0]:
            if all(task in answers for answers in said):
                votes = torch.stack([answers[task] for answers in said])
                _count(found.setdefault(task, _empty()), members[0], client, task, rows, votes)
    names = tuple(member.name for member in members)
    return {task: Poll(names, ballots) for task, ballots in _in_order(found, members[0]).items()}


def poll_averages(members: Sequence[Member], rows: SharedRows) -> dict[str, Poll]:
    """Let one model vote on each client's rows: the mean of its parameters over all members.

    ``w = sum_m w_m / M``, for members of one run, whose parameters belong to each other: Izmailov
    et al., "Averaging weights leads to wider optima and better generalization", UAI 2018, eq. 1.
    Statistics of a norm are averaged as well, where the paper takes them anew.

    Raises:
        CheckpointError, DataError: as of `poll_runs`.
    """
    found: dict[str, dict[str, list[Ballot]]] = {}
    for client in rows.numbers["test"]:
        model = average_models([member.model(client) for member in members])
        for task, answer in _ask(model, _take(members[0], client, rows)).items():
            votes = answer.unsqueeze(0)
            _count(found.setdefault(task, _empty()), members[0], client, task, rows, votes)
    return {task: Poll(("mean",), b) for task, b in _in_order(found, members[0]).items()}


def average_models(models: Sequence[KeptModel]) -> KeptModel:
    """Average the parameters of models of one client; scalings are those of the last."""
    kept: dict[str, FloatArray] = {}
    for name, last in models[-1].arrays.items():
        if all(name in model.arrays for model in models):
            stack = np.stack([model.arrays[name] for model in models])
            kept[name] = stack.mean(axis=0, dtype=np.float64).astype(last.dtype)
    return replace(models[-1], arrays=kept)


def poll_clients(member: Member, rows: SharedRows) -> dict[str, Poll]:
    """Let all clients of a run vote on each other's rows, each with its own heads and scalings.

    Raises:
        CheckpointError: a model is not complete.
        DataError: the rows of one client cannot be encoded by another's scalings.
    """
    asked = list(rows.numbers["test"])
    tables = {client: _take(member, client, rows) for client in asked}
    pooled = pool_tables(TableSource(tuple(asked), tables.__getitem__))
    ends = np.cumsum([len(tables[client]) for client in asked])[:-1].tolist()
    said = {client: _ask(member.model(client), pooled) for client in asked}
    found: dict[str, dict[str, list[Ballot]]] = {}
    voters: dict[str, tuple[str, ...]] = {}
    for task in {task: None for answers in said.values() for task in answers}:
        voters[task] = tuple(client for client in asked if task in said[client])
        votes = torch.stack([said[client][task] for client in voters[task]])
        for client, own in zip(asked, votes.tensor_split(ends, dim=1), strict=True):
            _count(found.setdefault(task, _empty()), member, client, task, rows, own)
    return {task: Poll(voters[task], b) for task, b in _in_order(found, member).items()}


def _take(member: Member, client: str, rows: SharedRows) -> ClientTable:
    """Take the validation rows, then the test rows, of a client; columns of the inputs alone."""
    numbers = np.concatenate([rows.numbers[split][client] for split in JUDGED])
    places = own_places(member, client, numbers)
    needed = {c for columns in member.kept.agreement.columns.values() for c in columns}
    columns = member.table(client).columns
    return ClientTable(client, {k: v[places] for k, v in columns.items() if k in needed})


def _ask(model: KeptModel, table: ClientTable) -> Said:
    encoded = encode_rows(table, model.experiment, model.agreement, model.fitted)
    answers = compute_answers(model, encoded.inputs, CPU)
    return {
        task: (answer.value if answer.probability is None else answer.probability).double()
        for task, answer in answers.items()
    }


def _count(
    ballots: dict[str, list[Ballot]],
    member: Member,
    client: str,
    task: str,
    rows: SharedRows,
    votes: Tensor,
) -> None:
    """Add a client's labelled rows to a task's ballots; votes: [members, its rows, ...]."""
    target = member.clients[client].targets.get(task)
    if target is None:  # the client has a head of others, and no label to judge it by
        return
    start = 0
    for split in JUDGED:
        numbers: IndexArray = rows.numbers[split][client]
        places = own_places(member, client, numbers)
        labelled = target.labelled[places]
        own = votes[:, start : start + len(numbers)][:, torch.from_numpy(labelled)]
        start += len(numbers)
        if labelled.any():
            truth = torch.from_numpy(target.values[places[labelled]])
            ballots[split].append(Ballot(client, truth, own))


def _empty() -> dict[str, list[Ballot]]:
    return {split: [] for split in JUDGED}


def _in_order(
    found: Mapping[str, dict[str, list[Ballot]]], member: Member
) -> dict[str, dict[str, list[Ballot]]]:
    """Order tasks as the experiment does; those without a test row are left out."""
    tasks = [task for task in member.experiment.tasks if task in found]
    return {task: found[task] for task in tasks if found[task]["test"]}
