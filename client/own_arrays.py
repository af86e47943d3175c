"""The arrays that stay with a client, by name: parameters, memory of losses, an algorithm's own.

A parameter has its own name. ``loss-memory.task-T`` is what the client remembers of a task's loss,
``kept.KIND.PARAMETER`` what its algorithm keeps beside a parameter, such as ``kept.personal.``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from client.flat import FloatArray
from common.experiment import Experiment
from common.sharing import shared_names, travels_beside
from common.weighting.balance import Memory

MEMORY = "loss-memory.task-"
KEPT = "kept."


@dataclass(frozen=True)
class OwnArrays:
    """What stays with a client, divided.

    Attributes:
        parameters: by name.
        memory: by task.
        kept: kind -> parameter name -> array.
    """

    parameters: dict[str, FloatArray] = field(default_factory=dict)
    memory: dict[str, FloatArray] = field(default_factory=dict)
    kept: dict[str, dict[str, FloatArray]] = field(default_factory=dict)


def divide_own(own: Mapping[str, FloatArray]) -> OwnArrays:
    """Divide a client's own arrays by what their names say.

    >>> found = divide_own({"heads.w": 1, "loss-memory.task-a": 2, "kept.personal.trunk.w": 3})
    >>> found.parameters, found.memory, found.kept
    ({'heads.w': 1}, {'a': 2}, {'personal': {'trunk.w': 3}})
    """
    found = OwnArrays()
    for name, array in own.items():
        if name.startswith(MEMORY):
            found.memory[name.removeprefix(MEMORY)] = array
        elif name.startswith(KEPT):
            kind, _, parameter = name.removeprefix(KEPT).partition(".")
            found.kept.setdefault(kind, {})[parameter] = array
        else:
            found.parameters[name] = array
    return found


def memory_arrays(memory: Memory, tasks: Iterable[str]) -> dict[str, FloatArray]:
    """Put what a client remembers of these tasks' losses into arrays to be kept with its heads."""
    kept = {task: list(memory[task].values()) for task in tasks if task in memory}
    return {f"{MEMORY}{task}": np.array(values, np.float32) for task, values in kept.items()}


def used_arrays(
    experiment: Experiment, received: Mapping[str, FloatArray], own: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """Make the parameters that a client uses, of the trunk it received and what it keeps.

    Args:
        experiment: names the algorithm.
        received: of the server.
        own: as a client's state has them.

    Returns:
        Parameter name -> value; heads of tasks that the client does not hold may be absent.
    """
    from client.algorithms.algorithm import open_algorithm

    algorithm, divided = open_algorithm(experiment), divide_own(own)
    trunk = {name: array for name, array in received.items() if not travels_beside(name)}
    parameters = {**trunk, **divided.parameters}
    if not divided.kept:  # the client has not trained yet, or its algorithm keeps nothing
        return parameters
    shared = set(shared_names(parameters, experiment))
    used: dict[str, FloatArray] = {}
    for name, array in parameters.items():
        kept = {k: torch.tensor(rows[name]) for k, rows in divided.kept.items() if name in rows}
        if not kept:  # a head of another task
            used[name] = array
            continue
        values = algorithm.use(torch.tensor(array), kept, torch.tensor(name in shared))
        used[name] = values.numpy()
    return used
