"""Small raw tables and the experiments that read them, for the tests of data."""

import numpy as np

from common.agreement import agree, describe
from common.encoding import encode
from common.experiment import Experiment
from common.tables import ClientTable

REGRESSION = {"y": {"kind": "regression"}}
NUMERIC = {"x": {"columns": ["x*"]}}


def plan(*, inputs=NUMERIC, tasks=REGRESSION, partition=None, seed=0, **data) -> Experiment:
    """An experiment; keywords that are left are settings of [data]."""
    settings = {"name": "raw", "seed": seed, "data": {"source": "table", **data}}
    settings |= {"inputs": inputs, "tasks": tasks}
    if partition is not None:
        settings["partition"] = partition
    return Experiment.model_validate(settings)


def table(name="a", rows=20, **columns) -> ClientTable:
    """Columns x1 and y count the rows, unless given."""
    count = len(next(iter(columns.values()))) if columns else rows
    counted = {"x1": np.arange(count, dtype=float), "y": np.arange(count, dtype=float)}
    given = {key: np.asarray(column) for key, column in columns.items()}
    return ClientTable(name, {**counted, **given})


def text(*cells) -> np.ndarray:
    return np.array(cells, dtype=object)


def encode_alone(raw: ClientTable, experiment: Experiment):
    return encode(raw, experiment, agree([describe(raw, experiment)], experiment))


def encode_all(tables, experiment: Experiment):
    agreement = agree([describe(raw, experiment) for raw in tables], experiment)
    return [encode(raw, experiment, agreement) for raw in tables]
