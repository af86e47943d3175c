"""The server's figures for Prometheus."""

import time
from pathlib import Path

from common.figures_file import FiguresFile
from common.sums_form import NOT_FINITE
from server.closing import CLOSED, SILENT
from server.figures import Figures
from server.patient_grid import LOST, NOT_TAKEN, OFFLINE, UNREADABLE
from server.replies import NO_NUMBER

# A part of the reason for which a client was left out -> its class; the first that fits.
CLASSES = {
    SILENT: "timeout",
    CLOSED: "surplus",
    OFFLINE: "offline",
    NOT_TAKEN: "offline",
    LOST: "lost",
    NO_NUMBER: "not-finite",
    NOT_FINITE: "not-finite",
    UNREADABLE: "malformed",
    "not the trunk": "malformed",
    "the reply ": "malformed",
    "num-examples must": "malformed",
    " sums of task ": "malformed",
    ", the trunk ": "malformed",
    "cannot be read as an array": "malformed",
    "answered twice": "malformed",
    "another node answered": "malformed",
}
REFUSED = "refused"  # whatever else a client gives as its reason


def reason_class(reason: str) -> str:
    """Class the reason for which a client was left out.

    >>> reason_class("no answer in time"), reason_class("policy.toml allows 5 rounds")
    ('timeout', 'refused')
    """
    return next((kind for part, kind in CLASSES.items() if part in reason), REFUSED)


class ServerFigures:
    """What a deployed run counts of itself, since its ServerApp was started.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.file = file = FiguresFile(folder, "fedmtl")
        self.info = file.gauge("run_info", "1; its labels name the run.", "run", "experiment")
        self.rounds = file.counter("rounds", "Rounds done.")
        self.replies = file.counter("replies", "Usable replies to training messages.")
        self.failures = file.counter("failures", "Clients left out of a round, by why.", "reason")
        self.sent = file.counter("sent_bytes", "Payload sent to clients.")
        self.received = file.counter("received_bytes", "Payload received from clients.")
        self.seconds = file.seconds("round", "How long a round took.")
        self.connected = file.gauge("clients_connected", "Clients that can serve and are online.")
        self.round = file.gauge("round", "Rounds done, earlier sittings included.")
        self.last = file.gauge(
            "last_round_timestamp_seconds", "When the last round was done; 0: none."
        )
        for kind in sorted({*CLASSES.values(), REFUSED}):
            self.failures.labels(kind)  # a figure that is 0 is there

    def started(self, run: str, experiment: str, round_number: int, connected: int) -> None:
        """Note which run this is and where it stands."""
        self.info.labels(run, experiment).set(1)
        self.round.set(round_number)
        self.connected.set(connected)
        self.file.write()

    def waiting(self, connected: int) -> None:
        """Note how few clients are connected."""
        self.connected.set(connected)
        self.file.write()

    def round_done(self, line: Figures, connected: int) -> None:
        """Count a round, from its line of metrics.jsonl."""
        self.rounds.inc()
        self.replies.inc(line["clients"]["answered"])
        for attempt in (*line["lost-attempts"], line["clients"]):
            for reason in attempt["left-out"].values():
                self.failures.labels(reason_class(reason)).inc()
        self.sent.inc(line["traffic"]["sent-bytes"])
        self.received.inc(line["traffic"]["received-bytes"])
        self.seconds.observe(line["time_s"])
        self.round.set(line["round"])
        self.connected.set(connected)
        self.last.set(time.time())
        self.file.write()
