"""A federation with six tasks of all four kinds and fifty unlike clients, from the digits.

What a report has to cope with: every site holds 35 or 36 of the 1797 embedded digits, mostly of
neighbouring classes, and every seventh lacks one of the tasks.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.experiment import Experiment
from common.experiment_file import load_experiment

CLIENTS = 50
SIDE = 8  # pixels
HOLES = ("one", "none", "none", "none", "none", "none", "one", "none", "two", "one")  # by digit

EXPERIMENT = """
name = "six-tasks"
description = "Fifty sites with 36 handwritten digits each; six tasks of all four kinds."

[data]
source = "table"
path = "{rows}"
client-column = "site"
unseen-classes = "keep"

[inputs.pixels]
columns = ["pixel-*"]
scale = 16.0

[tasks.digit]
kind = "multiclass"
classes = 10

[tasks.parity]
kind = "binary"
classes = ["even", "odd"]
metric = "auroc"

[tasks.holes]
kind = "multiclass"
classes = ["none", "one", "two"]
metric = "f1"

[tasks.quadrants]
kind = "multilabel"
target = ["top-left", "top-right", "bottom-left", "bottom-right"]

[tasks.ink]
kind = "regression"
standardise = "client"
metric = "r2"

[tasks.centre]
kind = "regression"
target = ["centre-x", "centre-y"]
standardise = "client"
metric = "rmse"

[trunk]
widths = [64]

[loss]
weighting = "uncertainty"
record = "gradients"

[training]
optimiser = "adam"
lr = 0.005
epochs = 2
batch-size = 8
schedule = "cosine"

[federation]
rounds = {rounds}
affinity-every = 5
"""


def make_six_tasks(folder: Path, rounds: int = 30) -> Experiment:
    """Write the rows and the experiment into a folder, and read the experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "six-tasks.csv"
    make_rows().to_csv(rows, index=False)
    path = folder / "six-tasks.toml"
    path.write_text(EXPERIMENT.format(rows=rows, rounds=rounds), encoding="utf-8")
    return load_experiment(str(path))


def make_rows() -> pd.DataFrame:
    """Make the table: a digit's pixels, its site and its targets in each row."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, digit = digits.images, digits.target
    count = len(digit)
    ink = images.sum((1, 2))
    places = np.arange(SIDE)
    frame = pd.DataFrame(
        images.reshape(count, -1), columns=[f"pixel-{k}" for k in range(SIDE * SIDE)]
    )
    site = _deal(digit)
    targets = {
        "site": [f"site-{k:02}" for k in site],
        "digit": digit,
        "parity": np.where(digit % 2, "odd", "even"),
        "holes": np.array(HOLES)[digit],
        "ink": np.where(site % 7 == 0, np.nan, ink),
        "centre-x": (images.sum(1) * places).sum(1) / ink,
        "centre-y": (images.sum(2) * places).sum(1) / ink,
    }
    half = SIDE // 2
    for up, rows in (("top", slice(0, half)), ("bottom", slice(half, SIDE))):
        for across, columns in (("left", slice(0, half)), ("right", slice(half, SIDE))):
            own = images[:, rows, columns].sum((1, 2))
            targets[f"{up}-{across}"] = (own > np.median(own)).astype(int)
    return pd.concat([frame, pd.DataFrame(targets)], axis=1)


def _deal(digit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Deal rows to sites so that neighbours among the digits meet: [N] number of the site."""
    jitter = np.random.default_rng(0).normal(0, 4, len(digit))
    site = np.empty(len(digit), np.int64)
    site[np.argsort(digit + jitter, kind="stable")] = np.arange(len(digit)) * CLIENTS // len(digit)
    return site
