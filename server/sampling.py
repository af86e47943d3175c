"""Who is asked in a round.

Everything here depends on the run's seed, the round, the attempt and stable names alone, so that
two runs ask the same clients on every engine, and a resumed run asks them again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.availability import is_sealed, require_known, trace_of
from common.errors import ConfigError
from common.experiment import Experiment
from common.sections.federation import Federation
from common.seeding import numpy_generator, sample_names
from server.client_weights import MOST_EXAMPLES
from server.roster import Roster

# A share times a number is off by less than this where it should be whole: 10 * 1.1 is above 11.
ROUNDING = 9  # digits


@dataclass(frozen=True)
class Poisson:
    """How a private round is drawn.

    Attributes:
        rate: each client's probability, the same in every round.
        key: in the place of the experiment's seed, which clients know, while who was drawn is a
            secret that amplification rests on.
    """

    rate: float
    key: int


def choose_clients(
    experiment: Experiment,
    roster: Roster,
    round_number: int,
    attempt: int = 0,
    poisson: "Poisson | None" = None,
) -> list[str]:
    """Draw a round's clients from those that are connected and, by the trace, there.

    Args:
        experiment: seed, sampling, clients per round, trace.
        roster: who is connected, and how many rows each has.
        round_number: the round.
        attempt: how often the round was asked before.
        poisson: of Poisson sampling, where it must not go by who is there.

    Returns:
        Their names, sorted; none where nobody is there.
    """
    sizes = dict.fromkeys(roster.names, 0)
    if experiment.federation.sampling == "by-size":
        described = roster.descriptions
        sizes = {name: described[name].examples.get("train", 0) for name in sizes}
    return draw_clients(experiment, sizes, round_number, attempt, poisson)


def draw_clients(
    experiment: Experiment,
    sizes: Mapping[str, int],
    round_number: int,
    attempt: int = 0,
    poisson: "Poisson | None" = None,
) -> list[str]:
    """Draw as `choose_clients`, of clients by name with their rows, which 'by-size' goes by."""
    federation = experiment.federation
    trace = trace_of(federation.availability)
    names = [name for name in sorted(sizes) if trace.is_there(name, round_number)]
    stream = ("sampling", round_number, *((attempt,) if attempt else ()))
    if federation.sampling == "poisson":
        if poisson is None:
            poisson = Poisson(sampling_rate(federation, len(names)), experiment.seed)
        return sample_poisson(names, poisson.rate, poisson.key, *stream)
    count = count_asked(federation, len(names))
    if count == len(names):
        return names
    if federation.sampling == "by-size":
        there = {name: min(sizes[name], MOST_EXAMPLES) for name in names}
        return sample_by_size(there, count, experiment.seed, *stream)
    return sorted(sample_names(names, count, experiment.seed, *stream))


def count_asked(federation: Federation, there: int) -> int:
    """Say how many of the clients that are there a round asks."""
    wanted = federation.clients_per_round
    if wanted == "all":
        return there
    more = round(wanted * (1 + federation.over_selection), ROUNDING)
    return math.ceil(min(more, there))


def sampling_rate(federation: Federation, there: int) -> float:
    """Say with which probability each of the clients that are there is asked in a round."""
    return count_asked(federation, there) / there if there else 0.0


def sample_poisson(names: Sequence[str], rate: float, key: int, *stream: str | int) -> list[str]:
    """Draw each name by itself with one probability; maybe none, maybe all.

    >>> sample_poisson(["a", "b", "c"], 1.0, 0, "x")
    ['a', 'b', 'c']
    """
    ordered = sorted(names)
    draws = numpy_generator(key, *stream).random(len(ordered))
    return [name for name, draw in zip(ordered, draws, strict=True) if draw < rate]


def sample_by_size(
    sizes: Mapping[str, int], count: int, seed: int, *stream: str | int
) -> list[str]:
    """Draw names without replacement, each draw in proportion to the sizes that are left.

    The `count` largest ``log(u_k) / n_k`` with u_k uniform on (0, 1] (Efraimidis & Spirakis,
    "Weighted random sampling with a reservoir", 2006, whose keys are ``u_k^(1/n_k)``). A size of 0
    counts as 1.

    Args:
        sizes: name -> n_k; their order does not matter.
        count: how many names.
        seed: the run's.
        stream: names the draw.

    Returns:
        The names, sorted.

    >>> sample_by_size({"a": 1, "b": 10**9}, 1, 0, "x")
    ['b']
    """
    names = sorted(sizes)
    draws = 1.0 - numpy_generator(seed, *stream).random(len(names))
    keys = np.log(draws) / np.array([max(sizes[name], 1) for name in names])
    chosen = np.argsort(-keys, kind="stable")[:count]
    return sorted(names[place] for place in chosen.tolist())


def require_trace(experiment: Experiment, roster: Roster, *, strict: bool) -> list[str]:
    """Check that a trace is about this federation's clients.

    Args:
        experiment: has the trace.
        roster: the clients met at the start.
        strict: no other client will come, as in a simulation.

    Returns:
        Which lines name a client that was not met, a line each; it may join later.

    Raises:
        ConfigError: the trace cannot be followed.
    """
    lines = experiment.federation.availability
    if is_sealed(lines):
        raise ConfigError(
            "federation.availability must be the trace itself on the server, got its digest "
            f"'{lines[0]}'; name the file"
        )
    known = sorted({*roster.node_ids, *roster.left_out, *roster.refused})
    if strict:
        require_known(lines, known)
    return trace_of(lines).strangers(known)


def refuse_delays(experiment: Experiment, where: str) -> None:
    """Refuse a trace with delays where real time counts.

    Raises:
        ConfigError: it has some.
    """
    if trace_of(experiment.federation.availability).has_delays:
        raise ConfigError(
            f"federation.availability must have no delay-s other than 0 {where}, where real time "
            "counts; use fedmtl simulate --engine loopback or batched, or remove the column"
        )
