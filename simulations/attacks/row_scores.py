"""What a model says about rows: the loss of each, and a score per task that a Gaussian fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.dataset import Rows
from common.encoder import InputShapes
from common.experiment import Experiment
from common.losses import ROW_LOSSES, combine_losses
from common.model import build_model
from common.sharing import learned_names, shared_names, task_of
from common.wire import FloatArray as Float32Array
from simulations.attacks.lira import confidence_scores

FIT_STEPS = 300  # full-batch steps of Adam by which a server fits heads to a trunk
FIT_RATE = 0.01

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RowScores:
    """Scores of N rows.

    Attributes:
        confidence: [N, S] by `confidence_scores`, task by task; NaN where a row has no label, or
            the model no head.
        loss: [N], the mean over a row's labelled tasks, by their weights; infinite where there is
            none.
    """

    confidence: FloatArray
    loss: FloatArray

    @classmethod
    def join(cls, parts: Sequence["RowScores"]) -> "RowScores":
        """Put the rows of several clients one after another."""
        return cls(
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.loss for part in parts]),
        )


class RowScorer:
    """Scores rows by a model of an experiment, with one set of parameters after another."""

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        self.experiment, self.weights = experiment, experiment.task_weights()
        self.model = build_model(experiment, shapes).eval()
        self.parameters = dict(self.model.named_parameters())
        self.initial = {name: p.detach().clone() for name, p in self.parameters.items()}

    def load(self, arrays: Mapping[str, Float32Array]) -> None:
        """Write parameters; those that are not given are as they were initialised."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                value = arrays.get(name)
                parameter.copy_(self.initial[name] if value is None else torch.tensor(value))

    def score(self, rows: Rows, tasks: Sequence[str]) -> RowScores:
        """Score rows by the parameters that were loaded.

        Args:
            rows: N of them.
            tasks: that the model has heads for; others' scores are NaN.
        """
        known = [task for task in rows.targets if task in tasks]
        with torch.inference_mode():
            outputs, _ = self.model(rows.inputs, known)
        columns = [self._confidence(task, rows, outputs) for task in self.experiment.tasks]
        total, weight = np.zeros(len(rows)), np.zeros(len(rows))
        for task in known:
            kind, mask = self.experiment.tasks[task].kind, rows.labelled[task].numpy()
            losses = ROW_LOSSES[kind](outputs[task], rows.targets[task]).double().numpy()
            total += np.where(mask, losses, 0.0) * self.weights[task]
            weight += mask * self.weights[task]
        loss = np.divide(total, weight, out=np.full(len(rows), np.inf), where=weight > 0)
        return RowScores(np.concatenate(columns, 1), loss)

    def _confidence(self, task: str, rows: Rows, outputs: Mapping[str, Tensor]) -> FloatArray:
        settings = self.experiment.tasks[task]
        width = len(self.experiment.targets(task)) if settings.kind == "multilabel" else 1
        if task not in outputs:
            return np.full((len(rows), width), np.nan)
        scores = confidence_scores(settings.kind, outputs[task], rows.targets[task]).numpy()
        found: FloatArray = np.where(rows.labelled[task].numpy()[:, None], scores, np.nan)
        return found

    def fit_heads(self, trunk: Mapping[str, Float32Array], rows: Rows) -> tuple[str, ...]:
        """Load a trunk and fit all that it lacks to rows of one's own; the trunk does not move.

        Args:
            trunk: what travelled; heads among it stay as they are.
            rows: the attacker's, of all clients together.

        Returns:
            The tasks that there are heads for now.
        """
        self.load(trunk)
        shared = set(shared_names(self.parameters, self.experiment))
        learned = set(learned_names(self.parameters, self.experiment))
        tasks = [task for task, mask in rows.labelled.items() if bool(mask.any())]
        own = [
            parameter
            for name, parameter in self.parameters.items()
            if name in learned and name not in shared and task_of(name) in (None, *tasks)
        ]
        there = {task_of(name) for name in shared if name.startswith("heads.")}
        if own:
            self._fit(own, rows, tasks)
        return tuple({*tasks, *(task for task in there if task is not None)})

    def _fit(self, parameters: list[torch.nn.Parameter], rows: Rows, tasks: Sequence[str]) -> None:
        optimiser = torch.optim.Adam(parameters, lr=FIT_RATE)
        for _ in range(FIT_STEPS):
            outputs, _ = self.model(rows.inputs, tasks)
            losses = {}
            for task in tasks:
                mask, kind = rows.labelled[task], self.experiment.tasks[task].kind
                losses[task] = ROW_LOSSES[kind](
                    outputs[task][mask], rows.targets[task][mask]
                ).mean()
            gradients = torch.autograd.grad(
                combine_losses(losses, self.weights), parameters, allow_unused=True
            )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
