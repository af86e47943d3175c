"""What a run's clients have paid for privacy, and whether they can afford another round.

The server counts a client's reply when it asks for it, whether or not it comes: what it cannot know
costs nobody less. In a simulation, which replays a round exactly, the counts go back with the
checkpoint; in a deployment clients may have answered the round that a crash interrupted, and every
sitting counts one round more for everybody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from common.errors import ConfigError
from common.experiment import Experiment
from common.privacy.accounting import Event, epsilons_of
from common.privacy.assumptions import assumptions
from common.privacy.client_level import client_noise
from common.privacy.example_level import example_events
from common.privacy.ledger import (
    COUNTS,
    POPULATION,
    SLACK,
    Cost,
    Entry,
    Unit,
    budgets,
    cost_of,
    describe_entry,
    epsilon_of_cost,
    released_by,
)
from server.figures import Figures
from server.roster import Roster

TRAIN = "train"
MOST_KNOWN = 2**16  # costs that are remembered


@dataclass
class Counts:
    """What a run's replies were, for its checkpoint.

    Attributes:
        clients: of the federation when the run began, by which noise and sampling go.
        rounds: that were asked, lost attempts and rounds without clients among them.
        trainings: client -> replies of training that it was asked for.
        evaluations: client -> replies of evaluation that it was asked for.
        settled: client -> rounds that its ledger holds, where each costs all (amplification).
        lines: of the ledgers' file.
    """

    clients: int = 0
    rounds: int = 0
    trainings: dict[str, int] = field(default_factory=dict)
    evaluations: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    lines: int = 0


class PrivacyAccounts:
    """The accounts of all clients of a run.

    Args:
        experiment: the resolved experiment.
        roster: the clients, and how many rows they said that they have.
        kept: what `state` returned before the run was interrupted; {} for a new run.

    Raises:
        ConfigError: delta is too large for so few clients, or no noise keeps a budget.
    """

    def __init__(self, experiment: Experiment, roster: Roster, kept: Mapping[str, Any]) -> None:
        self.experiment, self.roster = experiment, roster
        self.budgets = budgets(experiment)
        self.counts = Counts(**kept) if kept else Counts(clients=len(roster.node_ids))
        self._accountant = experiment.privacy.accountant
        self._bounded: dict[tuple[Unit, int], dict[str, float]] = {}  # as the counts stand
        self._first: dict[int, tuple[Event, ...]] = {}  # rows -> what a round costs them
        self._known: dict[tuple[int, ...], Cost] = {}
        check_delta(experiment, self.counts.clients)

    @property
    def is_on(self) -> bool:
        """Whether there is any mechanism."""
        return self.experiment.privacy.is_on

    def state(self) -> dict[str, Any]:
        """Get what a checkpoint must hold."""
        return dict(vars(self.counts)) if self.is_on else {}

    def count(self, reply: str, clients: Iterable[str]) -> None:
        """Count what these clients were asked for.

        Args:
            reply: "train" for a round, or "evaluate".
            clients: their names.
        """
        self._bounded.clear()
        kept = self.counts.trainings if reply == TRAIN else self.counts.evaluations
        self.counts.rounds += reply == TRAIN
        for name in clients:
            kept[name] = kept.get(name, 0) + 1

    def instruct(self) -> dict[str, float]:
        """Say what clients need to count what a round costs them (`Instruction.privacy`)."""
        level = self.experiment.privacy.client_level
        is_sample = level is not None and level.amplification
        return {POPULATION: self.counts.clients} if is_sample else {}

    def restarted(self) -> None:
        """Count the round that was asked, perhaps, and not done when a deployed run broke off."""
        self.count(TRAIN, self._names())

    def require_a_round(self) -> None:
        """Check that a run can do anything at all within its budgets.

        Raises:
            ConfigError: it cannot.
        """
        if why := self.exhausted():
            raise ConfigError(
                f"privacy: not even one round fits: {why}; allow a larger epsilon, add noise, or "
                "leave noise-multiplier out, then it is worked out from epsilon"
            )

    def exhausted(self) -> str:
        """Say why another round, with an evaluation, would exceed a budget; nothing where not."""
        for unit, budget in self.budgets.items():
            if budget.epsilon is None:
                continue
            largest, _ = self._largest(unit, more=1)
            if largest is not None and largest > budget.epsilon * (1 + SLACK):
                return (
                    f"the next round would take a client to epsilon {largest:.4g}, and "
                    f"privacy.{unit}-level.epsilon is {budget.epsilon:g} at delta {budget.delta:g}"
                )
        return ""

    def figures(self, max_norm: float | None = None) -> Figures:
        """Tell the epsilon so far, by unit.

        Args:
            max_norm: what the round's updates were clipped to.
        """
        figures: Figures = {}
        for unit, budget in self.budgets.items():
            largest, median = self._largest(unit)
            figures[unit] = {
                "epsilon": largest,
                "median-epsilon": median,
                "delta": budget.delta,
                "budget": budget.epsilon,
                "noise-multiplier": budget.noise_multiplier,
                "max-norm": budget.max_norm,
            }
        if "client" in figures:
            noise = client_noise(self.experiment, self.counts.clients)
            figures["client"] |= {"noise-multiplier": noise}
            figures["client"] |= {} if max_norm is None else {"max-norm": max_norm}
        return figures

    def results(self) -> Figures:
        """Tell, for results.json, the epsilons at the end and what they rest on."""
        if not self.budgets:
            return {}
        told = {**self.figures(), "accountant": self._accountant}
        return {"privacy": {**told, "assumptions": assumptions(self.experiment)}}

    def entries(
        self, run: str, number: int, reply: str, numbers: Mapping[str, Mapping[str, int]]
    ) -> list[Entry]:
        """Write what clients released, after it was counted.

        Args:
            run: name of the run.
            number: the round.
            reply: "train" or "evaluate".
            numbers: client -> "update" or "sums" -> how many numbers.
        """
        spent = {unit: self._bounds(unit) for unit in self.budgets}
        counts = int(self.experiment.privacy.counts == "sent")
        kinds = {tuple(held.items()): held for held in numbers.values()}  # few, of many clients
        released = {
            kind: released_by(self.experiment, {**held, COUNTS: counts})
            for kind, held in kinds.items()
        }
        told = [unit for unit in self.budgets if self._largest(unit)[0] is not None]
        entries = [
            Entry(
                run=run,
                round=number,
                client=name,
                reply=reply,
                released=released[tuple(held.items())],
                cost=self._settle(name, reply),
                epsilon={unit: spent[unit][name] for unit in told},
                delta={unit: self.budgets[unit].delta for unit in told},
            )
            for name, held in numbers.items()
        ]
        self.counts.lines += len(entries)
        return entries

    def descriptions(self) -> list[Entry]:
        """Write what clients told of their data before round 1."""
        told = [describe_entry(each) for _, each in sorted(self.roster.descriptions.items())]
        self.counts.lines += len(told)
        return told

    def _settle(self, name: str, reply: str) -> Cost:
        """Work out what one reply cost its client, with the rounds since its last one."""
        is_training, counts = reply == TRAIN, self.counts
        rounds = counts.rounds - counts.settled.get(name, 0)
        counts.settled[name] = counts.rounds
        return self._cost(name, int(is_training), int(not is_training), rounds)

    def _largest(self, unit: Unit, more: int = 0) -> tuple[float | None, float | None]:
        """Get the largest and the median epsilon over the clients; None where it is not known.

        Args:
            unit: "client" or "example".
            more: 1 for another round, and the last evaluation, beyond what was counted.
        """
        if unit == "example" and not all(self._rows(name) for name in self._names()):
            return None, None  # clients that withhold counts know alone what their rows paid
        bounds = self._bounds(unit, more)
        if not bounds:
            return 0.0, 0.0
        ranked = sorted(bounds, key=bounds.__getitem__)
        largest, median = ranked[-1], ranked[len(ranked) // 2]
        return self._epsilon(unit, largest, more), self._epsilon(unit, median, more)

    def _bounds(self, unit: Unit, more: int = 0) -> dict[str, float]:
        """Work out every client's epsilon: client -> epsilon.

        Accountant "pld" takes a second for each size of client: the Renyi bound stands in for it.
        """
        if (unit, more) in self._bounded:
            return self._bounded[unit, more]
        costs = {name: self._paid(name, more).get(unit, ()) for name in self._names()}
        kinds, delta = list(dict.fromkeys(costs.values())), self.budgets[unit].delta
        if unit == "client" and self._accountant != "rdp":
            found = [epsilon_of_cost(kind, delta, self._accountant) for kind in kinds]
        else:
            found = epsilons_of(kinds, delta).tolist()
        by_kind = dict(zip(kinds, found, strict=True))
        self._bounded[unit, more] = {name: by_kind[cost] for name, cost in costs.items()}
        return self._bounded[unit, more]

    def _epsilon(self, unit: Unit, name: str, more: int = 0) -> float:
        events = self._paid(name, more).get(unit, ())
        return epsilon_of_cost(events, self.budgets[unit].delta, self._accountant)

    def _paid(self, name: str, more: int = 0) -> Cost:
        """Work out what a client paid, and would have with a round more and the last evaluation."""
        counts, evaluation = self.counts, self.experiment.evaluation
        trainings, evaluations = counts.trainings.get(name, 0), counts.evaluations.get(name, 0)
        if more:
            is_asked = evaluation.by == "message" and (counts.rounds + 1) % evaluation.every == 0
            evaluations += 1 + is_asked
        return self._cost(name, trainings + more, evaluations, counts.rounds + more)

    def _names(self) -> list[str]:
        """Name all who paid, or may yet."""
        return sorted({*self.roster.names, *self.counts.trainings, *self.counts.evaluations})

    def _cost(self, name: str, trainings: int, evaluations: int, rounds: int) -> Cost:
        rows = self._rows(name)
        key = rows, trainings, evaluations, rounds
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            cost = cost_of(
                self.experiment,
                clients=self.counts.clients,
                rows=0,  # examples are dealt with below
                trainings=trainings,
                evaluations=evaluations,
                rounds=rounds,
            )
            self._known[key] = {**cost, **self._examples(rows, trainings)}
        return self._known[key]

    def _examples(self, rows: int, trainings: int) -> Cost:
        """Work out what a client's rounds cost its rows, each as much as the first."""
        if "example" not in self.budgets or not rows or not trainings:
            return {}
        if rows not in self._first:
            self._first[rows] = tuple(example_events(self.experiment, rows, 1))
        first = self._first[rows]
        return {"example": tuple(replace(e, count=e.count * trainings) for e in first)}

    def _rows(self, name: str) -> int:
        """Get a client's training rows; 0 where it does not tell."""
        described = self.roster.descriptions.get(name)
        return 0 if described is None else described.examples.get("train", 0)


def check_delta(experiment: Experiment, clients: int) -> None:
    """Refuse a delta at which one client may be told as it is.

    Raises:
        ConfigError: it is above one over the number of clients.
    """
    level = experiment.privacy.client_level
    if level is not None and level.delta * clients > 1:
        raise ConfigError(
            f"privacy.client-level.delta must be at most 1/{clients}, for with {clients} clients "
            f"one of them may be told as it is above that, got {level.delta:g}; lower it"
        )
