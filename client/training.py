"""Local training and evaluation of one client after another on one resident model, no Flower.

A process keeps one `Trainer` per experiment and lends it to one client after another: the shared
parameters it was sent and the client's own are written in, trained, and read out. Models with a
stacked form (`client.stacked_model`) train there, as a cohort of one; any other trains by autograd.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from client.algorithms.algorithm import open_algorithm
from client.autograd import AutogradTrainer
from client.batch_source import BatchSource
from client.batches import row_patterns, shuffle_key
from client.cohort import Cohort, CohortTrainer, LossSums
from client.cohort_evaluation import EvaluationStore
from client.compiling import Compiled
from client.flat import HEADS, FlatParameters, FloatArray
from client.learners import Columns, Learners
from client.own_arrays import KEPT, divide_own, memory_arrays
from client.phases import Parts, Phase, divide_parts
from client.precision import require_precision
from client.row_privacy import Draws, open_draws
from client.row_store import RowStore
from client.solo_lesson import SoloLesson
from client.stacked_model import StackedModel, find_obstacle
from client.tally import Tally, TaskSums
from common.dataset import ClientData, Rows
from common.encoder import InputShapes
from common.errors import ConfigError
from common.experiment import Experiment
from common.model import build_model
from common.privacy.randomness import secret_key
from common.seeding import torch_generator
from common.sharing import (
    divide_beside,
    learned_names,
    shared_names,
    task_of,
    task_parts_travel,
)
from common.sums_form import EPOCHS
from common.threads import set_threads
from common.weighting.balance import Balance, Memory, Rules

AT_ONCE = 2**20  # inputs of the rows that are evaluated together, in numbers: bounds the memory


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
        simulated: whether clients are, so that their noise may follow from the seed.
        flat: the model's parameters.
        shared: names of those that travel.
        parts: what moves -> "trunk" and task name -> what steps together, with its rates of
            regularisation.
        algorithm: what a client does with trunk and heads.
        columns: which parameters are which.
        cohorts: trains the model's stacked form; None where it has none.
    """

    experiment: Experiment
    shapes: InputShapes
    device: torch.device
    simulated: bool = False
    flat: FlatParameters = field(init=False)
    shared: list[str] = field(init=False)
    parts: Parts = field(init=False)
    cohorts: CohortTrainer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        set_threads(self.experiment.training.threads)
        require_precision(self.experiment.training.precision, self.device)
        self.model = build_model(self.experiment, self.shapes).to(self.device)
        self.flat = FlatParameters(self.model)
        self.initial = self.flat.values.clone()
        self.shared = shared_names(self.flat.layout.slices, self.experiment)
        self._own_names: dict[tuple[str, ...], list[str]] = {}
        self.parts = divide_parts(self.flat.layout, self.experiment)
        self.algorithm = open_algorithm(self.experiment)
        self.columns = Columns(self.flat.layout, self.experiment, self.device)
        self.kept: dict[str, dict[str, FloatArray]] = {}  # of the loaded client's algorithm
        self._received: dict[str, Tensor] = {}  # what came beside the trunk, name -> [P]
        self._row = self.flat.values.unsqueeze(0)
        self._cohorts: dict[str, tuple[ClientData, Cohort]] = {}
        self._held_out: dict[str, tuple[ClientData, EvaluationStore]] = {}
        self.rules = Rules(self.experiment)
        self._best: dict[str, FloatArray] = {}  # what the client set aside
        self._memory: dict[str, dict[str, float]] = {}  # the client's own, under scope "local"
        if find_obstacle(self.experiment) is None:
            stacked = StackedModel(self.experiment, self.model, self.flat.layout)
            self.cohorts = CohortTrainer(stacked, self.flat.layout, self.experiment)
        compiles = self.experiment.training.compile and self.cohorts is None
        compute = Compiled(self.model, "the model") if compiles else self.model
        self._autograd = AutogradTrainer(
            self.experiment, self.model, self.flat, self.parts, compute
        )

    def own_names(self, tasks: tuple[str, ...]) -> list[str]:
        """Name the parameters that stay with a client which holds these tasks.

        Where the trunk's parts of single tasks travel, a client computes with those of all tasks;
        what of them stays home, such as norms, it keeps for all tasks.
        """
        if tasks not in self._own_names:
            shared = set(self.shared)
            learned = learned_names(self.flat.layout.slices, self.experiment)
            names = [name for name in learned if name not in shared]
            everything = task_parts_travel(self.experiment)
            self._own_names[tasks] = [
                name
                for name in names
                if task_of(name) in (None, *tasks) or (everything and name.startswith("trunk."))
            ]
        return self._own_names[tasks]

    def load(self, received: Mapping[str, FloatArray], own: Mapping[str, FloatArray]) -> None:
        """Start from what was received and what the client keeps; heads it never trained are new.

        Raises:
            ShapeError: an array does not fit this experiment's model.
        """
        kinds = divide_own(own)
        shared, beside = divide_beside(received)
        if len(shared) + len(kinds.parameters) < len(self.flat.layout.slices):
            self.flat.values.copy_(self.initial)
        self.flat.write(shared)
        self.flat.write(kinds.parameters)
        # What an earlier run's algorithm kept is of no use to another.
        self.kept = {k: kinds.kept[k] for k in self.algorithm.KEEPS if k in kinds.kept}
        self._best = kinds.best
        self._received = {
            kind: self._lay_out(arrays, torch.zeros_like(self.flat.values))
            for kind, arrays in beside.items()
        }
        self._memory = {
            task: dict(zip(self.rules.initial, values.tolist(), strict=True))
            for task, values in kinds.memory.items()
        }

    def _lay_out(self, arrays: Mapping[str, FloatArray], row: Tensor) -> Tensor:
        """Write named arrays into a row of parameters, [P], and return it."""
        self.flat.layout.check(arrays)
        for name, array in arrays.items():
            values = torch.tensor(np.asarray(array).reshape(-1))
            row[self.flat.layout.slices[name]] = values.to(row)
        return row

    def own_arrays(self, tasks: tuple[str, ...]) -> dict[str, FloatArray]:
        """Get what stays with a client which holds these tasks; good until it changes."""
        own = self.flat.peek(self.own_names(tasks)) | memory_arrays(self._memory, tasks)
        for kind, arrays in self.kept.items():
            names = self.kept_names(kind, tasks)
            own |= {f"{KEPT}{kind}.{name}": arrays[name] for name in names}
        return own | self._best

    def kept_names(self, kind: str, tasks: tuple[str, ...]) -> list[str]:
        """Name the parameters of which the algorithm keeps something at such a client.

        Heads that travel and are of other tasks are as they were received.
        """
        whole = self.algorithm.KEEPS[kind] == "model"
        shared = [n for n in self.shared if task_of(n) in (None, *tasks) or not n.startswith(HEADS)]
        return [*shared, *(self.own_names(tasks) if whole else ())]

    def begin(
        self,
        data: ClientData,
        weights: Mapping[str, float],
        round_number: int,
        memory: Memory | None = None,
    ) -> Learners:
        """Let the algorithm make of the loaded client what a round starts from.

        Args:
            data: the client's rows, on any device.
            weights: task name -> w_t of the round.
            round_number: names the random streams of this round.
            memory: what loss scaling and weighting remember, under scope "global".
        """
        rows, size = len(data.train), self.experiment.training.batch_size
        learners = Learners(
            values=self._row,
            kept={},
            received=self._received,
            columns=self.columns,
            initial=self.initial,
            batches=np.array([-(-rows // size)], np.int64),
            open_lesson=lambda: SoloLesson(self, data, weights, round_number, memory),
        )
        for kind in self.algorithm.KEEPS:
            start = self.algorithm.start(kind, learners)
            self._lay_out(self.kept.get(kind, {}), start[0])
            learners.kept[kind] = start
        self.algorithm.receive(learners)
        return learners

    def complete(self, learners: Learners) -> TaskSums:
        """Train for one round, and keep what the algorithm keeps.

        Returns:
            Per task the summed training loss and the labelled rows it was summed over, and what
            `Balance.report` adds.
        """
        self.algorithm.train(learners)
        self.keep(learners)
        written: TaskSums = {t: {"loss": both[0].tolist()} for t, both in learners.sums.items()}
        if learners.lesson.balance is not None:
            self._write_up(learners.lesson.balance, learners.sums, written)
        if self.experiment.training.patience is not None:
            for own in written.values():
                if own["loss"][1]:
                    own[EPOCHS] = [float(learners.lesson.epochs[0]), 1.0]
        return written

    def keep(self, learners: Learners) -> None:
        """Keep, for `own_arrays`, what the algorithm keeps."""
        names = list(self.flat.layout.slices)
        self.kept = {
            kind: self.flat.layout.views(rows[0].cpu().numpy(), names)
            for kind, rows in learners.kept.items()
        }

    def train(
        self,
        data: ClientData,
        weights: Mapping[str, float],
        round_number: int,
        memory: Memory | None = None,
    ) -> TaskSums:
        """Train the loaded client for one round: `begin` and `complete`."""
        return self.complete(self.begin(data, weights, round_number, memory))

    def sent_arrays(self, learners: Learners) -> dict[str, FloatArray]:
        """Copy out what is sent after a round."""
        sent = self.flat.read(self.shared)
        for kind, rows in learners.sends.items():
            arrays = self.flat.layout.views(rows[0].cpu().numpy(), self.shared)
            sent |= {f"{kind}.{name}": array for name, array in arrays.items()}
        return sent

    @contextmanager
    def lent(self, values: Tensor) -> Iterator[None]:
        """Put other parameters, [1, P], in the model's place; what became of them is theirs."""
        if values is self._row:
            yield
            return
        before = self._row.clone()
        self._row.copy_(values)
        try:
            yield
        finally:
            values.copy_(self._row)
            self._row.copy_(before)

    def teach(
        self,
        data: ClientData,
        weights: Mapping[str, float],
        balance: Balance | None,
        round_number: int,
        generator: torch.Generator | None,
        phase: Phase,
        draws: Draws,
    ) -> LossSums:
        """Train the parameters at hand by autograd for one phase."""
        # Parts of tasks that the client lacks go back as they came: no step moves them, but
        # computing with them moves batch norm's running statistics.
        places = [self.flat.layout.slices[name] for name in self._foreign_names(data.tasks)]
        kept = [self.flat.values[place].clone() for place in places]
        sums = self._autograd.train(data, weights, balance, round_number, generator, phase, draws)
        for place, values in zip(places, kept, strict=True):
            self.flat.values[place] = values
        return {task: np.array([numbers]) for task, numbers in sums.items()}

    def remember(self) -> dict[str, Tensor]:
        """Lay out what the loaded client's loss weighting remembers, as `Rules.remember`."""
        return self.rules.remember(self._memory, self.device)

    def balance(self, weights: Mapping[str, float], memory: Memory) -> Balance | None:
        """Put the rules to work on what they remember; None where they are fixed."""
        if self.rules.is_fixed:
            return None
        local = self.experiment.loss.scope == "local"
        state = self.remember() if local else self.rules.remember(memory, self.device)
        return Balance(self.rules, state, {**dict.fromkeys(self.rules.tasks, 1.0), **weights})

    def _foreign_names(self, tasks: tuple[str, ...]) -> list[str]:
        """Name the shared parts of the trunk that belong to other tasks than these."""
        trunk = [name for name in self.shared if name.startswith("trunk.")]
        return [name for name in trunk if task_of(name) not in (None, *tasks)]

    def _write_up(self, balance: Balance, losses: LossSums, written: TaskSums) -> None:
        """Add what the rules report of the tasks that were taught; keep what is the client's."""
        report, recalled = balance.close(losses, self.device), self.rules.recall(balance.state)
        for task in [task for task, both in losses.items() if both[0, 1]]:
            written[task] |= {name: sums[0].tolist() for name, sums in report[task].items()}
            if self.experiment.loss.scope == "local":
                self._memory[task] = recalled[task]

    def evaluate(self, data: ClientData, split: str, *, losses_only: bool = False) -> TaskSums:
        """Sum loss and metric per task over one split; tasks without a label there are absent."""
        tally = Tally(self.experiment, data, losses_only=losses_only)
        source = BatchSource(data.splits[split], self.device, resident=data.resident)
        width = sum(math.prod(shape) for shape in self.shapes.values())
        with torch.inference_mode():
            for rows in source.in_order(max(1, AT_ONCE // max(1, width))):
                outputs = self._outputs(rows)
                for task, mask in rows.labelled.items():
                    if bool(mask.any()):
                        tally.add(task, outputs[task][mask], rows.targets[task][mask])
            return tally.sums()

    def generator(self, client: str, round_number: int) -> torch.Generator | None:
        """Make the generator of a client's dropout masks, where the model has any.

        Masks go by a row's place in its batch. Were they known, as those of the seed are, one row
        more would change the gradients of all behind it: example-level privacy needs them secret.
        """
        if not self.model.dropouts:
            return None
        if self.experiment.privacy.example_level is not None and not self.simulated:
            return torch.Generator().manual_seed(secret_key(None))
        return torch_generator(self.experiment.seed, "dropout", client, round_number)

    def draws(self, clients: Sequence[str], round_number: int) -> Draws:
        """Make clients' generators of row samples and noise, under example-level privacy."""
        return open_draws(self.experiment, clients, round_number, simulated=self.simulated)

    def alone(self, stack: StackedModel, data: ClientData) -> Cohort:
        """Make a cohort of one client; the second call for the same data is free."""
        kept = self._cohorts.get(data.name)
        if kept is None or kept[0] is not data:
            rows, names = data.train, tuple(self.experiment.inputs)
            cohort = Cohort(
                store=RowStore.of([rows.to(self.device)], names, stack.tasks)
                if data.resident
                else RowStore.gathering(rows, names, stack.tasks, self.device),
                members=np.zeros(1, np.int64),
                keys=np.array([shuffle_key(self.experiment.seed, data.name)], np.uint64),
                patterns=[row_patterns(rows, self.experiment)],
            )
            kept = self._cohorts[data.name] = (data, cohort)
        return kept[1]

    def held_out(self, data: ClientData) -> EvaluationStore:
        """Make a store of one client's validation rows; the second call for the same is free."""
        kept = self._held_out.get(data.name)
        if kept is None or kept[0] is not data:
            splits = {name: rows.to(self.device) for name, rows in data.splits.items()}
            own = replace(data, splits=splits)
            store = EvaluationStore.of([own], "validation", tuple(self.experiment.inputs))
            kept = self._held_out[data.name] = (data, store)
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
