"""Small federations for every algorithm of the client's side, and what they leave behind."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from common.experiment import Experiment
from simulations.client_log import ClientLog, Own
from simulations.simulate import simulate

# Rows of each: no epoch ends with a batch of two, of which batch norm makes -1 and 1 or nearly.
CLIENTS = {"a": 40, "b": 33, "c": 29, "d": 24}
# Options with which an algorithm does something that a few rounds show.
OPTIONS: dict[str, dict[str, Any]] = {
    "fedrep": {"head-epochs": 2},
    "fedbabu": {"fit-epochs": 2},
    "fedprox": {"mu": 0.5},
    "ditto": {"pull": 0.5, "personal-epochs": 1},
    "mr-mtl": {"pull": 0.5},
    "fedala": {"mixing-epochs": 2, "mixing-lr": 5.0},
}


def write_clients(folder: Path, lacking: str = "d") -> Path:
    """Write unlike clients' rows; the clients named in `lacking` have no task `kind`."""
    folder.mkdir()
    for seed, (name, rows) in enumerate(CLIENTS.items()):
        rng = np.random.default_rng(seed)
        x = rng.normal(seed, 1 + seed, (rows, 3))
        score = x @ np.array([1.0, -1.0, 0.5]) / 3
        frame = pd.DataFrame(x, columns=["x0", "x1", "x2"])
        frame["size"] = (-1) ** seed * score + 0.1 * rng.normal(size=rows)
        if name not in lacking:
            frame["kind"] = np.digitize(score, [-0.4, 0.4])
        frame.to_csv(folder / f"{name}.csv", index=False)
    return folder


def plan(data: Path, algorithm: str, **tables: dict[str, Any]) -> Experiment:
    """A federation of three rounds; tables are merged over it."""
    settings: dict[str, Any] = {
        "name": "laws",
        "data": {"source": "folder", "path": str(data), "unseen-classes": "keep"},
        "inputs": {"x": {"columns": ["x*"]}},
        "tasks": {
            "kind": {"kind": "multiclass", "classes": 3},
            "size": {"kind": "regression"},
        },
        "trunk": {"widths": [4, 3], "activation": "tanh"},
        "training": {"batch-size": 5, "lr": 0.05, "device": "cpu", "epochs": 2},
        "federation": {
            "rounds": 3,
            "algorithm": algorithm,
            "algorithm-options": OPTIONS.get(algorithm, {}),
            "checkpoint-interval-s": 0,
        },
    }
    for table, values in tables.items():
        settings[table] = {**settings.get(table, {}), **values}
    return Experiment.model_validate(settings)


@dataclass(frozen=True)
class Run:
    """What a run left in its folder."""

    folder: Path

    @property
    def trunk(self) -> dict[str, np.ndarray]:
        """The last trunk, and what travels beside it."""
        return load_file(self.folder / "checkpoint" / self._files["trunk"])

    @property
    def clients(self) -> dict[str, Own]:
        """What every client keeps."""
        return ClientLog().restore(self.folder / "checkpoint", self._files)

    @property
    def _files(self) -> dict[str, str]:
        text = (self.folder / "checkpoint" / "checkpoint.json").read_text()
        return json.loads(text)["files"]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every round's figures, without times."""
        lines = [json.loads(x) for x in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in x.items() if not k.endswith("_s")} for x in lines]

    def figures(self) -> list[dict[str, Any]]:
        """Every round's figures without bytes, which numbers written as text change."""
        return [{k: v for k, v in line.items() if k != "traffic"} for line in self.lines]

    @property
    def results(self) -> dict[str, Any]:
        """The final figures."""
        results = json.loads((self.folder / "results.json").read_text())
        return {key: results[key] for key in ("final", "best", "clients", "rounds")}

    def numbers(self) -> dict[str, np.ndarray]:
        """Trunk and clients by name."""
        numbers = {f"trunk/{name}": array for name, array in self.trunk.items()}
        for client, own in self.clients.items():
            numbers[f"{client}/round"] = np.array(own.round)
            numbers |= {f"{client}/{name}": array for name, array in own.arrays.items()}
        return numbers


def run(experiment: Experiment, out: Path, engine: str = "loopback", **options: Any) -> Run:
    """Simulate."""
    simulate(experiment, engine=engine, out=out, **options)
    return Run(out)


def stop_after(number: int) -> Callable[[dict[str, Any]], None]:
    """Make a listener that ends the process's run after a round, as a crash would."""

    def listen(line: dict[str, Any]) -> None:
        if line["round"] == number:
            raise KeyboardInterrupt

    return listen


def assert_close(left: Run, right: Run, tolerance: float = 1e-5) -> None:
    """Compare trunk, clients and figures."""
    one, other = left.numbers(), right.numbers()
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_allclose(
            other[name], values, rtol=tolerance, atol=tolerance, err_msg=name
        )
    assert_same_figures(left.figures(), right.figures())
    assert_same_figures(left.results, right.results)


def assert_equal(left: Run, right: Run) -> None:
    """Compare trunk, clients and figures bit for bit."""
    one, other = left.numbers(), right.numbers()
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(other[name], values, err_msg=name)
    assert left.lines == right.lines
    assert left.results == right.results


def assert_same_figures(left: object, right: object, place: str = "") -> None:
    """Compare nested figures: numbers to 1e-4, the rest exactly."""
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_same_figures(value, right[key], f"{place}/{key}")
    elif isinstance(left, list) and isinstance(right, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same_figures(one, other, place)
    elif isinstance(left, float) and isinstance(right, float):
        np.testing.assert_allclose(right, left, rtol=1e-4, atol=1e-5, err_msg=place)
    else:
        assert left == right, place
