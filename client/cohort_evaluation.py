"""Evaluation of many clients at once: sums of losses and metrics, one row per client."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.batches import Index
from client.stacked_model import StackedModel
from common.dataset import ClientData, Rows, TargetScale
from common.experiment import Experiment
from common.losses import ROW_LOSSES
from common.metrics import grouped_metric_sums
from common.sections.rows import Task

# task -> "loss" or metric -> float64 [K, m]; zeros where a client has no labelled row
GroupedSums = dict[str, dict[str, Tensor]]
AT_ONCE = 2**20  # inputs of the rows that are evaluated together, in numbers: bounds the memory


@dataclass(frozen=True)
class EvaluationStore:
    """One split of one or many clients.

    Attributes:
        inputs: float32 [N, D], as in `client.row_store.RowStore`.
        rows: all clients' rows, one client after another, with every task that any holds.
        scales: tasks with standardised targets -> float32 [clients, outputs] each.
        starts: int64 [clients], the number of each one's first row.
        counts: int64 [clients], each one's number of rows.
    """

    inputs: Tensor
    rows: Rows
    scales: dict[str, TargetScale]
    starts: Index
    counts: Index

    @classmethod
    def of(
        cls, clients: Sequence[ClientData], split: str, names: Sequence[str]
    ) -> "EvaluationStore":
        """Store a split of clients; `names` are the inputs in the trunk's order."""
        parts = [client.splits[split] for client in clients]
        rows = Rows.join(parts)
        scales = {}
        for task in {task for client in clients for task in client.target_scales}:
            width = next(p.targets[task].shape[1] for p in parts if task in p.targets)
            neutral = TargetScale(torch.zeros(width), torch.ones(width))
            own = [client.target_scales.get(task, neutral) for client in clients]
            scales[task] = TargetScale(
                torch.stack([scale.mean for scale in own]).to(rows.targets[task]),
                torch.stack([scale.deviation for scale in own]).to(rows.targets[task]),
            )
        counts = np.array([len(part) for part in parts], np.int64)
        inputs = rows.side_by_side(names)
        return cls(inputs, rows, scales, np.cumsum(counts) - counts, counts)


def evaluate_cohort(
    model: StackedModel,
    experiment: Experiment,
    store: EvaluationStore,
    members: Index,
    values: Tensor,
    *,
    losses_only: bool = False,
) -> GroupedSums:
    """Sum loss and metric per task and client.

    Args:
        model: forward.
        experiment: kinds and metrics of the tasks.
        store: rows of these clients, and maybe of others.
        members: [K], their places in the store.
        values: [K, P], their parameters.
        losses_only: leave the metrics out.
    """
    counts, starts = store.counts[members], store.starts[members]
    model.bind(values)
    places, owners, outputs = [], [], []
    length = max(1, AT_ONCE // (len(members) * max(1, store.inputs.shape[1])))
    with torch.inference_mode():
        for begin in range(0, int(counts.max(initial=0)), length):
            columns = np.arange(begin, min(begin + length, int(counts.max())))
            real = torch.from_numpy(columns < counts[:, None])  # [K, L]
            # Padding repeats rows; nobody reads its outputs.
            padded = starts[:, None] + np.minimum(columns, counts[:, None] - 1)
            padded = padded.clip(0, len(store.inputs) - 1)
            rows = torch.from_numpy(padded).to(values.device)
            result = model.outputs(store.inputs[rows])
            real = real.to(values.device)
            outputs.append(result[real])
            places.append(rows[real])
            owners.append(real.nonzero(as_tuple=True)[0])
        if not outputs:
            return {}
        found = model.tasks.cut(torch.cat(outputs).unsqueeze(0))
        here, whose = torch.cat(places), torch.cat(owners)
        return {
            task: _sum_task(
                experiment.tasks[task],
                task,
                store,
                found[task][0],
                here,
                whose,
                members,
                losses_only,
            )
            for task in store.rows.targets
        }


def _sum_task(
    settings: Task,
    task: str,
    store: EvaluationStore,
    output: Tensor,
    places: Tensor,
    owners: Tensor,
    members: Index,
    losses_only: bool,
) -> dict[str, Tensor]:
    """Sum one task's loss and metric.

    Args:
        settings: kind and metric.
        task: its name.
        store: targets and masks.
        output: [N, outputs].
        places: int64 [N], the rows' numbers in the store.
        owners: int64 [N], each row's client among the members.
        members: [K].
        losses_only: leave the metric out.
    """
    labelled = store.rows.labelled[task][places]
    output, owners = output[labelled], owners[labelled]
    target = store.rows.targets[task][places][labelled]
    losses = ROW_LOSSES[settings.kind](output, target).double()
    both = torch.stack([losses, torch.ones_like(losses)], 1)
    loss = both.new_zeros(len(members), 2).index_add_(0, owners, both)
    if losses_only:
        return {"loss": loss}
    scale = store.scales.get(task)
    if scale is not None:
        own = torch.from_numpy(members).to(owners.device)[owners]
        scale = TargetScale(scale.mean[own], scale.deviation[own])
        output, target = scale.undo(output), scale.undo(target)
    metric = settings.metric_name
    numbers = grouped_metric_sums(metric, settings.kind, output, target, owners, len(members))
    return {"loss": loss, metric: numbers}
