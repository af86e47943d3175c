"""Who follows a run: told when it starts, waits, and has done a round."""

from collections.abc import Callable

from server.checkpoint import Progress
from server.figures import Figures
from server.roster import Roster

Listener = Callable[[Figures], None]


class Watch:
    """Hands each round's line of metrics.jsonl to a listener, and passes over the rest.

    Args:
        listener: called with each line; None where nobody listens.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener

    def started(self, progress: Progress, roster: Roster) -> None:
        """Learn that the clients were met, and where the run stands."""

    def waiting(self, connected: int, needed: int) -> None:
        """Learn that a round waits for clients."""

    def round_done(self, line: Figures) -> None:
        """Learn that a round is done and on disk."""
        if self.listener:
            self.listener(line)
