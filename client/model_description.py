"""What an exported model takes and gives, and where it comes from: ``model.json``."""

from typing import Any

import numpy as np

from client.exported_model import DTYPES
from client.kept_model import KeptModel
from common.encoding import places_of
from common.model_folder import TOKENIZER
from common.targets import class_names
from common.text import PADDING


def describe(kept: KeptModel) -> dict[str, Any]:
    """Describe a module's inputs and outputs, and where it comes from, for ``model.json``."""
    experiment = kept.experiment
    return {
        "experiment": experiment.name,
        "description": experiment.description,
        "run": kept.run,
        "client": kept.client,
        "round": kept.round,
        "fingerprint": experiment.fingerprint(),
        "inputs": [describe_input(kept, name) for name in experiment.inputs],
        "outputs": [output for task in kept.tasks for output in describe_outputs(kept, task)],
    }


def describe_input(kept: KeptModel, name: str) -> dict[str, Any]:
    """Describe one input: its columns in order, or its places."""
    settings = kept.experiment.inputs[name]
    about: dict[str, Any] = {
        "name": name,
        "kind": settings.kind,
        "dtype": DTYPES[settings.kind],
        "shape": ["batch", *kept.agreement.shapes[name]],
        "missing": settings.missing,
    }
    columns = kept.agreement.columns[name]
    if settings.kind == "text":
        about |= {"tokenizer": TOKENIZER, "padding": PADDING}
    if settings.kind != "categorical":
        return {**about, "columns": list(columns)}
    places = places_of(name, kept.experiment, kept.agreement)
    about["places"] = [
        {"column": column, "category": category}
        for column, known in zip(columns, places, strict=True)
        for category in known
    ]
    return about


def describe_outputs(kept: KeptModel, task: str) -> list[dict[str, Any]]:
    """Describe the outputs of one task."""
    settings = kept.experiment.tasks[task]
    width = len(kept.experiment.targets(task))
    if settings.kind == "regression":
        dtype = "float64" if settings.transform == "log1p" else "float32"
        about = {"name": task, "task": task, "kind": settings.kind, "holds": "value"}
        columns = list(kept.experiment.targets(task))
        return [{**about, "dtype": dtype, "shape": ["batch", width], "columns": columns}]
    about = {"task": task, "kind": settings.kind}
    value = {"name": task, **about, "holds": "class", "dtype": "int64"}
    chance = {"name": f"{task}.probability", **about, "holds": "probability", "dtype": "float32"}
    shape: list[str | int] = ["batch"]
    if settings.kind == "multilabel":
        labels = list(kept.experiment.targets(task))
        return [{**part, "shape": [*shape, width], "columns": labels} for part in (value, chance)]
    count = settings.class_count or 2
    classes = class_names(settings, np.arange(count))
    per_class = [*shape, count] if settings.kind == "multiclass" else shape
    return [
        {**value, "shape": shape, "classes": classes},
        {**chance, "shape": per_class, "classes": classes[-1:] if len(per_class) == 1 else classes},
    ]
