"""Losses and metrics of one client's rows, added up some rows at a time."""

import torch
from torch import Tensor

from common.dataset import ClientData
from common.experiment import Experiment
from common.losses import ROW_LOSSES
from common.metrics import METRICS, Sums, add_sums, metric_sums

TaskSums = dict[str, dict[str, Sums]]  # task -> "loss" or metric -> additive numbers


class Tally:
    """Sums loss and metric per task.

    A metric that is no sum over rows is computed at the end; of the rows, only what it needs of
    outputs and targets is kept.

    Args:
        experiment: its tasks.
        data: whose rows.
        losses_only: leave metrics out.
    """

    def __init__(
        self, experiment: Experiment, data: ClientData, *, losses_only: bool = False
    ) -> None:
        self.experiment, self.data, self.losses_only = experiment, data, losses_only
        self._sums: TaskSums = {}
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, task: str, output: Tensor, target: Tensor) -> None:
        """Add a task's labelled rows, one or more: outputs [N, outputs] and targets."""
        settings = self.experiment.tasks[task]
        losses = ROW_LOSSES[settings.kind](output, target)
        found = {"loss": [float(losses.double().sum()), float(len(target))]}
        if self.losses_only:
            pass
        elif METRICS[settings.metric_name].rows is None:
            self._kept.setdefault(task, []).append((output, target))
        else:
            found[settings.metric_name] = self._measure(task, output, target)
        before = self._sums.get(task)
        if before is not None:
            found = {name: add_sums(before[name], own) for name, own in found.items()}
        self._sums[task] = found

    def sums(self) -> TaskSums:
        """Get the sums of all tasks that had a label."""
        for task, parts in self._kept.items():
            outputs, targets = (torch.cat(own) for own in zip(*parts, strict=True))
            metric = self.experiment.tasks[task].metric_name
            self._sums[task][metric] = self._measure(task, outputs, targets)
        return {task: self._sums[task] for task in self.data.tasks if task in self._sums}

    def _measure(self, task: str, output: Tensor, target: Tensor) -> Sums:
        settings, scale = self.experiment.tasks[task], self.data.target_scales.get(task)
        return metric_sums(settings.metric_name, settings.kind, output, target, scale)
