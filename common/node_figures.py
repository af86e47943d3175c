"""A node's figures for Prometheus: its messages, their bytes, and where their time goes."""

import time
from pathlib import Path

from common.figures_file import FiguresFile

KINDS = ("query", "train", "evaluate")
OUTCOMES = ("answered", "refused", "failed")


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
        self.last = file.gauge(
            "last_message_timestamp_seconds", "When the last message was dealt with; 0: none."
        )
        for kind in KINDS:
            for outcome in OUTCOMES:
                self.messages.labels(kind, outcome)  # a figure that is 0 is there
        file.write()

    def stage(self, name: str, seconds: float) -> None:
        """Note how long a part of a message's work took, such as reading data or training."""
        self.seconds.labels(name).observe(seconds)

    def message_done(
        self, kind: str, outcome: str, received_bytes: int = 0, sent_bytes: int = 0
    ) -> None:
        """Count a message that was dealt with, and write the file.

        Args:
            kind: one of `KINDS`.
            outcome: one of `OUTCOMES`.
            received_bytes: its payload.
            sent_bytes: its reply's payload.
        """
        self.messages.labels(kind, outcome).inc()
        self.received.inc(received_bytes)
        self.sent.inc(sent_bytes)
        self.last.set(time.time())
        self.file.write()
