"""Recorded runs that tests of attacks share."""

from pathlib import Path

from common.experiment_file import load_experiment
from simulations.attacks.wire import Wire, open_wire
from simulations.simulate import simulate

SGD = ["training.optimiser=sgd", "training.epochs=1", "training.lr=0.1"]
# Of 898 clients with two digits each, one for training and one for validation.
ONE_ROW = [
    *SGD, "partition.clients=898", "data.test=0", "data.validation=0.49",
    'data.clients=["client-134", "client-135", "client-136", "client-137", "client-138"]',
]  # fmt: skip
ONE = "client-134"
SMALL = ["trunk.widths=[24, 12]", "federation.rounds=2"]


def record(folder: Path, *settings: str, engine: str = "loopback", base: str = "digits") -> Wire:
    """Run an experiment, recorded, and open the record."""
    experiment = load_experiment(base, [*SMALL, *settings])
    simulate(experiment, engine=engine, out=folder, record=True)
    return open_wire(folder)
