"""Runs of a comparison or a search, each told to trackers as one of a group."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from common.experiment import Experiment
from common.journal import describe_error
from server.watch import Listener
from simulations.run_record import Figures
from simulations.simulate import simulate
from simulations.tracking import TRACKERS, Tracking

logger = logging.getLogger("fedmtl.tracking")


@dataclass(frozen=True)
class Track:
    """Who is told of the runs of a group.

    Attributes:
        names: keys of `simulations.tracking.TRACKERS`.
        group: folder of the comparison or the search.
    """

    names: Sequence[str] = ()
    group: Path | None = None

    def prepare(self) -> None:
        """Make what all runs share, before processes of their own make it at the same time."""
        for name in self.names if self.group is not None else ():
            try:
                module = import_module(TRACKERS[name].module)
                if hasattr(module, "prepare"):
                    module.prepare(self.group)
            except Exception as error:  # whatever another's program raises; each run says it, too
                logger.warning("tracker %s is not ready (%s)", name, describe_error(error))


UNTRACKED = Track()


def simulate_tracked(
    experiment: Experiment,
    engine: str,
    out: Path,
    track: Track = UNTRACKED,
    listener: Listener | None = None,
) -> Figures:
    """Simulate one run of a group; see `simulations.simulate.simulate`.

    Args:
        experiment: the resolved experiment.
        engine: a key of `simulations.simulate.ENGINES`.
        out: the run folder.
        track: who is told of it.
        listener: called with each round's line after trackers were; may end the run.

    Raises:
        FedMTLError: the settings, the data or the run folder cannot be used.
    """
    if not track.names:
        return simulate(experiment, engine=engine, out=out, listener=listener)
    with closing(Tracking(track.names, out, experiment, track.group)) as tracking:

        def tell(line: Figures) -> None:
            tracking.on_round(line)
            if listener is not None:
                listener(line)

        results = simulate(experiment, engine=engine, out=out, listener=tell)
        tracking.finish(results)
    return results
