"""What a federation is compared with: local training, alone per task or for all tasks, and pooling.

All train with the client's own `Trainer` on the same splits, for as many epochs as the federation's
clients train, and are read at the round that is best by ``evaluation.best-by``.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from client.training import Trainer, choose_device
from common.agreement import (
    Agreement,
    agree,
    describe,
    input_shapes,
    require_clients,
    require_labels,
)
from common.best import BestBy
from common.clients import open_clients
from common.dataset import SPLITS, ClientData, Rows
from common.encoding import encode
from common.errors import FedMTLError
from common.experiment import Experiment
from common.metrics import METRICS, add_sums
from common.model import build_model
from common.sections.model import Loss
from common.wire import SplitSums

EVALUATED = ("validation", "test")


def read_clients(experiment: Experiment) -> tuple[list[ClientData], Agreement]:
    """Read every client's data as a federation of this experiment would."""
    source = open_clients(experiment)
    tables = [source.read(name) for name in source.names]
    descriptions = [describe(table, experiment) for table in tables]
    agreement = agree(descriptions, experiment)
    require_labels(descriptions, experiment)
    require_clients(sum(not d.left_out for d in descriptions), experiment)
    return [
        encode(table, experiment, agreement)
        for table, description in zip(tables, descriptions, strict=True)
        if not description.left_out
    ], agreement


def make_trainer(experiment: Experiment, agreement: Agreement) -> Trainer:
    """Make a trainer with freshly initialised parameters.

    What its loss weighting remembers is its own, from round to round: no server keeps it.
    """
    device = choose_device(experiment.training.device)
    loss = experiment.loss.model_copy(update={"scope": "local"})
    plain: dict[str, Any] = {"algorithm": "joint", "algorithm_options": {}, "heads": "local"}
    if experiment.federation.algorithm == "whole-model":
        plain["algorithm"] = "whole-model"
    federation = experiment.federation.model_copy(update=plain)
    own = experiment.model_copy(update={"loss": loss, "federation": federation})
    return Trainer(own, input_shapes(agreement), device, simulated=True)


def train_local(
    experiment: Experiment, agreement: Agreement, clients: Iterable[ClientData]
) -> dict[str, SplitSums]:
    """Train each client's own trunk and heads on its rows alone; client name -> sums."""
    trainer = make_trainer(experiment, agreement)
    results = {}
    for data in clients:
        trainer.load({}, {})
        results[data.name] = _best_round(experiment, trainer, data, [data])[data.name]
    return results


def train_single_task(
    experiment: Experiment, agreement: Agreement, clients: Sequence[ClientData]
) -> dict[str, SplitSums]:
    """Train a model per client and task; client name -> sums of all its tasks."""
    results: dict[str, SplitSums] = {data.name: {} for data in clients}
    for task in experiment.tasks:
        alone = {task: experiment.tasks[task]}
        # Alone, a task has nothing to be weighed against, and no other to share a trunk with.
        hard: dict[str, Any] = {"sharing": "hard", "options": {}, "task_parts": None}
        trunk = experiment.trunk.model_copy(update=hard)
        single = experiment.model_copy(update={"tasks": alone, "loss": Loss(), "trunk": trunk})
        single = startable(single, agreement)
        holders = [only_task(data, task) for data in clients if task in data.tasks]
        for name, sums in train_local(single, agreement, holders).items():
            for split, tasks in sums.items():
                results[name].setdefault(split, {}).update(tasks)
    return results


def train_centralised(
    experiment: Experiment, agreement: Agreement, clients: Sequence[ClientData]
) -> dict[str, SplitSums]:
    """Train one model, one head per task, on the rows of all clients; client name -> sums."""
    # It has the parts of all tasks, also where it is evaluated at a client that lacks some.
    federation = experiment.federation.model_copy(update={"algorithm": "whole-model"})
    whole = experiment.model_copy(update={"federation": federation})
    trainer = make_trainer(whole, agreement)
    trainer.load({}, {})
    return _best_round(experiment, trainer, pool(clients), clients)


def startable(experiment: Experiment, agreement: Agreement) -> Experiment:
    """Let a trunk start from the seed, and train whole, where its weights are of several trunks."""
    if experiment.trunk.weights is None:
        return experiment
    try:
        build_model(experiment, input_shapes(agreement))
    except FedMTLError:
        fresh = dict.fromkeys(("weights", "trains", "adapters"))
        trunk = experiment.trunk.model_copy(update={**fresh, "weights_digest": ""})
        return experiment.model_copy(update={"trunk": trunk})
    return experiment


def only_task(data: ClientData, task: str) -> ClientData:
    """Reduce a client's data to the rows that are labelled for one task."""
    splits = {}
    for name, rows in data.splits.items():
        chosen = rows.select(rows.labelled[task].nonzero().squeeze(1))
        splits[name] = Rows(
            chosen.inputs, {task: chosen.targets[task]}, {task: chosen.labelled[task]}
        )
    scales = {t: scale for t, scale in data.target_scales.items() if t == task}
    return ClientData(data.name, splits, scales)


def pool(clients: Sequence[ClientData]) -> ClientData:
    """Put the rows of all clients together; a task that a client lacks is unlabelled there."""
    splits = {name: Rows.join([data.splits[name] for data in clients]) for name in SPLITS}
    return ClientData("centralised", splits)


def _best_round(
    experiment: Experiment, trainer: Trainer, data: ClientData, judges: Sequence[ClientData]
) -> dict[str, SplitSums]:
    """Train for all rounds and return the sums of the best round.

    Best is what ``evaluation.best-by`` says. Where it has no figure for this model, such as that of
    a task which it does not learn, the loss decides; where no judge has validation rows, it is the
    last round.
    """
    weights, patience = experiment.task_weights(), experiment.evaluation.patience
    is_judged = any(len(judge.splits["validation"]) for judge in judges)
    best: dict[str, SplitSums] = {}
    best_by, waited = BestBy.of(experiment), 0
    top: float | None = None
    for number in range(1, experiment.federation.rounds + 1):
        trainer.train(data, weights, number)
        if number % experiment.evaluation.every and number != experiment.federation.rounds:
            continue
        sums: dict[str, SplitSums] = {
            judge.name: {split: trainer.evaluate(judge, split) for split in EVALUATED}
            for judge in judges
        }
        figure = judged_figure(best_by, sums.values(), weights)
        if top is None and math.isnan(figure):
            best_by = BestBy(min_delta=best_by.min_delta)
            figure = judged_figure(best_by, sums.values(), weights)
        is_better = best_by.is_better(figure, top)  # NaN, of a model that diverged, is not
        waited = 0 if is_better else waited + 1
        top = figure if is_better else top
        if is_better or not best or not is_judged:
            best = sums
        if is_judged and patience is not None and waited >= patience:
            break
    return best


def judged_figure(
    best_by: BestBy, clients: Iterable[SplitSums], weights: Mapping[str, float]
) -> float:
    """Compute the figure that decides which round is best; NaN where there is none."""
    if not best_by.task:
        return validation_loss(clients, weights)
    judged = [sums.get("validation", {}).get(best_by.task) for sums in clients]
    numbers = [own[best_by.metric] for own in judged if own is not None]
    if not numbers:
        return math.nan
    return METRICS[best_by.metric].figure(functools.reduce(add_sums, numbers))


def validation_loss(clients: Iterable[SplitSums], weights: Mapping[str, float]) -> float:
    """Compute ``sum_t w_t * L_t`` over validation rows; NaN where there are none."""
    totals: dict[str, list[float]] = {}
    for sums in clients:
        for task, numbers in sums.get("validation", {}).items():
            total = totals.setdefault(task, [0.0, 0.0])
            total[0] += numbers["loss"][0]
            total[1] += numbers["loss"][1]
    if not totals:
        return math.nan
    return sum(weights[task] * loss / rows for task, (loss, rows) in totals.items())


Baseline = Callable[[Experiment, Agreement, Sequence[ClientData]], dict[str, SplitSums]]
BASELINES: dict[str, Baseline] = {
    "single-task local": train_single_task,
    "multi-task local": train_local,
    "centralised": train_centralised,
}
