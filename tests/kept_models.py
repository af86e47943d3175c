"""Small federations with every kind of input and task, and what they leave behind."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from client.kept_model import KeptModel
from common.agreement import agree, describe
from common.experiment import Experiment
from common.fitted import Fitted
from common.model import build_model
from common.sharing import shared_names
from common.tables import ClientTable

INPUTS = {
    "x": {"columns": ["x*"], "standardise": "client", "missing": "mean", "scale": 10.0},
    "w": {"columns": ["w"], "standardise": "federation", "missing": "zero"},
    "town": {"kind": "categorical", "columns": ["town", "side"], "missing": "own-category"},
}
TASKS = {
    "kind": {"kind": "multiclass", "classes": ["low", "mid", "high"]},
    "stage": {"kind": "multiclass", "classes": 3, "metric": "f1"},
    "flag": {"kind": "binary", "metric": "auroc"},
    "side-effect": {"kind": "binary", "classes": ["no", "yes"]},
    "marks": {"kind": "multilabel", "target": ["m1", "m2"]},
    "size": {"kind": "regression", "standardise": "client"},
    "place": {"kind": "regression", "target": ["p1", "p2"], "metric": "mae"},
    "cost": {"kind": "regression", "transform": "log1p", "standardise": "client"},
}


def make_frame(rows: int, seed: int) -> pd.DataFrame:
    """Rows whose targets follow from their inputs, with gaps in both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(50.0 + 10 * seed, 20.0, (rows, 3))
    score = (x[:, 0] - x[:, 0].mean()) / 20
    frame = pd.DataFrame(
        {
            "id": [f"0{i}" for i in range(rows)],
            **{f"x{k}": x[:, k].round(3) for k in range(3)},
            "w": rng.normal(size=rows).round(3),
            "town": rng.choice(["north", "south", "5"], rows),
            "side": rng.choice([1, 2], rows),
            "kind": np.array(["low", "mid", "high"])[np.digitize(score, [-0.5, 0.5])],
            "stage": np.digitize(x[:, 1], [45, 60]),
            "flag": rng.random(rows) < 0.5,
            "side-effect": np.where(score > 0, "yes", "no"),
            "m1": (score > 0.2).astype(int),
            "m2": rng.choice([0, 1], rows),
            "size": 1000 + 100 * score,
            "p1": score,
            "p2": -score,
            "cost": np.expm1(np.abs(score) * 3),
        }
    )
    frame.loc[rng.choice(rows, rows // 8), "x1"] = np.nan
    frame.loc[rng.choice(rows, rows // 8), "w"] = np.nan
    frame.loc[rng.choice(rows, rows // 8), "town"] = None
    frame.loc[rng.choice(rows, rows // 8), "size"] = np.nan
    return frame


def make_experiment(**tables) -> Experiment:
    """All kinds of inputs and tasks; tables replace those of the same name."""
    settings = {
        "name": "kept",
        "data": {"source": "folder", "unseen-classes": "keep"},
        "inputs": INPUTS,
        "tasks": TASKS,
        "trunk": {"widths": [6, 5]},
        "training": {"batch-size": 8, "optimiser": "adam", "lr": 0.01, "device": "cpu"},
        "federation": {"rounds": 2},
        **tables,
    }
    return Experiment.model_validate(settings)


def write_federation(folder: Path, **tables) -> Experiment:
    """Write the files of two clients, the second without task `kind`; returns their experiment."""
    data = folder / "data"
    data.mkdir()
    for seed, name in enumerate("ab"):
        frame = make_frame(60, seed)
        frame.drop(columns=["kind"] if name == "b" else []).to_csv(
            data / f"{name}.csv", index=False
        )
    given = {"source": "folder", "unseen-classes": "keep", **tables.pop("data", {})}
    return make_experiment(data={**given, "path": str(data)}, **tables)


def untrained(
    experiment: Experiment, table: ClientTable, fitted: Fitted | None = None
) -> KeptModel:
    """A model as it is initialised, of a client that holds all tasks."""
    agreement = agree([describe(table, experiment)], experiment)
    model = build_model(experiment, agreement.shapes)
    arrays = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    return KeptModel("run-1", table.name, 3, experiment, agreement, fitted or Fitted(), arrays)


def write_state(state: Path, kept: KeptModel, seen: int = 3, generations=(2, 3)) -> Path:
    """Write what a node keeps of a client; heads of other generations than `seen` are all 0."""
    place = state / "runs" / kept.run / kept.client
    place.mkdir(parents=True)
    about = {
        "run": kept.run,
        "client": kept.client,
        "experiment": json.loads(kept.experiment.model_dump_json()),
        "agreement": json.loads(kept.agreement.to_json()),
    }
    (place / "run.json").write_text(json.dumps(about))
    (place / "fitted.json").write_text(kept.fitted.to_json())
    shared = set(shared_names(kept.arrays, kept.experiment))
    trunk = {name: array for name, array in kept.arrays.items() if name in shared}
    own = {name: array for name, array in kept.arrays.items() if name not in shared}
    save_file(trunk, place / "trunk.safetensors", metadata={"round": str(seen)})
    memory = {f"loss-memory.task-{task}": np.ones(2, np.float32) for task in kept.tasks}
    for number in generations:
        arrays = {n: a if number == seen else np.zeros_like(a) for n, a in own.items()}
        save_file(arrays | memory, place / f"own-{number:08d}.safetensors")
    return place
