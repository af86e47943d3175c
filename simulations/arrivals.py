"""When simulated replies arrive: in the order of the trace's delays, and not after the deadline.

A straggler has trained and kept its heads; only what it sends is lost. So every client that was
asked trains, and what its reply would have met on its way is worked out afterwards.
"""

from collections.abc import Sequence

from common.availability import trace_of
from common.experiment import Experiment
from common.seeding import derive_key
from server.bulk import Arrival


class Arrivals:
    """Puts the replies of a round into the order of their arrival.

    Args:
        experiment: seed, trace, deadline.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.seed, self.trace = experiment.seed, trace_of(experiment.federation.availability)
        self.deadline_s = experiment.federation.round_timeout_s

    @property
    def simulates_time(self) -> bool:
        """Whether the deadline is one of simulated time, so that real time does not count."""
        return self.trace.has_delays

    def times(self, clients: Sequence[str], round_number: int) -> dict[str, Arrival]:
        """Say when the replies that come before the deadline arrive; client -> when.

        Ties are broken by the seed: by name, the same clients would always be first.
        """
        delays = {name: self.trace.delay_s(name, round_number) for name in clients}
        return {
            name: (delay_s, derive_key(self.seed, "arrival", round_number, name))
            for name, delay_s in delays.items()
            if delay_s <= self.deadline_s
        }

    def order(self, clients: Sequence[str], round_number: int) -> list[str]:
        """Name those whose replies come before the deadline, the first one first."""
        times = self.times(clients, round_number)
        return sorted(times, key=times.__getitem__)


def make_arrivals(experiment: Experiment) -> Arrivals | None:
    """Make what an experiment needs; None where the order of replies does not show."""
    arrivals = Arrivals(experiment)
    is_needed = arrivals.simulates_time or experiment.federation.over_selection
    return arrivals if is_needed else None
