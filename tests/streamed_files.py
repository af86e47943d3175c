"""Files of rows, and the same client read from them in memory and in pieces."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.agreement import agree, describe
from common.clients import open_clients
from common.dataset import SPLITS, ClientData
from common.encoding import encode
from common.experiment import Experiment
from common.tables import ClientTable

PARTS = ("inputs", "targets", "labelled")


def write_frame(frame: pd.DataFrame, path: Path, group: int = 7) -> None:
    """Write a frame; a Parquet file gets several row groups."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, row_group_size=group)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        numbers = frame.select_dtypes("number").columns
        np.savez(
            path,
            **{
                name: frame[name].to_numpy()
                if name in numbers
                else frame[name].fillna("").to_numpy().astype(str)
                for name in frame
            },
        )


def frame_of(table: ClientTable) -> pd.DataFrame:
    return pd.DataFrame({name: cells for name, cells in table.columns.items() if cells.ndim == 1})


def mixed_frame(rows: int, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, whole numbers, categories that look like numbers, and partial labels."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({f"x{i}": rng.normal(size=rows) for i in range(3)})
    frame.loc[rng.random(rows) < 0.1, "x1"] = np.nan
    frame["x2"] = np.arange(rows) % 5
    frame["ward"] = np.where(np.arange(rows) < rows // 2, "7", rng.choice(["7", "01", "b"], rows))
    frame["sex"] = rng.choice(["m", "f"], rows)
    frame.loc[rng.random(rows) < 0.1, "sex"] = None
    frame["day"] = rng.permutation(rows)
    frame["y"] = rng.normal(size=rows) * 3 + 1
    frame.loc[rng.random(rows) < 0.3, "y"] = np.nan
    frame["kind"] = rng.choice([0.0, 1.0, 2.0], rows)
    frame.loc[rng.random(rows) < 0.2, "kind"] = np.nan
    return frame


def mixed_plan(folder: Path, memory: str = "disk", **tables) -> Experiment:
    """An experiment on folders of `mixed_frame` files; tables are merged over it."""
    settings = {
        "name": "mixed",
        "data": {"source": "folder", "path": str(folder), "memory": memory},
        "inputs": {
            "x": {"columns": ["x*"], "missing": "mean", "standardise": "client"},
            "who": {
                "kind": "categorical",
                "columns": ["ward", "sex"],
                "missing": "own-category",
            },
        },
        "tasks": {
            "y": {"kind": "regression", "standardise": "client"},
            "kind": {"kind": "multiclass", "classes": 3},
        },
        "trunk": {"widths": [6]},
        "training": {"batch-size": 16, "lr": 0.05, "device": "cpu"},
        "federation": {"rounds": 2},
    }
    for table, values in tables.items():
        settings[table] = {**settings.get(table, {}), **values}
    return Experiment.model_validate(settings)


def read_all(experiment: Experiment):
    """Describe and encode all clients as a federation would."""
    source = open_clients(experiment)
    tables = [source.read(name) for name in source.names]
    descriptions = [describe(table, experiment) for table in tables]
    agreement = agree(descriptions, experiment)
    return descriptions, [
        encode(table, experiment, agreement)
        for table, described in zip(tables, descriptions, strict=True)
        if not described.left_out
    ]


def in_memory(experiment: Experiment) -> Experiment:
    data = experiment.data.model_copy(update={"memory": "ram"})
    return experiment.model_copy(update={"data": data})


def assert_same(data: ClientData, other: ClientData) -> None:
    """Every number of two clients is the same, to the last bit."""
    assert data.name == other.name
    assert data.notes == other.notes
    assert data.fitted.to_json() == other.fitted.to_json()
    for split in SPLITS:
        for part in PARTS:
            own, others = (getattr(d.splits[split], part) for d in (data, other))
            assert list(own) == list(others)
            for name in own:
                assert own[name].dtype == others[name].dtype
                assert torch.equal(own[name], others[name])
