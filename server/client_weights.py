"""How much each client counts, as `federation.weight-by` says; one number a client, whole."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.roster import Roster

Counts = NDArray[np.int64]
MOST_EXAMPLES = 2**40  # of a client; sums over a million of them still are 64-bit integers


class ClientWeights:
    """Counts that weigh clients.

    Args:
        weight_by: "examples": training rows; "uniform": 1; "labelled": labelled training rows,
            summed over tasks, and for what belongs to one task those of the task.
        roster: what clients said of their data.
    """

    def __init__(self, weight_by: str, roster: Roster) -> None:
        self.weight_by, self.roster = weight_by, roster

    def of(self, clients: Sequence[str], examples: Counts) -> Counts:
        """Weigh K clients by counts, positive, [K]; only their ratios matter.

        A client that claims no labelled row counts as if it had one.
        """
        if self.weight_by == "labelled":
            tasks = self.roster.experiment.tasks
            labelled = [sum(self.labelled(name, task) for task in tasks) for name in clients]
            return np.maximum(np.array(labelled, np.int64), 1)
        return examples if self.weight_by == "examples" else np.sign(examples)

    def of_task(self, task: str, clients: Sequence[str], counts: Counts) -> Counts:
        """Weigh K clients in what belongs to one task, [K]; 0 where a client lacks the task.

        Args:
            task: the task.
            clients: their names.
            counts: what `of` returned for them.
        """
        labelled = np.array([self.labelled(name, task) for name in clients], np.int64)
        return labelled if self.weight_by == "labelled" else counts * (labelled > 0)

    def labelled(self, client: str, task: str) -> int:
        """Count a client's training rows with a label of a task, by its own description."""
        description = self.roster.descriptions.get(client)
        claimed = description.labelled.get(task, 0) if description else 0
        return min(max(claimed, 0), MOST_EXAMPLES)
