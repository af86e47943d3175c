"""What must hold for an epsilon to be true, as sentences made from the settings."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.agreement import collects_categories
from common.privacy.ledger import budgets

if TYPE_CHECKING:
    from common.experiment import Experiment

FLOATING_POINT = (
    "Noise is drawn in floating point, whose gaps between numbers can give something away "
    "(Mironov 2012), and by generators that start from the system's entropy and are fast, not "
    "cryptographic; the figures are those of real numbers."
)
CHOSEN = (
    "Settings were chosen without looking at the clients' rows, or their choice counts elsewhere: "
    "runs that were tried before this one are not in its figures."
)


def assumptions(experiment: "Experiment") -> list[str]:
    """List what the budgets of an experiment rest on; nothing where it has none."""
    if not budgets(experiment):
        return []
    return [
        *_client(experiment),
        *_example(experiment),
        *_outside(experiment),
        CHOSEN,
        *_weights(experiment),
        *_sampling_of_noise(experiment),
    ]


def _weights(experiment: "Experiment") -> Iterator[str]:
    trunk = experiment.trunk
    if trunk.weights is not None or (trunk.is_ready and trunk.pretrained):
        yield (
            "The weights that the trunk starts from tell nothing of the clients' rows, or what "
            "they cost counts elsewhere: a trunk that was trained on these rows before adds the "
            "epsilon of that training, and where that had none, there is no bound."
        )


def _client(experiment: "Experiment") -> Iterator[str]:
    level = experiment.privacy.client_level
    if level is None:
        return
    yield (
        "Client level: neighbouring federations differ in one client, which is there with all of "
        "its rows, or adds nothing (add-or-remove-one)."
    )
    yield {
        "server": "The server is trusted: it sees every client's own update, clips or checks it, "
        "and adds the noise before anybody else sees the trunk.",
        "client": "No trust in the server is needed for updates: each client adds all of the noise "
        "before its update leaves.",
        "shares": "The server sees the sum of the updates alone; every client of a round adds its "
        "share of the noise, and what those who drop out or cheat leave out is missing.",
    }[level.noise]
    if level.amplification:
        yield (
            "Who was drawn in a round is secret: every client is drawn by itself with the same "
            "probability, and nobody but the server knows who was. Files that name the clients of "
            "a round, such as the run folder's, must stay with the server."
        )
    else:
        yield (
            "Who takes part in which round is public and does not depend on rows. A client pays "
            "for the rounds it takes part in; the figure is that of the one that paid most."
        )
    if level.quantile is not None:
        yield (
            "The clipping norm follows a count with noise of its own, whose cost is in the noise "
            "multiplier (Andrew et al. 2021, theorem 1)."
        )


def _example(experiment: "Experiment") -> Iterator[str]:
    level = experiment.privacy.example_level
    if level is None:
        return
    yield (
        "Example level: neighbouring data sets differ in one training row of one client, and each "
        "client has an epsilon of its own, by its number of rows; a person with several rows has "
        "less protection."
    )
    yield (
        "Each step of training takes each row by itself with the same probability (Poisson), and "
        "nobody but the client knows which rows it took."
    )
    if experiment.privacy.counts == "withheld":
        yield (
            "Clients do not tell how many rows they have: each knows its epsilon alone, and its "
            "ledger keeps it within the budget."
        )
    yield "Each client is trusted by its own people alone: the noise is in what leaves it."
    if level.covers == "trunk":
        yield "Heads are fitted without noise and hold rows; they must stay where they are."


def _outside(experiment: "Experiment") -> Iterator[str]:
    """Name what leaves clients outside every budget."""
    privacy, inputs = experiment.privacy, experiment.inputs
    if privacy.counts == "sent":
        yield (
            "Outside the budget: how many rows and labels a client has, which tasks, and the names "
            "of its columns, as it tells them."
        )
    if privacy.sums_regime == "sent":
        yield "Outside the budget: losses, metrics and their counts, which are sent as they are."
    if privacy.sums_regime == "noised" and privacy.example_level is not None:
        yield (
            "Outside the example level's budget: losses and metrics with noise, which the client "
            "level's pays for."
        )
    if privacy.sums_regime == "secure":
        yield (
            "Outside the budget: the sums of losses, metrics and counts over all clients, without "
            "noise; the server learns no client's own."
        )
    if any(each.standardise == "federation" for each in inputs.values()):
        yield (
            "Outside the budget: the clients' sums and squares of columns, by which inputs are "
            "standardised, and which are agreed on before round 1."
        )
    if any(collects_categories(each) for each in inputs.values()):
        yield "Outside the budget: which categories occur, which are agreed on before round 1."
    if privacy.example_level is not None and _encodes_by_own_rows(experiment):
        yield (
            "Outside the budget: means, deviations and the like of a client's own training rows, "
            "by which it encodes them. They stay at home, but follow every row."
        )
    if privacy.example_level is not None and privacy.client_level is None:
        yield "Outside the budget: validation and test rows, which only sums are made of."


def _encodes_by_own_rows(experiment: "Experiment") -> bool:
    """Whether encoding learns from a client's training rows, without noise."""
    inputs, tasks = experiment.inputs.values(), experiment.tasks.values()
    filled = any(each.missing == "mean" or each.standardise == "client" for each in inputs)
    return filled or any(task.standardise == "client" for task in tasks)


def _sampling_of_noise(experiment: "Experiment") -> Iterator[str]:
    level = experiment.privacy.client_level
    if level is None or level.noise != "shares" or experiment.privacy.example_level is not None:
        yield FLOATING_POINT
