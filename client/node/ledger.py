"""How often a node has answered, over all runs: what an owner's limits in all are held against."""

import json
from pathlib import Path

from client.state import replace_file
from common.errors import PolicyError

FILE = "ledger.json"
COUNTED = {"train": "rounds", "evaluate": "evaluations"}  # kind of message -> what it counts as


class Ledger:
    """Counts in the node's state folder.

    Args:
        folder: the node's state folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def read(self) -> dict[str, int]:
        """Read the counts.

        Raises:
            PolicyError: they cannot be read; then nothing may be answered.
        """
        try:
            found = json.loads(self.path.read_text()) if self.path.exists() else {}
            return {name: int(found.get(name, 0)) for name in COUNTED.values()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise PolicyError(
                f"the node's {FILE} cannot be read ({type(error).__name__}); its owner must "
                "mend or remove it"
            ) from error

    def count(self, kind: str) -> None:
        """Count an answer; a kind that is not counted changes nothing.

        Raises:
            PolicyError: the counts cannot be read.
            StateError: they cannot be written; the answer must not leave.
        """
        if kind in COUNTED:
            counts = self.read()
            counts[COUNTED[kind]] += 1
            replace_file(self.path, json.dumps(counts).encode(), durable=True)
