"""What a client has released, reply by reply, and what that cost: the words of every ledger.

A real node writes its own (`client.privacy_ledger`), a simulation those of all clients
(`server.privacy_accounts`). An entry holds its own cost as events, so that whoever reads a ledger
can compose them anew, at another delta too.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from common.privacy.accounting import Event, epsilon_of
from common.privacy.client_level import client_events
from common.privacy.example_level import example_events
from common.privacy.settings import Accountant, Budget

if TYPE_CHECKING:
    from common.agreement import Description
    from common.experiment import Experiment

Unit = Literal["client", "example"]
Cost = Mapping[str, tuple[Event, ...]]  # unit -> events

POPULATION = "population"  # in `Instruction.privacy`: clients that a Poisson sample is drawn from
SLACK = 1e-6  # of a budget: what rounding may move
UPDATE, MASKED, SUMS, COUNTS = "update", "masked vector", "sums", "counts"


@dataclass(frozen=True)
class Released:
    """One kind of numbers in a reply.

    Attributes:
        what: "update", "masked vector", "sums" or "counts"; in a description "counts", "column
            sums" or "categories".
        numbers: how many.
        units: whose presence they hide.
        mechanism: how, in words; "none" for nothing.
    """

    what: str
    numbers: int
    units: tuple[str, ...]
    mechanism: str


@dataclass(frozen=True)
class Entry:
    """One reply in a ledger.

    Attributes:
        run: names the run, over all sittings; empty in a description, which belongs to none.
        round: the round; 0 in a description.
        client: its name.
        reply: "query", "train" or "evaluate".
        released: what it held.
        cost: what it cost, by unit.
        epsilon: what the client has paid in the run so far, this reply included, by unit.
        delta: that goes with it, by unit.
    """

    run: str
    round: int
    client: str
    reply: str
    released: tuple[Released, ...]
    cost: Cost = field(default_factory=dict)
    epsilon: Mapping[str, float] = field(default_factory=dict)
    delta: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write as one line."""
        return json.dumps(
            {
                "run": self.run,
                "round": self.round,
                "client": self.client,
                "reply": self.reply,
                "released": [
                    {
                        "what": each.what,
                        "numbers": each.numbers,
                        "units": list(each.units),
                        "mechanism": each.mechanism,
                    }
                    for each in self.released
                ],
                "cost": {
                    unit: [_event_json(e) for e in events] for unit, events in self.cost.items()
                },
                "epsilon": dict(self.epsilon),
                "delta": dict(self.delta),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Entry":
        """Read a line.

        Raises:
            ValueError: it is no entry.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            return cls(
                run=str(found["run"]),
                round=int(found["round"]),
                client=str(found["client"]),
                reply=str(found["reply"]),
                released=tuple(_read_released(each) for each in found["released"]),
                cost={
                    str(unit): tuple(_read_event(each) for each in events)
                    for unit, events in found["cost"].items()
                },
                epsilon={str(unit): float(value) for unit, value in found["epsilon"].items()},
                delta={str(unit): float(value) for unit, value in found["delta"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no entry ({type(error).__name__})") from error


def _event_json(event: Event) -> dict[str, float]:
    return {
        "noise-multiplier": event.noise_multiplier,
        "sampling": event.sampling,
        "count": event.count,
        **({"whole-orders": True} if event.whole_orders else {}),
    }


def _read_event(found: Mapping[str, Any]) -> Event:
    return Event(
        float(found["noise-multiplier"]),
        float(found["sampling"]),
        int(found["count"]),
        bool(found.get("whole-orders", False)),
    )


def _read_released(found: Mapping[str, Any]) -> Released:
    units = tuple(str(unit) for unit in found["units"])
    return Released(str(found["what"]), int(found["numbers"]), units, str(found["mechanism"]))


def budgets(experiment: "Experiment") -> dict[Unit, Budget]:
    """List the units that an experiment protects, each with its budget."""
    levels: dict[Unit, Budget | None] = {
        "client": experiment.privacy.client_level,
        "example": experiment.privacy.example_level,
    }
    return {unit: level for unit, level in levels.items() if level is not None}


def population(told: Mapping[str, float]) -> int:
    """Read of how many clients the server says that it draws a sample; 1 where it does not.

    >>> population({"population": 40.0}), population({}), population({"population": 0.0})
    (40, 1, 1)
    """
    number = told.get(POPULATION, 1)
    return max(1, int(number)) if math.isfinite(number) else 1


def cost_of(
    experiment: "Experiment",
    *,
    clients: int,
    rows: int,
    trainings: int,
    evaluations: int,
    rounds: int | None = None,
) -> dict[str, tuple[Event, ...]]:
    """Work out what a client's replies cost it.

    Args:
        experiment: says what protects them.
        clients: of the federation.
        rows: the client's training rows; with 0, which says that they are not known, examples have
            no cost that could be told.
        trainings: replies of training.
        evaluations: replies of evaluation.
        rounds: that were done meanwhile, which are what counts under amplification; left out, as
            many as trainings.

    Returns:
        Unit -> events, of the units that the experiment protects.

    Raises:
        ConfigError: no noise keeps the budget.
    """
    cost: dict[str, tuple[Event, ...]] = {}
    level = experiment.privacy.client_level
    if level is not None:
        drawn = trainings if rounds is None or not level.amplification else rounds
        events = client_events(experiment, clients, drawn, trainings + evaluations)
        cost["client"] = tuple(event for event in events if event.count)
    if experiment.privacy.example_level is not None and rows:
        cost["example"] = tuple(example_events(experiment, rows, trainings))
    return {unit: events for unit, events in cost.items() if events}


def add_costs(costs: Iterable[Cost]) -> dict[str, tuple[Event, ...]]:
    """Add costs up, events of a kind together.

    >>> add_costs([{"client": (Event(1.0),)}, {"client": (Event(1.0),)}])
    {'client': (Event(noise_multiplier=1.0, sampling=1.0, count=2, whole_orders=False),)}
    """
    total: dict[str, dict[tuple[float, float, bool], int]] = {}
    for cost in costs:
        for unit, events in cost.items():
            counts = total.setdefault(unit, {})
            for event in events:
                key = event.noise_multiplier, event.sampling, event.whole_orders
                counts[key] = counts.get(key, 0) + event.count
    return {
        unit: tuple(Event(noise, q, count, whole) for (noise, q, whole), count in counts.items())
        for unit, counts in total.items()
    }


@lru_cache(maxsize=2**16)  # clients alike cost alike
def epsilon_of_cost(events: tuple[Event, ...], delta: float, accountant: Accountant) -> float:
    """Compose events, or remember what they came to."""
    return epsilon_of(events, delta, accountant)


def released_by(experiment: "Experiment", numbers: Mapping[str, int]) -> tuple[Released, ...]:
    """Say what a reply holds and what protects it.

    Args:
        experiment: says how.
        numbers: "update", "sums" and "counts" -> how many of them there are; without those of
            which there are none.
    """
    privacy = experiment.privacy
    is_masked = privacy.secure_aggregation is not None
    if is_masked and privacy.sums_regime != "sent":  # what weighs a client is under its mask
        numbers = {what: count for what, count in numbers.items() if what != COUNTS}
    ways = {UPDATE: _update_mechanism(experiment), SUMS: _sums_mechanism(experiment)}
    units = {UPDATE: tuple(budgets(experiment))}
    if privacy.sums_regime == "noised":
        units[SUMS] = ("client",)
    return tuple(
        Released(
            MASKED if is_masked and what == UPDATE else what,
            count,
            units.get(what, ()),
            ways.get(what, "none"),
        )
        for what, count in numbers.items()
        if count
    )


def describe_entry(description: "Description") -> Entry:
    """Write what a client told of its data before round 1; nothing protects it."""
    counts = len(description.examples) + len(description.labelled)
    sums = sum(len(s.count) + len(s.total) + len(s.squares) for s in description.sums.values())
    categories = sum(
        len(found) for columns in description.categories.values() for found in columns.values()
    )
    numbers = {COUNTS: counts, "column sums": sums, "categories": categories}
    released = (Released(what, count, (), "none") for what, count in numbers.items() if count)
    return Entry("", 0, description.client, "query", tuple(released))


def _update_mechanism(experiment: "Experiment") -> str:
    privacy = experiment.privacy
    ways = []
    if privacy.example_level is not None:
        ways.append("DP-SGD")
    if privacy.client_level is not None:
        ways.append(
            {
                "server": "clipped, noise on the sum by the server",
                "client": "clipped, noise by the client",
                "shares": "clipped, a share of the noise by each client",
            }[privacy.client_level.noise]
        )
    if privacy.secure_aggregation is not None:
        ways.append("masked by secure aggregation")
    return ", ".join(ways) or "none"


def _sums_mechanism(experiment: "Experiment") -> str:
    return {
        "sent": "none",
        "withheld": "none",
        "noised": "clipped, noise by the client",
        "secure": "masked by secure aggregation",
    }[experiment.privacy.sums_regime]
