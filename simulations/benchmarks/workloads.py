"""The workloads: what is trained, at how many clients, and how many of them a round."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simulations.benchmarks.rows import (
    Columns,
    deal_digits,
    draw_images,
    drop_labels,
    resample_digits,
)

if TYPE_CHECKING:
    from common.experiment import Experiment

VERSION = 1  # of the rows; a change of `rows` needs another, or old files would be trained on
FOR_EVER = 1_000_000_000  # rounds; whoever measures says when it is enough
MLP = {"widths": [128, 64]}
CNN = {"architecture": "cnn", "channels": [32, 64], "widths": [128]}


@dataclass(frozen=True)
class Workload:
    """One workload: three tasks, one local epoch of SGD a round.

    Attributes:
        summary: one line for people.
        make_rows: makes the table of all clients' rows with a generator.
        clients_per_round: how many are drawn each round.
        trunk: the experiment's [trunk].
        batch_size: rows per step.
        lr: learning rate.
        side: height and width of an image in pixels.
        checked_round: after so many rounds all contenders must have the same trunk.
    """

    summary: str
    make_rows: Callable[[np.random.Generator], Columns]
    clients_per_round: int | Literal["all"]
    trunk: Mapping[str, Any] = field(default_factory=lambda: MLP)
    batch_size: int = 16
    lr: float = 0.01  # with 0.05, W1 diverges after 235 rounds
    side: int = 8
    checked_round: int = 5


WORKLOADS: dict[str, Workload] = {
    "W1": Workload("100 clients of 18 digits, 10 a round", partial(deal_digits, clients=100), 10),
    "W2": Workload(
        "1,000 clients of 18 digits, 100 a round", partial(resample_digits, sizes=[18] * 1000), 100
    ),
    "W3": Workload(
        "20 clients of 200 images, all of them; a convolutional trunk",
        partial(draw_images, sizes=[200] * 20),
        "all",
        CNN,
        batch_size=32,
        side=28,
        # Where two pixels are nearly equal, rounding decides which one max pooling takes, and the
        # difference grows from round to round: compared early, it is still that of rounding.
        checked_round=2,
    ),
    "uneven": Workload(
        "40 clients of 10 to 10,000 digits, 10 a round",
        partial(resample_digits, sizes=np.geomspace(10, 10_000, 40).astype(int).tolist()),
        10,
    ),
    "tasks": Workload(
        "210 clients of 18 digits and one to three tasks, 30 % of labels missing, 21 a round",
        partial(drop_labels, sizes=[18] * 210, missing=0.3),
        21,
    ),
    "huge": Workload(
        "10,000 clients of 18 digits, 100 a round",
        partial(resample_digits, sizes=[18] * 10_000),
        100,
    ),
}


def write_rows(name: str, folder: Path) -> Path:
    """Write a workload's rows once, as an NPZ file that the source `table` reads."""
    path = folder / f"{name}-v{VERSION}.npz"
    if path.exists():
        return path
    from common.seeding import numpy_generator  # imports PyTorch

    folder.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(f".{os.getpid()}.partial")
    columns = WORKLOADS[name].make_rows(numpy_generator(0, "benchmark", name))
    with partial_path.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
    partial_path.replace(path)
    return path


def make_experiment(
    name: str, rows: Path, *, threads: int = 1, device: str = "cpu"
) -> "Experiment":
    """Describe a workload as an experiment.

    All rows train and no round evaluates; everything else that a round does, such as writing its
    checkpoint, is part of it.
    """
    from common.experiment import Experiment

    workload = WORKLOADS[name]
    return Experiment.model_validate(
        {
            "name": f"benchmark-{name}",
            "data": {
                "source": "table",
                "path": str(rows),
                "client-column": "client",
                "validation": 0.0,
                "test": 0.0,
            },
            "inputs": {
                "pixels": {
                    "kind": "image",
                    "columns": ["pixels"],
                    "shape": [1, workload.side, workload.side],
                }
            },
            "tasks": {
                "digit": {"kind": "multiclass", "classes": 10},
                "parity": {"kind": "binary"},
                "ink": {"kind": "regression"},
            },
            "trunk": dict(workload.trunk),
            "training": {
                "batch-size": workload.batch_size,
                "lr": workload.lr,
                "device": device,
                "threads": threads,
            },
            "federation": {"rounds": FOR_EVER, "clients-per-round": workload.clients_per_round},
            "evaluation": {"by": "train-reply", "every": FOR_EVER},
        }
    )
