"""Local training and evaluation of one client after another on one resident model, no Flower.

A process keeps one `Trainer` per experiment and lends it to one client after another: the shared
parameters it was sent and the client's own are written in, trained, and read out. Models with a
stacked form (`client.stacked_model`) train there, as a cohort of one; any other trains by autograd.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from client.batches import epoch_order, label_patterns, shuffle_key
from client.cohort import Cohort, CohortTrainer
from client.compiling import Compiled
from client.flat import TRUNK, FlatParameters, FloatArray
from client.optimisers import Part, make_optimiser, make_parts
from client.row_store import RowStore
from client.stacked_model import StackedModel, find_obstacle
from common.dataset import ClientData, Rows
from common.encoder import InputShapes, SeededDropout
from common.errors import ConfigError
from common.experiment import Experiment
from common.losses import ROW_LOSSES, combine_losses
from common.metrics import Sums, metric_sums
from common.model import build_model
from common.seeding import torch_generator
from common.sharing import shared_names, task_of
from common.threads import set_threads

TaskSums = dict[str, dict[str, Sums]]  # task -> "loss" or metric -> additive numbers


def choose_device(wanted: str) -> torch.device:
    """Pick the device: as named, or for "auto" the first of CUDA, MPS, CPU that is there.

    Raises:
        ConfigError: the machine has no such device.
    """
    found = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if wanted == "auto":
        return torch.device(next(kind for kind, count in found.items() if count))
    device = torch.device(wanted)
    if (device.index or 0) >= found[device.type]:
        there = ", ".join(f"{count} {kind}" for kind, count in found.items() if count)
        raise ConfigError(
            f"training.device must be a device of this machine ({there}), got '{wanted}'; "
            "'auto' takes the best there is"
        )
    return device


@dataclass
class Trainer:
    """One resident model and what is done with it.

    Attributes:
        experiment: settings of the run.
        shapes: input name -> shape of one row.
        device: where it computes.
        flat: the model's parameters.
        shared: names of those that travel.
        parts: "trunk" and task name -> what steps together, with its rates of regularisation.
        cohorts: trains the model's stacked form; None where it has none.
    """

    experiment: Experiment
    shapes: InputShapes
    device: torch.device
    flat: FlatParameters = field(init=False)
    shared: list[str] = field(init=False)
    parts: dict[str, Part] = field(init=False)
    cohorts: CohortTrainer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        set_threads(self.experiment.training.threads)
        self.model = build_model(self.experiment, self.shapes).to(self.device)
        self.flat = FlatParameters(self.model)
        self.initial = self.flat.values.clone()
        self.shared = shared_names(self.flat.layout.slices, self.experiment)
        self._own_names: dict[tuple[str, ...], list[str]] = {}
        self.parts = make_parts(self.flat.layout, self.experiment)
        self._row = self.flat.values.unsqueeze(0)
        self._cohorts: dict[str, tuple[ClientData, Cohort]] = {}
        self._dropouts = [m for m in self.model.modules() if isinstance(m, SeededDropout)]
        compiles = self.experiment.training.compile
        self._compute = Compiled(self.model, "the model") if compiles else self.model
        if find_obstacle(self.experiment) is None:
            stacked = StackedModel(self.experiment, self.model, self.flat.layout)
            self.cohorts = CohortTrainer(stacked, self.flat.layout, self.experiment)

    def own_names(self, tasks: tuple[str, ...]) -> list[str]:
        """Name the parameters that stay with a client which holds these tasks."""
        if tasks not in self._own_names:
            shared = set(self.shared)
            names = [n for n in self.flat.layout.slices if n not in shared]
            self._own_names[tasks] = [n for n in names if task_of(n) in (None, *tasks)]
        return self._own_names[tasks]

    def load(self, shared: Mapping[str, FloatArray], own: Mapping[str, FloatArray]) -> None:
        """Start from a received trunk and a client's own parameters; what it never trained is new.

        Raises:
            ShapeError: an array does not fit this experiment's model.
        """
        if len(shared) + len(own) < len(self.flat.layout.slices):
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
        generator = self._generator(data.name, round_number)
        if self.cohorts is None:
            return self._train_by_autograd(data, weights, round_number, generator)
        generators = [] if generator is None else [generator]
        cohort = self._alone(self.cohorts.model, data)
        sums = self.cohorts.train(cohort, self._row, weights, round_number, generators)
        return {task: {"loss": numbers[0].tolist()} for task, numbers in sums.items()}

    def evaluate(self, data: ClientData, split: str) -> TaskSums:
        """Sum loss and metric per task over one split; tasks without a label there are absent."""
        rows = data.splits[split].to(self.device)
        if not len(rows):
            return {}
        with torch.inference_mode():
            outputs = self._outputs(rows)
            return {
                task: self._task_sums(task, outputs[task][mask], rows.targets[task][mask], data)
                for task, mask in rows.labelled.items()
                if bool(mask.any())
            }

    def _generator(self, client: str, round_number: int) -> torch.Generator | None:
        """Make the generator of a client's dropout masks, where the model has any."""
        if not self._dropouts:
            return None
        return torch_generator(self.experiment.seed, "dropout", client, round_number)

    def _alone(self, stack: StackedModel, data: ClientData) -> Cohort:
        """Make a cohort of one client; the second call for the same data is free."""
        kept = self._cohorts.get(data.name)
        if kept is None or kept[0] is not data:
            rows = data.train.to(self.device)
            cohort = Cohort(
                store=RowStore.of([rows], tuple(self.experiment.inputs), stack.tasks),
                members=np.zeros(1, np.int64),
                keys=np.array([shuffle_key(self.experiment.seed, data.name)], np.uint64),
                patterns=[label_patterns(rows.labelled)],
            )
            kept = self._cohorts[data.name] = (data, cohort)
        return kept[1]

    def _outputs(self, rows: Rows) -> dict[str, Tensor]:
        if self.cohorts is None:
            self.model.eval()
            outputs: dict[str, Tensor] = self.model(rows.inputs, tuple(rows.targets))[0]
            return outputs
        inputs = rows.side_by_side(tuple(self.experiment.inputs)).unsqueeze(0)
        stacked = self.cohorts.model
        stacked.bind(self._row)
        side_by_side = stacked.outputs(inputs)
        return {task: own[0] for task, own in stacked.tasks.cut(side_by_side).items()}

    def _train_by_autograd(
        self,
        data: ClientData,
        weights: Mapping[str, float],
        round_number: int,
        generator: torch.Generator | None,
    ) -> TaskSums:
        settings, seed = self.experiment.training, self.experiment.seed
        key, count = shuffle_key(seed, data.name), len(data.train)
        patterns = label_patterns(data.train.labelled)
        optimiser = make_optimiser(
            self._row, settings, self.parts.values(), self.flat.gradients.unsqueeze(0)
        )
        taught: dict[str, list[tuple[Tensor, int]]] = {task: [] for task in data.tasks}
        for dropout in self._dropouts:
            dropout.generator = generator
        self.model.train()
        for epoch in range(settings.epochs):
            order = epoch_order(count, patterns, settings.balance, key, round_number, epoch)
            rows = data.train.select(torch.from_numpy(order)).to(self.device)
            for start in range(0, len(order), settings.batch_size):
                batch = rows.select(slice(start, start + settings.batch_size))
                losses, penalty = self._forward(batch, taught)
                self._backward(losses, weights, penalty)
                optimiser.step(1, [self.parts[name] for name in (TRUNK, *losses)])
        return {task: {"loss": _summed(batches)} for task, batches in taught.items()}

    def _forward(
        self, rows: Rows, taught: Mapping[str, list[tuple[Tensor, int]]]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Compute the mean loss of each task that one batch teaches, and note it in `taught`.

        Returns:
            Task name -> []; and what the sharing architecture adds, [] or None.
        """
        outputs, penalty = self._compute(rows.inputs, tuple(rows.targets), rows.labelled)
        losses: dict[str, Tensor] = {}
        for task, mask in rows.labelled.items():
            count = int(mask.sum())
            if not count:
                continue
            output, truth = outputs[task], rows.targets[task]
            if count < len(mask):
                output, truth = output[mask], truth[mask]
            losses[task] = ROW_LOSSES[self.experiment.tasks[task].kind](output, truth).mean()
            taught[task].append((losses[task].detach(), count))
        return losses, penalty

    def _backward(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], penalty: Tensor | None
    ) -> None:
        """Leave the gradient of the weighted losses and the penalty in the flat buffer."""
        self.flat.gradients.zero_()
        loss = combine_losses(losses, weights)
        torch.autograd.backward(loss if penalty is None else loss + penalty)

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


def _summed(batches: list[tuple[Tensor, int]]) -> Sums:
    """Sum the losses of all rows from each batch's mean and count: [loss sum, rows]."""
    if not batches:
        return [0.0, 0.0]
    means = torch.stack([mean for mean, _ in batches]).tolist()
    counts = [count for _, count in batches]
    return [sum(m * n for m, n in zip(means, counts, strict=True)), float(sum(counts))]
