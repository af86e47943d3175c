"""Clients that took no part in a federation: fitted on its trunk, and alone, by number of rows.

All contenders get the same training rows, batches, settings and limits, and each is read after its
epoch of lowest validation loss.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from client.few_rows import keep_rows
from client.personalise import CONTENDERS, Fit, Limits, fit_contender
from client.training import Trainer, choose_device
from common.agreement import Agreement, input_shapes
from common.cells import list_names
from common.dataset import ClientData
from common.encoding import encode_prepared
from common.errors import CheckpointError, ConfigError
from common.experiment import Experiment
from common.preparation import PreparedClient
from common.wire import FloatArray

ALL = "all"
Counts = Sequence[int | None]  # of training rows; None for all there are


@dataclass(frozen=True)
class Outcome:
    """What came of one contender on so many rows.

    Attributes:
        label: number of training rows as it was asked for, or "all".
        contender: a key of `client.personalise.CONTENDERS`.
        fit: epochs, and sums over test rows.
        limit: the most epochs that were allowed.
        data: the client's rows as they were encoded.
    """

    label: str
    contender: str
    fit: Fit
    limit: int
    data: ClientData


def parse_counts(option: str, text: str) -> list[int | None]:
    """Read numbers of rows, as in ``5,20,all``.

    Raises:
        ConfigError: they are none; names the option.

    >>> parse_counts("--rows", "5, 20,all")
    [5, 20, None]
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word == ALL or (word.isdecimal() and int(word)) for word in words):
        raise ConfigError(
            f"{option} must be numbers of training rows from 1 up, or all, as in 5,20,all, got "
            f"'{text}'"
        )
    if len(set(words)) < len(words):
        raise ConfigError(f"{option} names a number of rows twice, got '{text}'; remove one")
    return [None if word == ALL else int(word) for word in words]


def default_limits(experiment: Experiment, epochs: int | None = None) -> Limits:
    """Take as many epochs as a client of the federation trains at most, and its patience."""
    local, evaluation = experiment.training.epochs, experiment.evaluation
    patience = evaluation.patience
    return Limits(
        epochs or experiment.federation.rounds * local,
        None if patience is None else patience * evaluation.every * local,
    )


def stretch(limits: Limits, all_rows: int, rows: int, batch: int) -> Limits:
    """Allow fewer rows as many steps as all rows have: more epochs, and patience in proportion.

    >>> stretch(Limits(10, 3), all_rows=130, rows=20, batch=32)
    Limits(epochs=50, patience=15)
    """
    times = math.ceil(math.ceil(all_rows / batch) / math.ceil(rows / batch))
    patience = None if limits.patience is None else limits.patience * times
    return Limits(limits.epochs * times, patience)


def make_newcomer_trainer(
    experiment: Experiment, agreement: Agreement, trunk: Mapping[str, FloatArray]
) -> Trainer:
    """Make the model of a federation, and check that its trunk is there whole.

    Raises:
        CheckpointError: it is not.
    """
    trainer = Trainer(
        experiment, input_shapes(agreement), choose_device(experiment.training.device)
    )
    if missing := [name for name in trainer.shared if name not in trunk]:
        raise CheckpointError(
            f"the run's trunk lacks {len(missing)} parameters of its experiment's model: "
            f"{list_names(missing)}; its checkpoint may be of another version of fedmtl"
        )
    return trainer


def fit_newcomer(
    trainer: Trainer,
    agreement: Agreement,
    trunk: Mapping[str, FloatArray],
    prepared: PreparedClient,
    counts: Counts,
    limits: Limits,
) -> Iterator[Outcome]:
    """Fit all contenders on each number of rows; after each, `trainer` holds its model.

    Args:
        trainer: see `make_newcomer_trainer`; its experiment's seed draws rows and new parameters.
        agreement: of the federation.
        trunk: what it shares.
        prepared: the newcomer's rows, split as those of any client of the federation.
        counts: numbers of training rows.
        limits: for every contender alike, over all training rows; over fewer, where an epoch has
            fewer steps, as many more epochs, so that nobody runs out of steps.

    Raises:
        ConfigError: there are fewer rows.
        DataError: the rows do not fit the agreement.
    """
    experiment, batch = trainer.experiment, trainer.experiment.training.batch_size
    for count in counts:
        kept = keep_rows(prepared, count, experiment.seed)
        data = encode_prepared(kept, experiment, agreement)
        label = ALL if count is None else str(count)
        own = stretch(limits, len(prepared.splits["train"]), len(data.train), batch)
        for name in CONTENDERS:
            fit = fit_contender(trainer, data, trunk, name, own)
            yield Outcome(label, name, fit, own.epochs, data)
