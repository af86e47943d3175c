"""All clients of an experiment in memory, to be trained and evaluated together.

Everything is resident: all clients' rows in one set of tensors, all clients' own parameters in one
matrix. A round gathers its clients' parameters as rows of a matrix and trains them together
(`client.cohort`), in chunks that bound the memory.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import Index, row_patterns, shuffle_key
from client.cohort import largest_first
from client.cohort_evaluation import EvaluationStore, evaluate_cohort
from client.discretion import Discretion
from client.learners import Learners
from client.own_arrays import (
    BEST,
    KEPT,
    as_of_best,
    best_round,
    memory_arrays,
    set_aside,
)
from client.place import Place
from client.protection import Protection
from client.row_store import RowStore
from client.session import open_session
from common.metrics import METRICS
from common.model import output_width
from common.preparation import UnusableClientError
from common.sharing import divide_beside, learned_names, task_of
from common.sums_form import EPOCHS
from common.wire import FloatArray, Instruction
from server.bulk import BulkReplies
from server.sums import Matrix, SumTable
from simulations.chunk_lesson import ChunkLesson
from simulations.client_log import Own

EVALUATED = ("validation", "test")
CHUNK_BYTES = 8 * 2**20  # parameters of clients that train together: bounds memory, fits a cache

Sums = dict[str, dict[str, dict[str, Matrix]]]  # as in SumTable


@dataclass(frozen=True)
class Arrived:
    """What a message brought.

    Attributes:
        columns: of what clients share.
        trunk: [Q], its values.
        beside: name -> [P], what travels beside it.
    """

    columns: Tensor | slice
    trunk: Tensor
    beside: dict[str, Tensor]


class Residents:
    """All clients of an experiment, whose model has a stacked form, in memory."""

    def __init__(self, names: Sequence[str], instruction: Instruction) -> None:
        session = open_session(instruction.experiment, instruction.agreement, Place(simulated=True))
        self.experiment, self.trainer = session.experiment, session.trainer
        cohorts = self.trainer.cohorts
        if cohorts is None:
            raise RuntimeError("a model without a stacked form reached the batched engine")
        self.discretion = Discretion(self.experiment, self.experiment.seed)
        self.protection = Protection(self.experiment, self.experiment.seed)
        self.cohorts, self.layout = cohorts, self.trainer.flat.layout
        data = []
        for name in names:
            with suppress(UnusableClientError):  # left out; the roster never asks for it
                own, device = session.client(name), self.trainer.device
                splits = {split: rows.to(device) for split, rows in own.splits.items()}
                data.append(replace(own, splits=splits))  # also where one alone would stay outside
        self.place = {client.name: row for row, client in enumerate(data)}
        inputs = tuple(self.experiment.inputs)
        self.train_store = RowStore.of([d.train for d in data], inputs, cohorts.model.tasks)
        self.stores = {s: EvaluationStore.of(data, s, inputs) for s in EVALUATED}
        self.tasks = [d.tasks for d in data]
        self.patterns = [row_patterns(d.train, self.experiment) for d in data]
        seed = self.experiment.seed
        self.keys = np.array([shuffle_key(seed, name) for name in self.place], np.uint64)
        session.forget_clients()
        shared = set(self.trainer.shared)
        learned = learned_names(self.layout.slices, self.experiment)
        self.own_names = [name for name in learned if name not in shared]
        self.own_columns = self._columns(self.own_names)
        frozen = [name for name in self.layout.slices if name not in {*learned}]
        self._frozen = self._columns(frozen) if frozen else None
        width = len(self.trainer.initial[self.own_columns])
        self.own = self.trainer.initial[self.own_columns].expand(len(data), width).clone()
        self.rounds = np.zeros(len(data), np.int64)
        # What each client's loss weighting remembers, name -> [clients, T]; empty unless "local".
        self.memory: dict[str, Tensor] = {}
        if self.experiment.loss.scope == "local":
            first = self.trainer.rules.remember({}, self.own.device)
            self.memory = {name: row.repeat(len(data), 1) for name, row in first.items()}
        self.algorithm = self.trainer.algorithm
        # What the algorithm keeps at home, each like the parameters, [clients, P].
        blank = self.trainer.initial.expand(len(data), self.layout.size)
        self.kept = {kind: blank.clone() for kind in self.algorithm.KEEPS}
        self.chunk = max(1, CHUNK_BYTES // (4 * self.layout.size))
        self.best: dict[str, dict[str, FloatArray]] = {}  # what clients set aside
        # Kept from round to round: fresh memory costs a page fault per page.
        self._values = self.own.new_empty(0, self.layout.size)
        self._known_cuts: dict[tuple[str, ...], list[tuple[str, slice, tuple[int, ...]]]] = {}

    def train(
        self, clients: Sequence[str], received: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Train clients, chunk by chunk; their own parameters are kept.

        The replies' trunks are good until the next call.
        """
        members = self._members(clients)
        self._set_aside(clients, instruction.best)
        order = largest_first(self.train_store.counts[members])
        arrived = self._read(received)
        values = self._get_values(len(members))
        beside = {kind: torch.empty_like(values) for kind in arrived.beside}
        trained: dict[str, dict[str, Matrix]] = {task: {} for task in self.train_store.tasks}
        personal = self.experiment.evaluation.model == "personal"
        sums: Sums = self._blank_sums(len(members)) if instruction.evaluate else {}
        for begin in range(0, len(members), self.chunk):
            places = order[begin : begin + self.chunk]
            here = slice(begin, begin + len(places))
            learners = self._begin(members[places], values[here], arrived, instruction)
            if instruction.evaluate and not personal:
                self._evaluate(members, places, self.algorithm.model(learners), sums)
            self.algorithm.train(learners)
            found = self._write_up(members[places], learners)
            if instruction.evaluate and personal:
                self._evaluate(members, places, self.algorithm.model(learners), sums)
            self._keep(members[places], learners, learners.values)
            for kind, sends in learners.sends.items():
                beside[kind][here] = sends
            for task, numbers in found.items():
                for name, matrix in numbers.items():
                    trained[task].setdefault(name, np.zeros((len(members), 2)))[places] = matrix
        self.rounds[members] = instruction.round
        sums["train"] = trained
        sent = [values[:, arrived.columns], *(r[:, arrived.columns] for r in beside.values())]
        rows: FloatArray = (sent[0] if len(sent) == 1 else torch.cat(sent, 1)).cpu().numpy()
        if (order[1:] < order[:-1]).any():
            rows = rows[np.argsort(order)]
        before, held = _side_by_side(received), self._held(members)
        self._send_back(rows, before, received, held)
        rows = self.protection.protect(rows, before, clients, instruction)
        told = self._tell(members, clients, sums, instruction.round)
        return BulkReplies(clients, self._count(members), told, rows, holds=held)

    def evaluate(
        self, clients: Sequence[str], received: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Evaluate clients, chunk by chunk; a personal model trains first and is thrown away."""
        if instruction.returns:
            return self._evaluate_best(clients, received, instruction)
        members = self._members(clients)
        order = largest_first(self.train_store.counts[members])
        arrived = self._read(received)
        sums = self._blank_sums(len(members))
        following = replace(instruction, round=instruction.round + 1)
        remembered = {name: state.clone() for name, state in self.memory.items()}
        for begin in range(0, len(members), self.chunk):
            places = order[begin : begin + self.chunk]
            values = self._get_values(len(places))
            learners = self._begin(members[places], values, arrived, following)
            if instruction.keep:  # what is fitted to the trunk received
                self._keep(members[places], learners, self.algorithm.model(learners))
            if self.experiment.evaluation.model == "personal":
                self.algorithm.train(learners)
                self._write_up(members[places], learners)
            self._evaluate(members, places, self.algorithm.model(learners), sums)
        self.memory = remembered
        if instruction.keep:
            self.rounds[members] = instruction.round
        stream = ("evaluation", instruction.round, int(instruction.keep))
        told = self._tell(members, clients, sums, *stream)
        return BulkReplies(clients, self._count(members), told)

    def _evaluate_best(
        self, clients: Sequence[str], received: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Evaluate clients as they were when the best trunk was; they stay as they are."""
        now = {name: self._copy(own) for name, own in self.own_states(clients).items()}
        then = {}
        for name, own in now.items():
            arrays = as_of_best(own.arrays, instruction.best)
            then[name] = Own(own.round if arrays else 0, arrays)  # 0: it had not trained
        try:
            self.restore(then)
            asked = replace(instruction, round=instruction.best, returns=False)
            return self.evaluate(clients, received, asked)
        finally:
            self.restore(now)

    def _set_aside(self, clients: Sequence[str], best: int) -> None:
        """Let clients set aside what a return to the best trunk needs."""
        if not best:
            return
        late = [name for name in clients if best_round(self.best.get(name, {})) != best]
        for name, own in self.own_states(late).items():
            self.best[name] = set_aside(own.arrays if own.round else {}, best)

    @staticmethod
    def _copy(own: Own) -> Own:
        return Own(own.round, {name: array.copy() for name, array in own.arrays.items()})

    def _tell(
        self, members: Index, clients: Sequence[str], sums: Sums, *stream: str | int
    ) -> SumTable:
        """Get the figures that clients send, as the experiment asks."""
        table = SumTable(clients, sums)
        if self.discretion.is_idle:
            return table
        told = {}
        for member, client in zip(members, clients, strict=True):
            counts = self.train_store.label_counts[member].tolist()
            trained = dict(zip(self.train_store.tasks, counts, strict=True))
            own = {split: table.client(client, split) for split in sums}
            told[client] = self.discretion.reduce(own, trained, client, *stream)
        return SumTable.of(told)

    def _send_back(
        self,
        rows: FloatArray,
        before: FloatArray,
        received: Mapping[str, FloatArray],
        held: NDArray[np.bool_],
    ) -> None:
        """Put what clients received, [Q], in the place of parts of tasks that they lack, [K, Q]."""
        if held.all():
            return
        lacking = dict(zip(self.experiment.tasks, ~held.T, strict=True))
        start = 0
        for name, array in divide_beside(received)[0].items():
            place = slice(start, start + array.size)
            task, start = task_of(name), place.stop
            if task in lacking:
                rows[lacking[task], place] = before[place]

    def _held(self, members: Index) -> NDArray[np.bool_]:
        """Say who has training labels of which of the experiment's tasks, [K, T]."""
        counts = dict(zip(self.train_store.tasks, self.train_store.label_counts.T, strict=True))
        nobody = np.zeros(len(self.place), np.int64)
        columns = [counts.get(task, nobody)[members] > 0 for task in self.experiment.tasks]
        return np.stack(columns, 1)

    def _count(self, members: Index) -> Index:
        """Get how many rows clients say that they count as, or count as where nobody is told."""
        counts, privacy = self.train_store.counts[members], self.experiment.privacy
        told = privacy.counts == "sent" or privacy.secure_aggregation is not None
        return counts if told else np.ones_like(counts)

    def own_states(self, clients: Sequence[str]) -> dict[str, Own]:
        """Cut out what clients keep at home: the heads of their tasks, and norms that stay."""
        values = self.own[self._members(clients)].cpu().numpy()
        states = {}
        for row, client in zip(values, clients, strict=True):
            place = self.place[client]
            cuts = self._cuts(self.tasks[place])
            arrays = {name: row[cut].reshape(shape) for name, cut, shape in cuts}
            if self.memory:
                recalled = self.trainer.rules.recall(self.memory, place)
                arrays |= memory_arrays(recalled, self.tasks[place])
            for kind, rows in self.kept.items():
                names = self.trainer.kept_names(kind, self.tasks[place])
                cut = self.layout.views(rows[place].cpu().numpy(), names)
                arrays |= {f"{KEPT}{kind}.{name}": array for name, array in cut.items()}
            arrays |= self.best.get(client, {})
            states[client] = Own(int(self.rounds[place]), arrays)
        return states

    def _cuts(self, tasks: tuple[str, ...]) -> list[tuple[str, slice, tuple[int, ...]]]:
        """Say where in its own row the parameters of a client with these tasks lie."""
        if tasks not in self._known_cuts:
            held, cuts, start = set(self.trainer.own_names(tasks)), [], 0
            for name in self.own_names:
                shape = self.layout.shapes[name]
                stop = start + int(np.prod(shape))
                if name in held:
                    cuts.append((name, slice(start, stop), shape))
                start = stop
            self._known_cuts[tasks] = cuts
        return self._known_cuts[tasks]

    def trained_clients(self) -> list[str]:
        """Name the clients that have trained."""
        return [name for name, place in self.place.items() if self.rounds[place]]

    def restore(self, states: Mapping[str, Own]) -> None:
        """Put back what clients kept at home."""
        for client, state in states.items():
            place = self.place[client]
            self.rounds[place] = state.round
            self.trainer.load({}, state.arrays)
            self.best[client] = {n: a for n, a in state.arrays.items() if n.startswith(BEST)}
            if self.memory:
                for name, row in self.trainer.remember().items():
                    self.memory[name][place] = row[0]
            self.own[place] = self.trainer.flat.values[self.own_columns]
            for kind, arrays in self.trainer.kept.items():
                if kind in self.kept:
                    row = self.kept[kind][place]
                    for name, array in arrays.items():
                        row[self.layout.slices[name]] = torch.tensor(array.reshape(-1)).to(row)

    def _read(self, received: Mapping[str, FloatArray]) -> "Arrived":
        """Lay out what was received: the trunk, and what travels beside it."""
        trunk, beside = divide_beside(received)
        columns = self._columns(list(trunk))
        rows = {}
        for kind, arrays in beside.items():
            rows[kind] = self.own.new_zeros(self.layout.size)
            rows[kind][self._columns(list(arrays))] = self._flatten(arrays)
        return Arrived(columns, self._flatten(trunk), rows)

    def _begin(
        self, members: Index, values: Tensor, arrived: "Arrived", instruction: Instruction
    ) -> Learners:
        """Let the algorithm make what one chunk of clients starts from."""
        self._load(values, members, arrived.trunk, arrived.columns)
        size = self.experiment.training.batch_size
        learners = Learners(
            values=values,
            kept={},
            received=arrived.beside,
            columns=self.trainer.columns,
            initial=self.trainer.initial,
            batches=-(-self.train_store.counts[members] // size),
            open_lesson=lambda: ChunkLesson(self, members, instruction),
        )
        if self.kept:
            here = torch.from_numpy(members).to(self.own.device)
            new = torch.from_numpy(self.rounds[members] == 0).to(self.own.device).unsqueeze(1)
            for kind, rows in self.kept.items():
                start = self.algorithm.start(kind, learners)
                learners.kept[kind] = torch.where(new, start, rows.index_select(0, here))
        self.algorithm.receive(learners)
        return learners

    def _keep(self, members: Index, learners: Learners, values: Tensor) -> None:
        """Keep what stays home of one chunk of clients, with these parameters, [K, P]."""
        here = torch.from_numpy(members).to(self.own.device)
        self.own.index_copy_(0, here, values[:, self.own_columns])
        for kind, rows in learners.kept.items():
            self.kept[kind].index_copy_(0, here, rows)

    def _members(self, clients: Sequence[str]) -> Index:
        return np.array([self.place[name] for name in clients], np.int64)

    def _columns(self, names: Sequence[str]) -> Tensor | slice:
        """Find the columns of parameters: a slice where they lie side by side in this order."""
        places = [self.layout.slices[name] for name in names]
        if not places:
            return slice(0, 0)
        if all(a.stop == b.start for a, b in itertools.pairwise(places)):
            return slice(places[0].start, places[-1].stop)
        return torch.cat([torch.arange(place.start, place.stop) for place in places])

    def _get_values(self, clients: int) -> Tensor:
        """Get rows for so many clients' parameters, [K, P]; the next round writes them anew."""
        if len(self._values) < clients:
            self._values = self.own.new_empty(clients, self.layout.size)
        return self._values[:clients]

    def _flatten(self, trunk: Mapping[str, FloatArray]) -> Tensor:
        return torch.from_numpy(_side_by_side(trunk)).to(self.own.device)

    def _load(self, values: Tensor, members: Index, flat: Tensor, shared: Tensor | slice) -> None:
        """Write the trunk and each client's own parameters into the clients' rows."""
        if self._frozen is not None:
            values[:, self._frozen] = self.trainer.initial[self._frozen]
        values[:, shared] = flat
        here = torch.from_numpy(members).to(self.own.device)
        values[:, self.own_columns] = self.own.index_select(0, here)

    def _write_up(self, members: Index, learners: Learners) -> dict[str, dict[str, Matrix]]:
        """Write up what one chunk of clients trained; they keep what their weighting learned.

        Args:
            members: [K].
            learners: of these clients.

        Returns:
            Task -> "loss" and what `Balance.report` adds -> [K, 2].
        """
        trained = {task: {"loss": numbers} for task, numbers in learners.sums.items()}
        if self.experiment.training.patience is not None:
            for own in trained.values():
                taught = own["loss"][:, 1] > 0
                own[EPOCHS] = np.stack([learners.lesson.epochs * taught, taught], 1).astype(float)
        balance = learners.lesson.balance
        if balance is None:
            return trained
        report = balance.close(learners.sums, learners.values.device)
        if self.memory:
            here = torch.from_numpy(members).to(self.own.device)
            for name, state in balance.state.items():
                self.memory[name].index_copy_(0, here, state)
        return {task: numbers | report[task] for task, numbers in trained.items()}

    def remembered(self, members: Index, instruction: Instruction) -> dict[str, Tensor]:
        """Get what these clients' loss weighting starts the round with: name -> [K, T]."""
        if self.memory:
            here = torch.from_numpy(members).to(self.own.device)
            return {name: kept.index_select(0, here) for name, kept in self.memory.items()}
        alike = self.trainer.rules.remember(instruction.memory, self.own.device)
        return {name: row.repeat(len(members), 1) for name, row in alike.items()}

    def _blank_sums(self, clients: int) -> Sums:
        blank: Sums = {}
        for split, store in self.stores.items():
            blank[split] = {}
            for task in store.rows.targets:
                settings = self.experiment.tasks[task]
                outputs = output_width(settings, len(self.experiment.targets(task)))
                width = METRICS[settings.metric_name].length(outputs)
                blank[split][task] = {
                    "loss": np.zeros((clients, 2)),
                    settings.metric_name: np.zeros((clients, width)),
                }
        return blank

    def _evaluate(self, members: Index, places: Index, values: Tensor, sums: Sums) -> None:
        """Fill in the sums of one chunk of clients, on the validation and the test rows."""
        for split, store in self.stores.items():
            grouped = evaluate_cohort(
                self.cohorts.model, self.experiment, store, members[places], values
            )
            for task, numbers in grouped.items():
                for name, matrix in numbers.items():
                    sums[split][task][name][places] = matrix.cpu().numpy()


def _side_by_side(arrays: Mapping[str, FloatArray]) -> FloatArray:
    """Lay named arrays side by side, [Q]."""
    parts = [array.reshape(-1) for array in arrays.values()]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
