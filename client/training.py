"""Local training and evaluation: plain PyTorch on one resident model, no Flower.

A process keeps one `Trainer` per experiment and lends it to one client after another: the shared
parameters it was sent and the client's own are written in, trained, and read out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from client.batches import epoch_order, label_patterns
from client.flat import FlatParameters, FloatArray, merge_neighbours
from client.optimisers import make_optimiser
from common.dataset import ClientData, Rows
from common.experiment import Experiment
from common.losses import ROW_LOSSES, combine_losses
from common.metrics import Sums, metric_sums
from common.model import InputShapes, SeededDropout, build_model
from common.seeding import torch_generator
from common.sharing import head_task, shared_names

TaskSums = dict[str, dict[str, Sums]]  # task -> "loss" or metric -> additive numbers


def choose_device(wanted: str) -> torch.device:
    """Pick the device: as named, or for "auto" the first of CUDA, MPS, CPU that is there."""
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass
class Trainer:
    """One resident model and what is done with it.

    Attributes:
        experiment: settings of the run.
        shapes: input name -> shape of one row.
        device: where it computes.
    """

    experiment: Experiment
    shapes: InputShapes
    device: torch.device
    flat: FlatParameters = field(init=False)

    def __post_init__(self) -> None:
        model = build_model(self.experiment, self.shapes).to(self.device)
        self.model = model
        self.flat = FlatParameters(model)
        self.initial = self.flat.values.clone()
        self.shared = shared_names(self.flat.slices, self.experiment.federation.algorithm)
        self._dropouts = [m for m in model.modules() if isinstance(m, SeededDropout)]

    def own_names(self, tasks: tuple[str, ...]) -> list[str]:
        """Name the parameters that stay with a client which holds these tasks."""
        shared = set(self.shared)
        return [n for n in self.flat.slices if n not in shared and head_task(n) in tasks]

    def load(self, shared: Mapping[str, FloatArray], own: Mapping[str, FloatArray]) -> None:
        """Start from a received trunk and a client's own heads; heads it never trained are new.

        Raises:
            ShapeError: an array does not fit this experiment's model.
        """
        self.flat.values.copy_(self.initial)
        self.flat.write(shared)
        self.flat.write(own)

    def train(self, data: ClientData, weights: Mapping[str, float], round_number: int) -> TaskSums:
        """Train the loaded model for the round's local epochs.

        Args:
            data: the client's rows, on any device.
            weights: task name -> w_t of the round.
            round_number: names the random streams of this round.

        Returns:
            Per task the summed training loss and the labelled rows it was summed over.
        """
        settings, seed = self.experiment.training, self.experiment.seed
        patterns = label_patterns(data.train.labelled)
        for dropout in self._dropouts:
            dropout.generator = torch_generator(seed, "dropout", data.name, round_number)
        uniform = all(bool(mask.all()) for mask in data.train.labelled.values())
        optimiser = make_optimiser(self.flat.values, self.flat.gradients, settings)
        taught: dict[str, list[tuple[Tensor, int]]] = {task: [] for task in data.tasks}
        self.model.train()
        for epoch in range(settings.epochs):
            order = epoch_order(
                patterns, settings.balance, seed, "shuffle", data.name, round_number, epoch
            )
            rows = data.train.select(torch.from_numpy(order)).to(self.device)
            for start in range(0, len(order), settings.batch_size):
                batch = slice(start, start + settings.batch_size)
                active = self._backward(rows, batch, weights, uniform, taught)
                optimiser.step(self._places(active, uniform))
        return {task: {"loss": summed(batches)} for task, batches in taught.items()}

    def evaluate(self, data: ClientData, split: str) -> TaskSums:
        """Sum loss and metric per task over one split; tasks without a label there are absent."""
        rows = data.splits[split].to(self.device)
        if not len(rows):
            return {}
        self.model.eval()
        with torch.inference_mode():
            outputs = self.model(rows.inputs, data.tasks)
            return {
                task: self._task_sums(task, outputs[task][mask], rows.targets[task][mask], data)
                for task, mask in rows.labelled.items()
                if bool(mask.any())
            }

    def _backward(
        self,
        rows: Rows,
        batch: slice,
        weights: Mapping[str, float],
        uniform: bool,
        taught: Mapping[str, list[tuple[Tensor, int]]],
    ) -> tuple[str, ...]:
        """Leave the gradient of one batch's loss in the flat buffer; name the tasks it taught."""
        inputs = {name: values[batch] for name, values in rows.inputs.items()}
        outputs = self.model(inputs, rows.targets)
        losses: dict[str, Tensor] = {}
        for task, target in rows.targets.items():
            output, truth = outputs[task], target[batch]
            if not uniform:
                mask = rows.labelled[task][batch]
                output, truth = output[mask], truth[mask]
            if not len(truth):
                continue
            losses[task] = ROW_LOSSES[self.experiment.tasks[task].kind](output, truth).mean()
            taught[task].append((losses[task].detach(), len(truth)))
        self.flat.gradients.zero_()
        torch.autograd.backward(combine_losses(losses, weights))
        return tuple(losses)

    def _places(self, active: tuple[str, ...], uniform: bool) -> list[slice]:
        """Find the parts of the buffer that step: trunk and the heads of the tasks just taught.

        Where every batch teaches the same tasks, neighbouring parts step as one.
        """
        places = [self.flat.segments[name] for name in ("trunk", *active)]
        if uniform:
            return merge_neighbours(places)
        return [place for place in places if place.start < place.stop]

    def _task_sums(
        self, task: str, output: Tensor, target: Tensor, data: ClientData
    ) -> dict[str, Sums]:
        settings = self.experiment.tasks[task]
        losses = ROW_LOSSES[settings.kind](output, target)
        scale = data.target_scales.get(task)
        return {
            "loss": [float(losses.double().sum()), float(len(target))],
            settings.metric_name: metric_sums(
                settings.metric_name, settings.kind, output, target, scale
            ),
        }


def summed(batches: list[tuple[Tensor, int]]) -> Sums:
    """Sum the losses of all rows from each batch's mean and count: [loss sum, rows]."""
    if not batches:
        return [0.0, 0.0]
    means = torch.stack([mean for mean, _ in batches]).tolist()
    counts = [count for _, count in batches]
    return [sum(m * n for m, n in zip(means, counts, strict=True)), float(sum(counts))]
