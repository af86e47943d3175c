"""The arrays that stay with a client, by name: parameters, memory of losses, an algorithm's own.

A parameter has its own name. ``loss-memory.task-T`` is what the client remembers of a task's loss,
``kept.KIND.PARAMETER`` what its algorithm keeps beside a parameter, such as ``kept.personal.``.
Where the run will return to its best trunk, ``best.NAME`` is what a client kept by NAME when that
trunk was evaluated, and ``best.round`` after how many rounds that was.
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
BEST = "best."
BEST_ROUND = f"{BEST}round"


@dataclass(frozen=True)
class OwnArrays:
    """What stays with a client, divided.

    Attributes:
        parameters: by name.
        memory: by task.
        kept: kind -> parameter name -> array.
        best: what is set aside, by its whole names.
    """

    parameters: dict[str, FloatArray] = field(default_factory=dict)
    memory: dict[str, FloatArray] = field(default_factory=dict)
    kept: dict[str, dict[str, FloatArray]] = field(default_factory=dict)
    best: dict[str, FloatArray] = field(default_factory=dict)


def divide_own(own: Mapping[str, FloatArray]) -> OwnArrays:
    """Divide a client's own arrays by what their names say.

    >>> found = divide_own({"heads.w": 1, "loss-memory.task-a": 2, "kept.personal.trunk.w": 3})
    >>> found.parameters, found.memory, found.kept
    ({'heads.w': 1}, {'a': 2}, {'personal': {'trunk.w': 3}})
    """
    found = OwnArrays()
    for name, array in own.items():
        if name.startswith(BEST):
            found.best[name] = array
        elif name.startswith(MEMORY):
            found.memory[name.removeprefix(MEMORY)] = array
        elif name.startswith(KEPT):
            kind, _, parameter = name.removeprefix(KEPT).partition(".")
            found.kept.setdefault(kind, {})[parameter] = array
        else:
            found.parameters[name] = array
    return found


def set_aside(own: Mapping[str, FloatArray], best: int) -> dict[str, FloatArray]:
    """Get what is to be set aside for a return to the best trunk.

    A client that did not train since the best trunk was evaluated copies what it keeps. One that
    did had done so before it trained: the best trunk is told with every message.

    Args:
        own: what the client keeps, before it trains.
        best: after how many rounds the best trunk was there; 0 for none yet.

    >>> first = set_aside({"w": np.ones(1)}, 3)
    >>> set_aside({"w": np.zeros(1), **first}, 3)["best.w"], set_aside({"w": np.zeros(1)}, 0)
    (array([1.]), {})
    """
    if best in (0, best_round(own)):
        return {name: array for name, array in own.items() if name.startswith(BEST)}
    copies = {f"{BEST}{n}": array.copy() for n, array in own.items() if not n.startswith(BEST)}
    return {**copies, BEST_ROUND: np.array([best], np.float32)}


def as_of_best(own: Mapping[str, FloatArray], best: int) -> dict[str, FloatArray]:
    """Get what a client kept when the trunk of these rounds, the best, was evaluated."""
    if not best or best_round(own) != best:  # it has not trained since
        return {name: array for name, array in own.items() if not name.startswith(BEST)}
    aside = {n.removeprefix(BEST): a for n, a in own.items() if n.startswith(BEST)}
    return {name: array for name, array in aside.items() if f"{BEST}{name}" != BEST_ROUND}


def best_round(own: Mapping[str, FloatArray]) -> int:
    """Tell for which trunk something is set aside: that after so many rounds; 0 for none."""
    return int(own[BEST_ROUND][0]) if BEST_ROUND in own else 0


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
