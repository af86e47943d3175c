"""All clients of an experiment in memory, to be trained and evaluated together.

Everything is resident: all clients' rows in one set of tensors, all clients' own parameters in one
matrix. A round gathers its clients' parameters as rows of a matrix and trains them together
(`client.cohort`), in chunks that bound the memory.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from client.batches import Index, label_patterns, shuffle_key
from client.cohort import Cohort, largest_first
from client.cohort_evaluation import EvaluationStore, evaluate_cohort
from client.place import Place
from client.row_store import RowStore
from client.session import open_session
from client.training import memory_arrays
from common.metrics import METRICS
from common.model import output_width
from common.preparation import UnusableClientError
from common.seeding import torch_generator
from common.weighting.balance import Balance
from common.wire import FloatArray, Instruction
from server.bulk import BulkReplies
from server.sums import Matrix, SumTable
from simulations.client_log import Own

EVALUATED = ("validation", "test")
CHUNK_BYTES = 8 * 2**20  # parameters of clients that train together: bounds memory, fits a cache

Sums = dict[str, dict[str, dict[str, Matrix]]]  # as in SumTable


class Residents:
    """All clients of an experiment, whose model has a stacked form, in memory."""

    def __init__(self, names: Sequence[str], instruction: Instruction) -> None:
        session = open_session(instruction.experiment, instruction.agreement, Place())
        self.experiment, self.trainer = session.experiment, session.trainer
        cohorts = self.trainer.cohorts
        if cohorts is None:
            raise RuntimeError("a model without a stacked form reached the batched engine")
        self.cohorts, self.layout = cohorts, self.trainer.flat.layout
        data = []
        for name in names:
            with suppress(UnusableClientError):  # left out; the roster never asks for it
                data.append(session.client(name))
        self.place = {client.name: row for row, client in enumerate(data)}
        inputs = tuple(self.experiment.inputs)
        self.train_store = RowStore.of([d.train for d in data], inputs, cohorts.model.tasks)
        self.stores = {s: EvaluationStore.of(data, s, inputs) for s in EVALUATED}
        self.tasks = [d.tasks for d in data]
        self.patterns = [label_patterns(d.train.labelled) for d in data]
        seed = self.experiment.seed
        self.keys = np.array([shuffle_key(seed, name) for name in self.place], np.uint64)
        session.forget_clients()
        shared = set(self.trainer.shared)
        self.own_names = [name for name in self.layout.slices if name not in shared]
        self.own_columns = self._columns(self.own_names)
        width = len(self.trainer.initial[self.own_columns])
        self.own = self.trainer.initial[self.own_columns].expand(len(data), width).clone()
        self.rounds = np.zeros(len(data), np.int64)
        # What each client's loss weighting remembers, name -> [clients, T]; empty unless "local".
        self.memory: dict[str, Tensor] = {}
        if self.experiment.loss.scope == "local":
            first = self.trainer.rules.remember({}, self.own.device)
            self.memory = {name: row.repeat(len(data), 1) for name, row in first.items()}
        self.chunk = max(1, CHUNK_BYTES // (4 * self.layout.size))
        # Kept from round to round: fresh memory costs a page fault per page.
        self._values = self.own.new_empty(0, self.layout.size)
        self._known_cuts: dict[tuple[str, ...], list[tuple[str, slice, tuple[int, ...]]]] = {}

    def train(
        self, clients: Sequence[str], trunk: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Train clients, chunk by chunk; their own parameters are kept.

        The replies' trunks are good until the next call.
        """
        members = self._members(clients)
        order = largest_first(self.train_store.counts[members])
        shared, flat = self._columns(list(trunk)), self._flatten(trunk)
        values = self._get_values(len(members))
        trained: dict[str, dict[str, Matrix]] = {task: {} for task in self.train_store.tasks}
        personal = self.experiment.evaluation.model == "personal"
        sums: Sums = self._blank_sums(len(members)) if instruction.evaluate else {}
        for begin in range(0, len(members), self.chunk):
            places = order[begin : begin + self.chunk]
            own_values = values[begin : begin + len(places)]
            self._load(own_values, members[places], flat, shared)
            if instruction.evaluate and not personal:
                self._evaluate(members, places, own_values, sums)
            found = self._train(members[places], own_values, instruction, keep=True)
            if instruction.evaluate and personal:
                self._evaluate(members, places, own_values, sums)
            here = torch.from_numpy(members[places]).to(self.own.device)
            self.own.index_copy_(0, here, own_values[:, self.own_columns])
            for task, numbers in found.items():
                for name, matrix in numbers.items():
                    trained[task].setdefault(name, np.zeros((len(members), 2)))[places] = matrix
        self.rounds[members] = instruction.round
        sums["train"] = trained
        rows = values[:, shared].cpu().numpy()
        if (order[1:] < order[:-1]).any():
            rows = rows[np.argsort(order)]
        examples = self.train_store.counts[members]
        return BulkReplies(clients, examples, SumTable(clients, sums), rows)

    def evaluate(
        self, clients: Sequence[str], trunk: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Evaluate clients, chunk by chunk; a personal model trains first and is thrown away."""
        members = self._members(clients)
        order = largest_first(self.train_store.counts[members])
        shared, flat = self._columns(list(trunk)), self._flatten(trunk)
        sums = self._blank_sums(len(members))
        following = replace(instruction, round=instruction.round + 1)
        for begin in range(0, len(members), self.chunk):
            places = order[begin : begin + self.chunk]
            own_values = self._get_values(len(places))
            self._load(own_values, members[places], flat, shared)
            if self.experiment.evaluation.model == "personal":
                self._train(members[places], own_values, following, keep=False)
            self._evaluate(members, places, own_values, sums)
        examples = self.train_store.counts[members]
        return BulkReplies(clients, examples, SumTable(clients, sums))

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
            if self.memory:
                for name, row in self.trainer.remember().items():
                    self.memory[name][place] = row[0]
            self.own[place] = self.trainer.flat.values[self.own_columns]

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
        flat = np.concatenate([array.reshape(-1) for array in trunk.values()])
        return torch.from_numpy(flat).to(self.own.device)

    def _load(self, values: Tensor, members: Index, flat: Tensor, shared: Tensor | slice) -> None:
        """Write the trunk and each client's own parameters into the clients' rows."""
        values[:, shared] = flat
        here = torch.from_numpy(members).to(self.own.device)
        values[:, self.own_columns] = self.own.index_select(0, here)

    def _train(
        self, members: Index, values: Tensor, instruction: Instruction, *, keep: bool
    ) -> dict[str, dict[str, Matrix]]:
        """Train one chunk of clients.

        Args:
            members: [K].
            values: [K, P], their parameters.
            instruction: of the round.
            keep: whether they keep what their loss weighting learned.

        Returns:
            Task -> "loss" and what `Balance.report` adds -> [K, 2].
        """
        generators = []
        if self.cohorts.model.dropouts:
            names = list(self.place)
            seed, number = self.experiment.seed, instruction.round
            generators = [torch_generator(seed, "dropout", names[m], number) for m in members]
        cohort = Cohort(
            self.train_store,
            members,
            self.keys[members],
            [self.patterns[m] for m in members],
        )
        weights = instruction.weights or {}
        rules, number = self.trainer.rules, instruction.round
        balance = None
        if not rules.is_fixed:
            balance = Balance(rules, self._remembered(members, instruction), weights)
        losses = self.cohorts.train(cohort, values, weights, number, generators, balance)
        trained = {task: {"loss": numbers} for task, numbers in losses.items()}
        if balance is None:
            return trained
        report = balance.close(losses, values.device)
        if keep and self.memory:
            here = torch.from_numpy(members).to(self.own.device)
            for name, state in balance.state.items():
                self.memory[name].index_copy_(0, here, state)
        return {task: numbers | report[task] for task, numbers in trained.items()}

    def _remembered(self, members: Index, instruction: Instruction) -> dict[str, Tensor]:
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
