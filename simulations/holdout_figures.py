"""What came of a comparison's newcomers: each fitted after the run, summarised over seeds."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.personalise import ALONE, CONTENDERS
from common.agreement import Agreement
from common.clients import open_clients
from common.errors import DataError
from common.experiment import Experiment
from common.preparation import PreparedClient, prepare
from server.figures import split_figures
from server.run_folder import RunFolder
from server.sums import SumTable
from simulations.gains import TaskFigures, summarise, task_metrics
from simulations.holdout import Holdout, with_clients
from simulations.newcomers import Outcome, default_limits, fit_newcomer, make_newcomer_trainer


@dataclass(frozen=True)
class Newcomers:
    """What came of one trunk's newcomers under one seed.

    Attributes:
        clients: those held out.
        left_out: those of them that could not be fitted -> why.
        figures: number of rows, or "all" -> contender -> task -> metric, over the test rows of all
            newcomers that have so many training rows.
        counts: number of rows, or "all" -> how many newcomers that are.
        at_limit: contender -> how many of its fits were best in the last epoch allowed.
        fits: how many fits each contender had.
    """

    clients: tuple[str, ...]
    left_out: Mapping[str, str]
    figures: Mapping[str, Mapping[str, TaskFigures]]
    counts: Mapping[str, int]
    at_limit: Mapping[str, int]
    fits: int


def fit_newcomers(
    experiment: Experiment, folder: Path, names: Sequence[str], holdout: Holdout
) -> Newcomers:
    """Personalise the held-out clients on the trunk of a run that ended.

    Args:
        experiment: that of the run.
        folder: its run folder.
        names: the held-out clients.
        holdout: on how many rows.

    Raises:
        CheckpointError: the run's checkpoint cannot be read.
    """
    progress, arrays = RunFolder(folder).checkpoints().load(experiment.fingerprint())
    agreement = Agreement.from_json(progress.agreement)
    trainer = make_newcomer_trainer(experiment, agreement, arrays)
    trunk = {name: a for name, a in arrays.items() if name in trainer.flat.layout.slices}
    limits = default_limits(experiment)
    left_out: dict[str, str] = {}
    outcomes: list[Outcome] = []
    for prepared in _prepare(experiment, names, left_out):
        rows = len(prepared.splits["train"])
        counts = [count for count in holdout.rows if count is None or count <= rows]
        try:
            outcomes += list(fit_newcomer(trainer, agreement, trunk, prepared, counts, limits))
        except DataError as error:  # its rows do not fit the agreement
            left_out[prepared.name] = str(error)
    late = Counter(o.contender for o in outcomes if o.fit.epochs == o.limit)
    return Newcomers(
        clients=tuple(names),
        left_out=left_out,
        figures={label: _figures(experiment, outcomes, label) for label in holdout.labels},
        counts={label: _count(outcomes, label) for label in holdout.labels},
        at_limit={name: late[name] for name in CONTENDERS},
        fits=len(outcomes) // len(CONTENDERS),
    )


def _prepare(
    experiment: Experiment, names: Sequence[str], left_out: dict[str, str]
) -> Iterator[PreparedClient]:
    """Read the held-out clients' rows; notes why one cannot be used."""
    source = open_clients(with_clients(experiment, ()))
    for name in names:
        try:
            prepared = prepare(source.read(name), experiment)
        except DataError as error:
            left_out[name] = str(error)
            continue
        if len(prepared.splits["test"]):
            yield prepared
        else:
            left_out[name] = f"client '{name}' has no test rows"


def _figures(
    experiment: Experiment, outcomes: Sequence[Outcome], label: str
) -> dict[str, TaskFigures]:
    """Compute each contender's figures over the test rows of all newcomers."""
    figures = {}
    for name in CONTENDERS:
        reports = {
            o.data.name: {"test": o.fit.test}
            for o in outcomes
            if (o.label, o.contender) == (label, name)
        }
        whole = split_figures(experiment, SumTable.of(reports), "test", experiment.task_weights())
        figures[name] = task_metrics(experiment, whole)
    return figures


def _count(outcomes: Sequence[Outcome], label: str) -> int:
    return len({outcome.data.name for outcome in outcomes if outcome.label == label})


def summarise_newcomers(experiment: Experiment, seeds: Mapping[int, Newcomers]) -> dict[str, Any]:
    """Summarise one trunk's newcomers over seeds.

    Returns:
        ``{"clients": {seed: names}, "left-out": {seed: {client: why}}, "fits": each contender's,
        "at-limit": {contender: those best in the last epoch allowed}, "rows": {label: {"clients":
        one number a seed, "contenders": {name: {"tasks": {task: spread}, "delta-m": spread}}}}}``;
        Delta-m is the gain over training from scratch.
    """
    first = next(iter(seeds.values()))
    rows = {}
    for label in first.figures:
        scratch = [own.figures[label][ALONE] for own in seeds.values()]
        rows[label] = {
            "clients": [own.counts[label] for own in seeds.values()],
            "contenders": {
                name: summarise(
                    experiment, [own.figures[label][name] for own in seeds.values()], scratch
                )
                for name in CONTENDERS
            },
        }
    return {
        "clients": {str(seed): list(own.clients) for seed, own in seeds.items()},
        "left-out": {str(seed): dict(own.left_out) for seed, own in seeds.items()},
        "at-limit": {
            name: sum(own.at_limit[name] for own in seeds.values()) for name in CONTENDERS
        },
        "fits": sum(own.fits for own in seeds.values()),
        "rows": rows,
    }


def describe_newcomers(
    trunks: Mapping[str, Mapping[int, Newcomers]], experiment: Experiment
) -> dict[str, Any]:
    """Say what comparison.json says of newcomers; nothing where no client was held out.

    Args:
        trunks: contender or variant -> seed -> its newcomers.
        experiment: names tasks and metrics.
    """
    found = {name: summarise_newcomers(experiment, own) for name, own in trunks.items() if own}
    if not found:
        return {}
    lines = {name: contender.line for name, contender in CONTENDERS.items()}
    return {"newcomers": {"contenders": lines, "trunks": found}}


def describe_seed(newcomers: Newcomers | None) -> dict[str, Any]:
    """Say what the figures of one seed say of newcomers."""
    return {} if newcomers is None else {"newcomers": asdict(newcomers)}
