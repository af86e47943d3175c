"""What a node tells whoever looks after it: log, status and figures, in its state folder."""

import logging
from pathlib import Path

from client.node.figures import STAGES, NodeFigures
from common.errors import NodeError
from common.journal import Journal
from common.locking import take
from common.status import LOCK, TRAINING, WAITING, Status, StatusFile
from common.wire import Instruction

logger = logging.getLogger("fedmtl.node")

LOG = "log.jsonl"
LOGGERS = ("fedmtl", "flwr")


class NodeWatch:
    """Keeps log, status and figures of one node, and the lock that makes it the only one.

    Args:
        folder: the node's state folder.

    Raises:
        NodeError: another node works in this folder, or it cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = take(folder / LOCK)
        except OSError as error:
            raise NodeError(
                f"state folder {folder} cannot be used: {error.strerror or error}; correct it, or "
                "name another folder in --node-config"
            ) from error
        if self._lock is None:
            raise NodeError(
                f"state folder {folder} belongs to a node that is running; stop it, or name "
                "another folder in --node-config"
            )
        self.journal = Journal(folder / LOG)
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self.journal)
        ours = logging.getLogger("fedmtl")
        self._level_before = ours.level
        ours.setLevel(logging.INFO)
        self.status = StatusFile(folder, Status(what="node"))
        self.figures = NodeFigures(folder)
        self.figures.file.serve(logger)

    def begin(self, instruction: Instruction, rounds: int) -> None:
        """Note the message that is being answered."""
        self.journal.fields = {"run": instruction.run, "round": instruction.round}
        self.status.set(state=TRAINING, run=instruction.run, round=instruction.round, rounds=rounds)

    def end(
        self, kind: str, refused: str, sizes: tuple[int, int], stages: tuple[float, float, float]
    ) -> None:
        """Note how a message was answered.

        Args:
            kind: "query", "train" or "evaluate".
            refused: why there was no answer; empty where there was.
            sizes: payload received and sent.
            stages: seconds to get the message, to answer it, to hand the reply over.
        """
        facts = {"kind": kind, "received_bytes": sizes[0], "sent_bytes": sizes[1]}
        facts |= {f"{name}_s": round(taken, 4) for name, taken in zip(STAGES, stages, strict=True)}
        if refused:
            logger.warning("refused %s: %s", kind, refused, extra=facts)
        else:
            logger.info("answered %s", kind, extra=facts)
        self.figures.message_done(kind, "refused" if refused else "answered", sizes, stages)
        self.status.set(state=WAITING, error=refused)
        self.journal.fields = {}

    def close(self) -> None:
        """Stop watching."""
        self.figures.file.close()
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self.journal)
        logging.getLogger("fedmtl").setLevel(self._level_before)
        self.journal.close()
