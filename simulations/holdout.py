"""Which clients a comparison keeps out of every federation, to be its newcomers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.agreement import require_clients
from common.algorithms import ALGORITHMS
from common.availability import leave_out
from common.cells import list_names
from common.clients import open_clients
from common.errors import ConfigError
from common.experiment import Experiment
from common.seeding import sample_names
from simulations.newcomers import ALL, parse_counts

OPTION, ROWS_OPTION = "--holdout-clients", "--holdout-rows"


@dataclass(frozen=True)
class Holdout:
    """Which clients take no part, and on how many rows they are personalised.

    Attributes:
        share: of all clients, drawn by each seed; None where another says.
        count: how many, drawn by each seed; None where another says.
        names: those clients.
        rows: numbers of training rows, rising; None, the last, is all.
    """

    share: float | None = None
    count: int | None = None
    names: tuple[str, ...] = ()
    rows: tuple[int | None, ...] = (None,)

    @property
    def labels(self) -> list[str]:
        """The numbers of rows as they are written."""
        return [ALL if count is None else str(count) for count in self.rows]

    def draw(self, names: Sequence[str], seed: int) -> tuple[str, ...]:
        """Choose from the clients that there are, at least one, in their order.

        Raises:
            ConfigError: nobody would be left, or a name is none of theirs.
        """
        if unknown := [name for name in self.names if name not in names]:
            raise ConfigError(
                f"{OPTION} must name clients of the data, got {list_names(unknown)}; there are "
                f"{len(names)}: {list_names(names)}"
            )
        count = len(self.names) or self.count or max(round((self.share or 0) * len(names)), 1)
        if count >= len(names):
            raise ConfigError(
                f"{OPTION} must leave clients to train with: at most {len(names) - 1} of "
                f"{len(names)} can be held out, got {count}; hold out fewer"
            )
        drawn = self.names or sample_names(list(names), count, seed, "holdout")
        return tuple(name for name in names if name in drawn)


def parse_holdout(clients: str, rows: str = "") -> Holdout:
    """Read the options: a share, a number or names of clients; numbers of rows.

    Raises:
        ConfigError: they say none.

    >>> parse_holdout("0.2").share, parse_holdout("3", "20,5").rows, parse_holdout("a,b").names
    (0.2, (5, 20, None), ('a', 'b'))
    """
    numbers = parse_counts(ROWS_OPTION, rows) if rows else []
    counts = (*sorted(n for n in numbers if n is not None), None)
    text = clients.strip()
    try:
        number = float(text)
    except ValueError:
        names = tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
        if not names:
            raise ConfigError(f"{OPTION} must {_FORMS}, got '{clients}'") from None
        return Holdout(names=names, rows=counts)
    if 0 < number < 1:
        return Holdout(share=number, rows=counts)
    if number >= 1 and text.isdecimal():
        return Holdout(count=int(text), rows=counts)
    raise ConfigError(f"{OPTION} must {_FORMS}, got '{clients}'")


_FORMS = (
    "be a share of the clients below 1, as in 0.2, a whole number of them, as in 3, or their names "
    "with commas, as in a,b (one whose name is a number: 7,)"
)


def divide(experiment: Experiment, holdout: Holdout | None) -> tuple[Experiment, tuple[str, ...]]:
    """Leave the held-out clients out of an experiment, of its trace, too.

    Splits and partition stay as they are.

    Returns:
        The experiment of those that take part, and the names of the others.

    Raises:
        ConfigError: nobody would be left, or a name is none of the clients'.
    """
    if holdout is None:
        return experiment, ()
    names = open_clients(experiment).names
    held_out = holdout.draw(names, experiment.seed)
    rest = tuple(name for name in names if name not in held_out)
    trace = leave_out(experiment.federation.availability, held_out)
    federation = experiment.federation.model_copy(update={"availability": trace})
    experiment = experiment.model_copy(update={"federation": federation})
    return with_clients(experiment, rest), held_out


def with_clients(experiment: Experiment, names: tuple[str, ...]) -> Experiment:
    """Let only these clients take part."""
    data = experiment.data.model_copy(update={"clients": names})
    return experiment.model_copy(update={"data": data})


def check_holdout(experiment: Experiment, holdout: Holdout | None, seeds: Iterable[int]) -> None:
    """Draw for every seed, before anything trains.

    Raises:
        ConfigError: too few clients would be left, a name is none of theirs, or the clients share
            no trunk to personalise on.
    """
    if holdout is not None:
        shares = ALGORITHMS[experiment.federation.algorithm].shares
        if not experiment.trunk.has_layers or shares == "nothing":
            raise ConfigError(
                f"{OPTION} needs a trunk that clients share, got federation.algorithm "
                f"'{experiment.federation.algorithm}' with trunk.widths "
                f"{list(experiment.trunk.widths)}; remove the option, or change one of them"
            )
        for seed in seeds:
            rest, _ = divide(experiment.model_copy(update={"seed": seed}), holdout)
            require_clients(len(rest.data.clients), rest)
