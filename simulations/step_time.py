"""How long a local training step took, from the record of a run."""

import math
from collections.abc import Mapping

from client.algorithms.algorithm import open_algorithm
from server.sampling import draw_clients
from simulations.run_record import Figures, RunRecord

MEANING = (
    "ms per local step: the wall time of a round by the optimiser steps of all its clients, mean "
    "over the rounds but the first. A round is training, the evaluation in it, messages and "
    "averaging; where clients train as one stack, a step is a client's share of it."
)


def ms_per_step(record: RunRecord) -> float:
    """Divide the time of rounds by the local steps in them, in milliseconds.

    A local step is one optimiser step of one client on one batch: a client with n training rows
    takes ``passes * ceil(n / batch-size)`` of them whenever it is asked, whether or not its reply
    could be used. The passes are the algorithm's, such as FedRep's over heads and trunk; what is
    fitted in an evaluation is none. The time is all of ``time_s`` in metrics.jsonl: local training,
    evaluation on the training reply or by messages, messages and averaging, not the checkpoint. The
    first round, which encodes the clients' data and warms up, is left out where there is another.

    Returns:
        NaN where the run did not end, or left a client out of its last evaluation, or rows are
        not told.
    """
    results = record.results
    withheld = record.experiment.privacy.counts == "withheld"
    if results is None or results["warnings"] or withheld or not results["clients"]:
        return math.nan
    sizes = {name: client["examples"]["train"] for name, client in results["clients"].items()}
    passes = open_algorithm(record.experiment).passes
    steps = {name: passes * count_batches(record, rows) for name, rows in sizes.items()}
    rounds = record.rounds[1:] or record.rounds
    total = sum(steps[name] for line in rounds for name in clients_asked(record, sizes, line))
    return 1000 * sum(line["time_s"] for line in rounds) / total if total else math.nan


def count_batches(record: RunRecord, rows: int) -> int:
    """Count the batches of a client's epoch."""
    return math.ceil(rows / record.experiment.training.batch_size)


def clients_asked(record: RunRecord, sizes: Mapping[str, int], line: Figures) -> list[str]:
    """Draw a round's clients again, as the server did; those of repeated attempts more than once.

    Args:
        record: of the run.
        sizes: client -> its training rows.
        line: of the round.
    """
    attempts = len(line.get("lost-attempts", ())) + 1
    return [
        name
        for attempt in range(attempts)
        for name in draw_clients(record.experiment, sizes, line["round"], attempt)
    ]
