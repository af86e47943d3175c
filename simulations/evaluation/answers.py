"""What the models of a finished run say about rows of one split, client after client.

Each client's rows meet the final trunk with the client's own heads, where the rows are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.answers import read_output
from client.kept_model import KeptModel
from client.own_arrays import used_arrays
from client.prediction import ROWS
from common.cells import list_names
from common.clients import open_clients
from common.dataset import ClientData, Rows, TargetScale
from common.encoding import encode
from common.errors import CheckpointError, ConfigError, DataError
from common.metrics import Sums, metric_sums
from common.model import build_model
from common.natural_order import natural_sort
from common.sections.rows import Task
from common.sharing import learned_names, task_of
from common.wire import FloatArray
from simulations.kept_federation import KeptFederation, open_federation
from simulations.run_record import RunRecord, read_run

SPLITS = ("test", "validation")


@dataclass(frozen=True)
class TaskRows:
    """One task's answers for N labelled rows, and what is true.

    Attributes:
        truth: int64 classes, [N] (multiclass, binary) or [N, labels] (multilabel); or float64 [N,
            outputs] in the target's own unit, without `transform` (regression).
        value: what the model says, as `truth`.
        probability: float64, as in `client.answers.Answer`; None for regression.
        finite: bool [N], whether all that the model says of a row are numbers.
    """

    truth: NDArray[Any]
    value: NDArray[Any]
    probability: NDArray[np.float64] | None
    finite: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.truth)

    def answered(self) -> "TaskRows":
        """Leave out the rows for which the model says no number."""
        probability = None if self.probability is None else self.probability[self.finite]
        truth, value = self.truth[self.finite], self.value[self.finite]
        return TaskRows(truth, value, probability, self.finite[self.finite])

    @classmethod
    def join(cls, parts: list["TaskRows"]) -> "TaskRows":
        """Put the rows of several clients one after another."""
        probabilities = [part.probability for part in parts if part.probability is not None]
        return cls(
            np.concatenate([part.truth for part in parts]),
            np.concatenate([part.value for part in parts]),
            np.concatenate(probabilities) if probabilities else None,
            np.concatenate([part.finite for part in parts]),
        )


@dataclass(frozen=True)
class ClientAnswers:
    """One client's rows.

    Attributes:
        name: of the client.
        rows: number of rows of the split.
        tasks: tasks that it has labelled rows of -> answers.
        sums: the same tasks -> sums of the task's metric, as the client would send them.
    """

    name: str
    rows: int
    tasks: Mapping[str, TaskRows]
    sums: Mapping[str, Sums]


@dataclass(frozen=True)
class EndedRun:
    """A run that ended, and all that its clients need to answer.

    Attributes:
        record: what its folder says; its results are there.
        kept: its trunk, and what its clients keep.
    """

    record: RunRecord
    kept: KeptFederation

    @property
    def results(self) -> Mapping[str, Any]:
        """The content of results.json."""
        return self.record.results or {}

    @property
    def clients(self) -> frozenset[str]:
        """Those that keep something, and those that the run's last evaluation tells of."""
        return frozenset(self.kept.own) | frozenset(self.results["clients"])


def open_ended(folder: Path, data: str | None = None) -> EndedRun:
    """Open a run folder.

    Args:
        folder: of a simulation whose run ended.
        data: where raw data is, if not where the experiment says.

    Raises:
        CheckpointError: it is none, has not ended, or holds no client's heads.
        ConfigError: its experiment cannot be read.
    """
    record = read_run(folder)
    if record.results is None:
        raise CheckpointError(
            f"{folder} must be a run that ended, and has no results.json; go on with it: "
            f"fedmtl simulate --resume {folder}"
        )
    kept = open_federation(folder, data)
    if not kept.own:
        raise CheckpointError(
            f"{folder} holds no client's heads, which stay with the clients of a deployment; give "
            "the folder of a run with --engine loopback or batched"
        )
    return EndedRun(record, kept)


def answer_all(ended: EndedRun, split: str) -> Iterator[ClientAnswers]:
    """Let every client of the run answer its rows of a split, one after another.

    Raises:
        ConfigError: there is no such split.
        DataError: the data is not the run's.
        CheckpointError: a model is not complete.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split must be {' or '.join(SPLITS)}, got '{split}'; choose one")
    kept = ended.kept
    source = open_clients(kept.experiment)
    if missing := natural_sort(ended.clients - set(source.names)):
        raise DataError(
            f"the data must have all {len(ended.clients)} clients of the run, lacks "
            f"{list_names(missing)}; give the run's own data with --data"
        )
    for name in source.names:
        if name in ended.clients:
            data = encode(source.read(name), kept.experiment, kept.agreement)
            _check_count(ended, data, split)
            yield answer(model_of(kept, data), data, split)


def model_of(kept: KeptFederation, data: ClientData) -> KeptModel:
    """Give a client the final trunk with its own heads, or new ones if it was never asked."""
    if data.name in kept.own:
        return kept.model_of(data.name, data.fitted)
    return KeptModel(
        run=kept.run,
        client=data.name,
        round=kept.round,
        experiment=kept.experiment,
        agreement=kept.agreement,
        fitted=data.fitted,
        arrays=new_arrays(kept, data),
    )


def new_arrays(kept: KeptFederation, data: ClientData) -> dict[str, FloatArray]:
    """Get the parameters of a client that took part in no round: what it lacks is initialised."""
    model = build_model(kept.experiment, kept.shapes)
    parameters = dict(model.named_parameters())
    learned = set(learned_names(parameters, kept.experiment))
    own = {
        name: parameter.detach().numpy()
        for name, parameter in parameters.items()
        if name not in kept.trunk and name in learned and task_of(name) in (None, *data.tasks)
    }
    return used_arrays(kept.experiment, kept.trunk, own)


def answer(model: KeptModel, data: ClientData, split: str) -> ClientAnswers:
    """Answer one client's labelled rows of a split.

    Raises:
        CheckpointError: the model is not complete.
    """
    rows, experiment = data.splits[split], model.experiment
    held = [task for task in model.tasks if task in rows.targets and rows.labelled[task].any()]
    outputs = _outputs(model, rows, held) if held else {}
    tasks, sums = {}, {}
    for name in held:
        task, scale = experiment.tasks[name], data.target_scales.get(name)
        mask = rows.labelled[name]
        output, target = outputs[name][mask], rows.targets[name][mask]
        sums[name] = metric_sums(task.metric_name, task.kind, output, target, scale)
        tasks[name] = read_rows(task, output, target, scale)
    return ClientAnswers(data.name, len(rows), tasks, sums)


def read_rows(task: Task, output: Tensor, target: Tensor, scale: TargetScale | None) -> TaskRows:
    """Read one task's outputs and targets, N labelled rows.

    Args:
        task: its settings.
        output: [N, outputs] of its head.
        target: as in `common.dataset.Rows.targets`.
        scale: of the client's targets, where they are standardised.
    """
    said = read_output(task, output, scale)
    truth = read_output(task, target, scale).value if task.kind == "regression" else target
    probability = None if said.probability is None else said.probability.double().numpy()
    value = _plain(task, said.value)
    finite = output.isfinite().all(dim=1).numpy()
    finite &= np.isfinite(value).reshape(len(value), -1).all(axis=1)  # expm1 may reach infinity
    return TaskRows(_plain(task, truth), value, probability, finite)


def _outputs(model: KeptModel, rows: Rows, tasks: list[str]) -> dict[str, Tensor]:
    """Compute the heads' outputs, [N, outputs] each, some rows at a time."""
    built = model.build()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), ROWS):
            some = {name: x[start : start + ROWS] for name, x in rows.inputs.items()}
            parts.append(built(some, tasks)[0])
    return {task: torch.cat([part[task] for part in parts]) for task in tasks}


def _plain(task: Task, values: Tensor) -> NDArray[Any]:
    kind = torch.float64 if task.kind == "regression" else torch.int64
    plain: NDArray[Any] = values.to(kind).numpy()
    return plain


def _check_count(ended: EndedRun, data: ClientData, split: str) -> None:
    """Refuse rows that cannot be those of the run, as far as clients told how many they have."""
    told = ended.results["clients"].get(data.name, {}).get("examples", {}).get(split)
    found = len(data.splits[split])
    if told is not None and told != found:
        raise DataError(
            f"client '{data.name}' must have the run's {told} {split} rows, got {found}: this is "
            "other data, or it has changed; give the run's own with --data"
        )
