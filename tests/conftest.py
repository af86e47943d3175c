"""Small experiments and clients that many tests share."""

import logging
import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before flwr is imported

import pytest
import torch

from common.dataset import ClientData, Rows
from common.experiment import Experiment


def make_experiment(**tables) -> Experiment:
    """A three-task experiment on eight numeric columns; tables are merged over it."""
    settings = {
        "name": "tiny",
        "data": {"source": "digits"},
        "inputs": {"x": {"kind": "numeric", "columns": ["x*"]}},
        "tasks": {
            "kind": {"kind": "multiclass", "classes": 3},
            "flag": {"kind": "binary"},
            "size": {"kind": "regression"},
        },
        "trunk": {"widths": [6, 5]},
        "training": {"batch-size": 4, "lr": 0.1, "device": "cpu"},
    }
    for table, values in tables.items():
        settings[table] = (
            {**settings.get(table, {}), **values} if isinstance(values, dict) else values
        )
    return Experiment.model_validate(settings)


def make_rows(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, generator=generator)
    targets = {
        "kind": torch.randint(0, 3, (count,), generator=generator),
        "flag": torch.randint(0, 2, (count,), generator=generator).float(),
        "size": torch.randn(count, 1, generator=generator),
    }
    labelled = {task: torch.ones(count, dtype=torch.bool) for task in targets}
    return Rows({"x": inputs}, targets, labelled)


def make_client(name: str = "a", rows: int = 10, seed: int = 0) -> ClientData:
    sizes = {"train": rows, "validation": 3, "test": 3}
    splits = {split: make_rows(n, 7 * seed + i) for i, (split, n) in enumerate(sizes.items())}
    return ClientData(name, splits)


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    """A server or a node that a test starts in this process must not change the next one's logs."""
    loggers = [logging.getLogger(name) for name in ("fedmtl", "flwr")]
    before = [(log, log.level, list(log.handlers), log.propagate) for log in loggers]
    yield
    for log, level, handlers, propagate in before:
        log.setLevel(level)
        log.handlers, log.propagate = handlers, propagate


@pytest.fixture
def tiny() -> Experiment:
    return make_experiment()
