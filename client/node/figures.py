"""A node's figures for Prometheus: its messages, their bytes, and where their time goes."""

import time
from pathlib import Path

from common.figures_file import FiguresFile

KINDS = ("query", "train", "evaluate")
OUTCOMES = ("answered", "refused")
STAGES = ("pull", "work", "push")  # from the SuperNode, by policy and worker, to the SuperNode


class NodeFigures:
    """What a node counts of itself, since its process was started.

    Args:
        folder: the node's state folder.
    """

    def __init__(self, folder: Path) -> None:
        self.file = file = FiguresFile(folder, "fedmtl_node")
        self.messages = file.counter(
            "messages", "Messages, by kind and outcome.", "kind", "outcome"
        )
        self.received = file.counter("received_bytes", "Payload received from the server.")
        self.sent = file.counter("sent_bytes", "Payload sent to the server.")
        self.seconds = file.seconds("stage", "Where a message's time goes.", "stage")
        self.deaths = file.counter("worker_deaths", "Workers that ended before they answered.")
        self.last = file.gauge(
            "last_message_timestamp_seconds", "When the last message was dealt with; 0: none."
        )
        for kind in KINDS:
            for outcome in OUTCOMES:
                self.messages.labels(kind, outcome)  # a figure that is 0 is there
        file.write()

    def message_done(
        self, kind: str, outcome: str, sizes: tuple[int, int], stages: tuple[float, float, float]
    ) -> None:
        """Count a message that was dealt with, and write the file.

        Args:
            kind: one of `KINDS`; another one, which the server made up, counts as other.
            outcome: one of `OUTCOMES`.
            sizes: payload received and sent.
            stages: seconds of each of `STAGES`.
        """
        self.messages.labels(kind if kind in KINDS else "other", outcome).inc()
        self.received.inc(sizes[0])
        self.sent.inc(sizes[1])
        for name, seconds in zip(STAGES, stages, strict=True):
            self.seconds.labels(name).observe(seconds)
        self.last.set(time.time())
        self.file.write()
