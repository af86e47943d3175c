"""What the clients of an in-process engine meet, beyond being asked and answering at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from common.experiment import Experiment
from simulations.arrivals import Arrivals, make_arrivals
from simulations.client_log import Own
from simulations.hostile import Hostile


@dataclass(frozen=True)
class Circumstances:
    """What an engine simulates.

    Attributes:
        arrivals: when replies come; None where all come at once.
        hostile: clients that answer wrongly; None where there are none.
        repeats: whether a round can be asked again.
    """

    arrivals: Arrivals | None = None
    hostile: Hostile | None = None
    repeats: bool = False

    @classmethod
    def of(cls, experiment: Experiment, hostile: Hostile | None = None) -> "Circumstances":
        """Read them from an experiment."""
        repeats = experiment.federation.too_few == "repeat"
        return cls(make_arrivals(experiment), hostile, repeats)


PLAIN = Circumstances()


@dataclass
class BeforeRound:
    """What clients kept at home before the round at hand, in case it is asked again.

    A client that is asked again in one round starts from there, as one does that keeps its heads on
    disk by round (`client.state`): then a round that was cut short can be repeated exactly.
    """

    round: int = 0
    kept: dict[str, Own | None] = field(default_factory=dict)

    def rewind(
        self,
        round_number: int,
        clients: Sequence[str],
        read: Callable[[Sequence[str]], Mapping[str, Own]],
        write: Callable[[Mapping[str, Own | None]], None],
    ) -> None:
        """Take clients that are about to train back to before the round.

        Args:
            round_number: the round.
            clients: their names.
            read: gives what clients keep, those that keep anything.
            write: puts it back; None lets a client keep nothing.
        """
        if round_number != self.round:
            self.round, self.kept = round_number, {}
        again = {name: self.kept[name] for name in clients if name in self.kept}
        if again:
            write(again)
        first = [name for name in clients if name not in again]
        found = read(first) if first else {}
        self.kept |= {name: _copied(found.get(name)) for name in first}


def _copied(own: Own | None) -> Own | None:
    if own is None:
        return None
    return Own(own.round, {name: array.copy() for name, array in own.arrays.items()})
