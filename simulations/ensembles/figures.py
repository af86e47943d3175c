"""An ensemble's figures: its metric per task beside those of its members."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.errors import ConfigError
from common.losses import ROW_LOSSES
from common.metrics import METRICS, add_sums, metric_sums
from common.sections.rows import Task
from simulations.ensembles.rows import JUDGED
from simulations.ensembles.votes import Ballot, Poll

WEIGHTS = ("equal", "validation")
Chosen = Callable[[Ballot], Tensor]  # what of a ballot is judged: [n, ...]
SMALLEST = 1e-12  # of a probability or a loss, so that its logarithm or inverse exists


def judge(
    name: str,
    task: Task,
    poll: Poll,
    weighting: str,
    *,
    by_clients: bool,
    averaged: Poll | None = None,
) -> dict[str, Any]:
    """Judge the average of the votes against the members, on validation and test rows.

    Args:
        name: of the task, for messages.
        task: kind, transform and metric.
        poll: the votes.
        weighting: of `WEIGHTS`.
        by_clients: members are clients; the figures of each row's own client are told, too.
        averaged: members are snapshots of one run, the last its end, and these are the votes of the
            mean of their parameters; the figures of both are told, too.

    Raises:
        ConfigError: members cannot be weighted by their validation losses.
    """
    weights = weigh(name, task, poll, weighting)
    members = {
        member: {"weight": float(weights[place])} for place, member in enumerate(poll.members)
    }
    figures: dict[str, Any] = {"metric": task.metric_name}
    for split in JUDGED:
        ballots = poll.ballots[split]
        if not ballots:
            continue
        alone = [_figure(task, ballots, _only(place)) for place in range(len(poll.members))]
        for member, figure in zip(poll.members, alone, strict=True):
            members[member][split] = figure
        together = _figure(task, ballots, lambda ballot: average(ballot.votes, weights))
        figures[split] = _compare(task, alone, together, poll.members)
        figures[split]["rows"] = sum(len(ballot.target) for ballot in ballots)
        if by_clients:
            own = _figure(task, ballots, _owner(poll))
            figures[split] |= {"own": own, "gain-over-own": gain(task, together, own)}
        if averaged is not None:
            one, last = _figure(task, averaged.ballots[split], _only(0)), alone[-1]
            figures[split] |= {"last": last, "gain-over-last": gain(task, together, last)}
            figures[split] |= {"one-model": one, "one-model-over-last": gain(task, one, last)}
    return {**figures, "members": members}


def _compare(
    task: Task, alone: Sequence[float], together: float, members: Sequence[str]
) -> dict[str, Any]:
    sign = sign_of(task)
    mean = sum(alone) / len(alone)
    best = max(range(len(alone)), key=lambda place: _order(sign * alone[place]))
    return {
        "mean": mean,
        "best": alone[best],
        "best-member": members[best],
        "ensemble": together,
        "gain": gain(task, together, mean),
        "gain-over-best": gain(task, together, alone[best]),
    }


def sign_of(task: Task) -> int:
    """Tell whether a larger figure is better, 1, or worse, -1."""
    return 1 if METRICS[task.metric_name].higher_is_better else -1


def gain(task: Task, figure: float, against: float) -> float:
    """Tell by how much a figure is better than another, in the metric's unit.

    >>> gain(Task(kind="regression", metric="rmse"), 2.0, 2.5)
    0.5
    """
    if math.isclose(figure, against, rel_tol=1e-12):  # a mean of equal figures is not exact
        return 0.0
    return sign_of(task) * (figure - against)


def _order(figure: float) -> float:
    return -math.inf if math.isnan(figure) else figure


def weigh(name: str, task: Task, poll: Poll, weighting: str) -> Tensor:
    """Weigh the members: equally, or by the inverse of their losses on the validation rows.

    ``w_k = (1 / L_k) / sum_j (1 / L_j)``, which for squared errors is the optimum for members that
    err independently (Bates and Granger 1969, "The combination of forecasts"); for cross-entropies
    it is the same rule. A member without a finite loss gets no weight.

    Returns:
        float64 [members], which sum to 1.

    Raises:
        ConfigError: there are no validation rows, or no member has a finite loss on them.
    """
    count = len(poll.members)
    if weighting == "equal":
        return torch.full((count,), 1 / count, dtype=torch.float64)
    ballots = poll.ballots["validation"]
    if not ballots:
        raise ConfigError(
            f"--weights validation needs validation rows that all members share, got 0 with a "
            f"label of task '{name}'; use --weights equal"
        )
    losses = torch.stack([member_losses(task, ballot) for ballot in ballots]).sum(0)
    losses /= sum(len(ballot.target) for ballot in ballots)
    usable = losses.isfinite()
    if not usable.any():
        raise ConfigError(
            f"--weights validation needs finite validation losses, got none of {count} for task "
            f"'{name}'; use other runs"
        )
    inverse = torch.where(usable, losses, 1.0).clamp_min(SMALLEST).reciprocal() * usable
    return inverse / inverse.sum()


def member_losses(task: Task, ballot: Ballot) -> Tensor:
    """Sum every member's loss over the rows of a ballot, in the target's own unit: [members]."""
    losses = [
        ROW_LOSSES[task.kind](as_output(task, vote), _for_loss(task, ballot.target)).sum()
        for vote in ballot.votes
    ]
    return torch.stack(losses)


def average(votes: Tensor, weights: Tensor) -> Tensor:
    """Average votes, [members, ...], by weights, [members]; a weight of 0 leaves a vote out.

    >>> votes = torch.tensor([[1.0, 2.0], [3.0, 4.0], [torch.nan, 0.0]])
    >>> average(votes, torch.tensor([0.5, 0.5, 0.0]))
    tensor([2., 3.])
    """
    counted = weights > 0  # 0 * NaN is NaN
    mean: Tensor = torch.tensordot(weights[counted], votes[counted], dims=1)
    return mean


def as_output(task: Task, vote: Tensor) -> Tensor:
    """Turn votes back into outputs, [n, outputs], as losses and metrics read them.

    >>> as_output(Task(kind="binary"), torch.tensor([0.5, 0.2]).double()) > 0
    tensor([[False],
            [False]])
    """
    if task.kind == "multiclass":
        return vote.clamp_min(SMALLEST).log()
    if task.kind == "regression":
        # A metric of a transformed target measures the transformed values.
        return vote.clamp_min(SMALLEST - 1).log1p() if task.transform == "log1p" else vote
    output = vote.logit(SMALLEST)
    return output.unsqueeze(1) if task.kind == "binary" else output


def _for_loss(task: Task, target: Tensor) -> Tensor:
    return target if task.kind == "multiclass" else target.double()


def _only(place: int) -> Chosen:
    return lambda ballot: ballot.votes[place]


def _owner(poll: Poll) -> Chosen:
    return lambda ballot: ballot.votes[poll.members.index(ballot.client)]


def _figure(task: Task, ballots: Sequence[Ballot], chosen: Chosen) -> float:
    """Compute the task's metric over all clients' rows, as a run does."""
    metric = task.metric_name
    total: list[float] = []
    for ballot in ballots:
        output = as_output(task, chosen(ballot))
        sums = metric_sums(metric, task.kind, output, ballot.target, None)
        total = add_sums(total, sums) if total else sums
    return METRICS[metric].figure(total)
