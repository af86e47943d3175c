"""`fedmtl personalize`: a newcomer's heads on a run's trunk, against training alone.

The rows are split by the seed of the run, so that another seed draws other rows and other new
parameters, and is tested on the same rows.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.kept_model import KeptModel
from client.personalise import CONTENDERS, HEADS, SHARED, Limits
from client.state import FolderState, folder_name
from client.training import Trainer
from common.cells import list_names
from common.clients import open_clients
from common.dataset import SPLITS
from common.errors import CheckpointError, ConfigError, DataError
from common.experiment import Experiment
from common.json_gaps import without_gaps
from common.preparation import PreparedClient, prepare
from common.sharing import learned_names, task_of
from server.checkpoint import replace_text
from server.figures import split_figures
from server.run_folder import command_line
from server.sums import SumTable
from simulations.formats import format_count
from simulations.kept_trunk import KeptTrunk
from simulations.newcomers import Counts, Outcome, fit_newcomer, make_newcomer_trainer

FIGURES = "personalized.json"


@dataclass(frozen=True)
class Personalised:
    """What came of a newcomer.

    Attributes:
        figures: for people and machines; the content of personalized.json.
        model: the trunk with the heads that were fitted on the most rows.
    """

    figures: dict[str, Any]
    model: KeptModel


def read_newcomer(kept: KeptTrunk, client: str, *, allow_participant: bool) -> PreparedClient:
    """Find a client that took no part, and read and split its rows as the run would have.

    Args:
        kept: the run.
        client: its name; may be left out where there is one.
        allow_participant: take one that took part, too.

    Raises:
        ConfigError: no such client, several, or one that took part.
        DataError: its rows cannot serve, or none is kept for the test.
    """
    experiment = kept.experiment
    everybody = experiment.model_copy(
        update={"data": experiment.data.model_copy(update={"clients": ()})}
    )
    source = open_clients(everybody)
    names = [n for n in source.names if allow_participant or n not in (kept.clients or ())]
    if not client and len(names) == 1:
        client = names[0]
    if client in source.names and client not in names:
        raise ConfigError(
            f"--client must name a newcomer, got '{client}', which took part in run {kept.run}: "
            "the trunk was trained on its rows; name another, or add --allow-participant"
        )
    if client not in names:
        got = f"'{client}'" if client else "nothing"
        there = f"{format_count(len(names), 'newcomer')}: {list_names(names)}"
        way_out = (
            f"there are {there}" if names else "all there took part; give other data by --data"
        )
        raise ConfigError(
            f"--client must name a client of the data that took no part, got {got}; {way_out}"
        )
    prepared = prepare(source.read(client), everybody)
    if not len(prepared.splits["test"]):
        raise DataError(
            f"client '{client}' must have test rows to compare on, got none of "
            f"{sum(map(len, prepared.splits.values()))} (data.test of the run is "
            f"{experiment.data.test:g}); give it more rows, or choose a run that keeps test rows"
        )
    return prepared


def personalise(
    kept: KeptTrunk,
    prepared: PreparedClient,
    counts: Counts,
    experiment: Experiment,
    limits: Limits,
) -> Personalised:
    """Fit a newcomer's heads on each number of rows, beside the contenders.

    Args:
        kept: the run.
        prepared: the newcomer's rows.
        counts: numbers of training rows.
        experiment: the run's, with the settings and the seed to fit by.
        limits: for every contender alike.

    Raises:
        ConfigError: there are fewer rows.
        DataError: the rows do not fit what the run's clients agreed on.
        CheckpointError: the trunk is not that of the experiment.
    """
    trainer = make_newcomer_trainer(experiment, kept.agreement, kept.arrays)
    lines: list[dict[str, Any]] = []
    notes, models = list(prepared.notes), {}
    for outcome in fit_newcomer(trainer, kept.agreement, kept.arrays, prepared, counts, limits):
        lines.append(describe_outcome(outcome, experiment))
        notes += [note for note in outcome.data.notes if note not in notes]
        if outcome.contender == HEADS:
            models[len(outcome.data.train)] = take_model(kept, outcome, trainer)
    figures = {
        **describe_run(kept, prepared, experiment, limits),
        "notes": [*notes, *describe_gaps(kept, experiment)],
        "results": lines,
    }
    return Personalised(figures, models[max(models)])


def take_model(kept: KeptTrunk, outcome: Outcome, trainer: Trainer) -> KeptModel:
    """Take the fitted model out of its trainer, in the form that predictions are made from."""
    trunk = [name for name in kept.arrays if name.startswith(SHARED)]
    own = [
        name
        for name in learned_names(trainer.flat.layout.slices, trainer.experiment)
        if name not in trunk and task_of(name) in (None, *outcome.data.tasks)
    ]
    return KeptModel(
        run=kept.run,
        client=outcome.data.name,
        round=kept.round,
        experiment=kept.experiment,
        agreement=kept.agreement,
        fitted=outcome.data.fitted,
        arrays=trainer.flat.read([*trunk, *own]),
    )


def describe_run(
    kept: KeptTrunk, prepared: PreparedClient, experiment: Experiment, limits: Limits
) -> dict[str, Any]:
    """Say who was personalised, on what, and how."""
    return {
        "run": kept.run,
        "round": kept.round,
        "experiment": experiment.name,
        "fingerprint": kept.experiment.fingerprint(),
        "command": command_line(),
        "client": prepared.name,
        "seed": experiment.seed,
        "rows": {split: len(prepared.splits[split]) for split in SPLITS},
        "epochs": limits.epochs,
        "patience": limits.patience,
        "metrics": {task: experiment.tasks[task].metric_name for task in prepared.targets},
        "contenders": {name: contender.line for name, contender in CONTENDERS.items()},
    }


def describe_outcome(outcome: Outcome, experiment: Experiment) -> dict[str, Any]:
    """Describe one contender on so many rows; a task without test rows or labels is absent."""
    weights = experiment.task_weights()
    sums = SumTable.of({outcome.data.name: {"test": outcome.fit.test}})
    tasks = split_figures(experiment, sums, "test", weights).get("tasks", {})
    for figures in tasks.values():
        figures.pop("spread", None)  # over one client
    labelled = outcome.data.train.labelled
    return {
        "rows": len(outcome.data.train),
        "contender": outcome.contender,
        "epochs": outcome.fit.epochs,
        "epochs-done": outcome.fit.done,
        "epochs-limit": outcome.limit,
        "labelled": {task: int(mask.sum()) for task, mask in labelled.items()},
        "tasks": tasks,
    }


def describe_gaps(kept: KeptTrunk, experiment: Experiment) -> Iterator[str]:
    """Say in a line each what is not known, and where the loss is not the federation's."""
    if kept.clients is None:
        yield "the run folder does not tell who took part; whoever did is no newcomer"
    if kept.groups > 1:
        yield (
            f"the run ended with {kept.groups} groups of clients, each with a trunk of its own; a "
            "newcomer gets their mean, as the run's server would send it"
        )
    loss = experiment.loss
    if loss.weighting not in ("equal", "manual") or loss.scaling != "none":
        yield (
            f"every task has weight 1 here: what loss.weighting '{loss.weighting}' and "
            f"loss.scaling '{loss.scaling}' learned of the losses is the federation's own"
        )


def write_personalised(made: Personalised, out: Path) -> None:
    """Write the figures, and the model in the form of a node's state folder.

    Raises:
        CheckpointError, StateError: it cannot be written.
    """
    text = json.dumps(without_gaps(made.figures), indent=1, allow_nan=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_text(out / FIGURES, text)
    except OSError as error:
        raise CheckpointError(
            f"--out {out} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    model = made.model
    place = out / "runs" / folder_name(model.run) / folder_name(model.client)
    trunk = {n: a for n, a in model.arrays.items() if n.startswith(SHARED)}
    own = {n: a for n, a in model.arrays.items() if n not in trunk}
    about = {
        "run": model.run,
        "client": model.client,
        "experiment": json.loads(model.experiment.for_clients()),
        "agreement": json.loads(model.agreement.to_json()),
    }
    state = FolderState(place)
    state.save_trunk(model.round, trunk)
    state.save(model.round, own)
    state.save_run(about, model.fitted.to_json())
