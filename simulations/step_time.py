"""How long a local training step took, from the record of a run."""

import math
from collections.abc import Iterable

from common.seeding import sample_names
from simulations.run_record import Figures, RunRecord

MEANING = (
    "ms per local step: the wall time of a round by the optimiser steps of all its clients, mean "
    "over the rounds but the first. A round is training, the evaluation in it, messages and "
    "averaging; where clients train as one stack, a step is a client's share of it."
)


def ms_per_step(record: RunRecord) -> float:
    """Divide the time of rounds by the local steps in them, in milliseconds.

    A local step is one optimiser step of one client on one batch: a client with n training rows
    takes ``epochs * ceil(n / batch-size)`` of them in a round that asks it, whether or not its
    reply could be used. The time is all of ``time_s`` in metrics.jsonl: local training, evaluation
    on the training reply or by messages, messages and averaging, not the checkpoint. The first
    round, which encodes the clients' data and warms up, is left out where there is another.

    Returns:
        NaN where the run did not end, or left a client out of its last evaluation, so that its
        rows are not known.
    """
    results = record.results
    if results is None or results["warnings"]:
        return math.nan
    steps = {
        name: count_steps(record, client["examples"]["train"])
        for name, client in results["clients"].items()
    }
    rounds = record.rounds[1:] or record.rounds
    total = sum(steps[name] for line in rounds for name in clients_asked(record, steps, line))
    return 1000 * sum(line["time_s"] for line in rounds) / total if total else math.nan


def count_steps(record: RunRecord, rows: int) -> int:
    """Count the optimiser steps of a client in one round."""
    training = record.experiment.training
    return training.epochs * math.ceil(rows / training.batch_size)


def clients_asked(record: RunRecord, clients: Iterable[str], line: Figures) -> list[str]:
    """Draw a round's clients again, as `server.strategy.TrunkStrategy.choose` did."""
    names = list(clients)
    if record.experiment.federation.clients_per_round == "all":
        return names
    asked = line["clients"]["asked"]
    return sample_names(names, asked, record.experiment.seed, "sampling", line["round"])
