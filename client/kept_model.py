"""A client's trained model as a whole, and how to find it in the state folder of its node.

The state folder has one folder for each run and client, ``runs/<run>/<client>``, with ``run.json``,
``fitted.json``, the last trunk received, and generations of what stays home.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from torch import Tensor

from client.flat import FloatArray
from client.own_arrays import as_of_best, best_round, used_arrays
from common.agreement import Agreement, input_shapes
from common.algorithms import ALGORITHMS
from common.cells import list_names
from common.errors import CheckpointError, ShapeError
from common.experiment import Experiment
from common.fitted import Fitted
from common.model import MultiTaskModel, build_model
from common.sharing import learned_names, task_of

OLD = "it may be of another version of fedmtl; train another round with this one"


@dataclass(frozen=True)
class KeptModel:
    """Everything that a prediction needs.

    Attributes:
        run: names the run that trained it.
        client: whose heads it has.
        round: number of rounds that its trunk has seen.
        experiment: settings of the run.
        agreement: what the clients agreed on.
        fitted: scalings of the client.
        arrays: parameter name -> value, trunk and heads; heads of tasks that the client does not
            hold are absent.
    """

    run: str
    client: str
    round: int
    experiment: Experiment
    agreement: Agreement
    fitted: Fitted
    arrays: Mapping[str, FloatArray]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that the model answers for the client, in the experiment's order.

        Where heads travel, it may have one of a task that the client lacks; where such a target is
        standardised by the client's own rows, nobody knows what unit it would answer in.
        """
        held = {task_of(name) for name in self.arrays if name.startswith("heads.")}
        return tuple(
            name
            for name, task in self.experiment.tasks.items()
            if name in held and (task.standardise == "none" or name in self.fitted.targets)
        )

    def build(self) -> MultiTaskModel:
        """Build the model, ready to evaluate; other tasks' heads are as they were initialised.

        Raises:
            CheckpointError: parameters are missing, or heads were never fitted.
            ShapeError: one does not fit the experiment's model.
        """
        if not self.tasks:
            raise CheckpointError(f"run '{self.run}', client '{self.client}' has no heads; {OLD}")
        model = build_model(self.experiment, input_shapes(self.agreement)).eval()
        parameters = dict(model.named_parameters())
        learned = learned_names(parameters, self.experiment)
        needed = [name for name in learned if task_of(name) in (None, *self.tasks)]
        if missing := [name for name in needed if name not in self.arrays]:
            raise CheckpointError(
                f"run '{self.run}', client '{self.client}': {len(missing)} parameters of the model "
                f"are not there: {list_names(missing)}; {OLD}"
            )
        self._require_fitted(parameters)
        with torch.no_grad():
            for name, array in self.arrays.items():
                if name not in parameters or parameters[name].shape != array.shape:
                    raise ShapeError(
                        f"run '{self.run}', client '{self.client}': parameter {name} of shape "
                        f"{list(array.shape)} is none of this experiment's model; {OLD}"
                    )
                parameters[name].copy_(torch.tensor(array))
        return model

    def _require_fitted(self, initial: Mapping[str, Tensor]) -> None:
        """Refuse heads as they were initialised, where only a run's last evaluation fits them.

        Raises:
            CheckpointError: they are.
        """
        algorithm = self.experiment.federation.algorithm
        heads = {name: array for name, array in self.arrays.items() if name.startswith("heads.")}
        if ALGORITHMS[algorithm].fits_last and all(
            np.array_equal(array, initial[name].detach().numpy())
            for name, array in heads.items()
            if name in initial
        ):
            raise CheckpointError(
                f"run '{self.run}', client '{self.client}' has heads that were never fitted: under "
                f"federation.algorithm '{algorithm}' the run's last evaluation does that, and it "
                "has not reached this client; let the run end first"
            )


def open_kept(folder: Path, run: str = "", client: str = "") -> KeptModel:
    """Read a client's model from the state folder of its node.

    Args:
        folder: the state folder.
        run: its run; may be left out where there is one.
        client: whose model; may be left out where there is one.

    Raises:
        CheckpointError: there is no such model, it cannot be read, or there are several.
    """
    found = [(_read_json(path), path.parent) for path in sorted(folder.glob("runs/*/*/run.json"))]
    kept = {(str(about.get("run")), str(about.get("client"))): place for about, place in found}
    place = kept[_choose(list(kept), run, client, folder)]
    about = _read_json(place / "run.json")
    try:
        return _read(about, place)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{place} cannot be read ({type(error).__name__}: {_first_line(error)}); {OLD}"
        ) from error


def _read(about: Mapping[str, Any], place: Path) -> KeptModel:
    with safe_open(place / "trunk.safetensors", framework="numpy") as file:
        seen = int((file.metadata() or {})["round"])
        trunk: dict[str, FloatArray] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    own = _load_own(place, seen)
    experiment = Experiment.model_validate_json(json.dumps(about["experiment"]))
    return KeptModel(
        run=str(about["run"]),
        client=str(about["client"]),
        round=seen,
        experiment=experiment,
        agreement=Agreement.model_validate_json(json.dumps(about["agreement"])),
        fitted=Fitted.from_json((place / "fitted.json").read_text(encoding="utf-8")),
        arrays=used_arrays(experiment, trunk, own),
    )


def _load_own(place: Path, seen: int) -> dict[str, FloatArray]:
    """Read the heads that a trunk was evaluated with, also where the run returned to it."""
    own = load_file(_generation(place, seen))
    newest = load_file(_generation(place, sys.maxsize))
    return as_of_best(newest if seen and best_round(newest) == seen else own, seen)


def _generation(place: Path, seen: int) -> Path:
    """Find the heads that a trunk was evaluated with: the newest as old as it, else the oldest."""
    generations = {int(p.stem.rpartition("-")[2]): p for p in place.glob("own-*.safetensors")}
    if not generations:
        raise CheckpointError(f"{place} has no heads yet: the client has finished no round")
    paired = [number for number in generations if number <= seen]
    return generations[max(paired) if paired else min(generations)]


def _choose(
    kept: Sequence[tuple[str, str]], run: str, client: str, folder: Path
) -> tuple[str, str]:
    """Find the one model that is meant.

    Raises:
        CheckpointError: it is none, or several.
    """
    meant = [key for key in kept if run in ("", key[0]) and client in ("", key[1])]
    if len(meant) == 1:
        return meant[0]
    there = "; ".join(f"--run {a} --client '{b}'" for a, b in meant or kept)
    if not kept:
        raise CheckpointError(f"{folder} holds no trained model: it has no runs/*/*/run.json")
    if not meant:
        asked = " and ".join(
            f"{what} '{name}'" for what, name in (("run", run), ("client", client)) if name
        )
        raise CheckpointError(f"{folder} holds no model of {asked}; there are {there}")
    raise CheckpointError(f"{folder} holds {len(meant)} models; name one: {there}")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}); {OLD}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object, got {type(content).__name__}; {OLD}")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
