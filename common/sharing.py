"""Which parameters travel and which stay home: the one place that decides it.

It goes by names. A parameter with ``task-NAME`` in its path belongs to that task, any other to all
tasks. What is under ``heads.`` is the client's own, unless ``federation.heads`` is 'per-task'; what
is under ``trunk.`` is shared, except a
task's own parts where the experiment keeps those at home, and the ``norm_...`` that
``trunk.norm-parameters`` keeps there. What is frozen (``trunk.trains``, ``trunk.adapters``) neither
travels nor is kept: everybody makes it anew. Client, server and the wire ask here; nothing else
filters arrays.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS
from common.experiment import Experiment
from common.pretrained.naming import is_frozen

FloatArray = NDArray[np.float32]

# What an algorithm shares -> whether a parameter travels, by its name and whether the trunk's task
# parts do.
SHARED: dict[str, Callable[[str, bool], bool]] = {
    "trunk": lambda name, parts: name.startswith("trunk.") and (parts or task_of(name) is None),
    "all": lambda name, parts: True,
    "nothing": lambda name, parts: False,
}

_NORM = re.compile(r"\.norm_[a-z]+$")
_STATISTIC = re.compile(r"\.norm_(?:mean|variance)$")

STAYS: dict[str, Callable[[str], bool]] = {
    "shared": lambda name: False,
    # Li et al., "FedBN: federated learning on non-IID features via local ...", 2021 (FedBN).
    "local": lambda name: bool(_NORM.search(name)),
    # Andreux et al., "Siloed federated learning for multi-centric ...", 2020 (SiloBN).
    "local-statistics": lambda name: bool(_STATISTIC.search(name)),
}

_BESIDE = tuple(f"{kind}." for method in ALGORITHMS.values() for kind in method.travels)
_TASK = re.compile(r"(?:^|\.)task-([^.]+)\.")


def shared_names(names: Iterable[str], experiment: Experiment) -> list[str]:
    """Select the parameters that travel, in the given order.

    >>> from common.experiment_file import load_experiment
    >>> names = ["trunk.w", "trunk.1.norm_weight", "trunk.1.norm_mean", "heads.task-a.w"]
    >>> shared_names(names, load_experiment("digits"))
    ['trunk.w', 'trunk.1.norm_weight', 'trunk.1.norm_mean']
    >>> fed_bn = load_experiment("digits", ["trunk.norm=batch", "trunk.norm-parameters=local"])
    >>> shared_names(names, fed_bn)
    ['trunk.w']
    >>> frozen = load_experiment("digits", ["trunk.trains=['layers.2.*']"])
    >>> shared_names(["trunk.encoder.layers.0.w", "trunk.encoder.layers.2.w"], frozen)
    ['trunk.encoder.layers.2.w']
    """
    travels = SHARED[ALGORITHMS[experiment.federation.algorithm].shares]
    stays = STAYS[experiment.trunk.norm_parameters]
    places = SHARINGS[experiment.trunk.sharing].task_parts
    parts = (experiment.trunk.task_parts or "".join(places[:1])) == "shared"
    heads = experiment.federation.heads == "per-task"
    return [
        name
        for name in names
        if (travels(name, parts) or (heads and name.startswith("heads.")))
        and not stays(name)
        and not is_frozen(name, experiment.trunk)
    ]


def learned_names(names: Iterable[str], experiment: Experiment) -> list[str]:
    """Select the parameters that training may change, here or anywhere: all that are not frozen."""
    return [name for name in names if not is_frozen(name, experiment.trunk)]


def travels_beside(name: str) -> bool:
    """Whether an array travels beside what is shared, such as SCAFFOLD's control variates.

    >>> travels_beside("control.trunk.w"), travels_beside("trunk.w")
    (True, False)
    """
    return name.startswith(_BESIDE)


def divide_beside(
    arrays: Mapping[str, FloatArray],
) -> tuple[dict[str, FloatArray], dict[str, dict[str, FloatArray]]]:
    """Divide what travels into what is shared and, kind by kind, what travels beside it.

    >>> divide_beside({"trunk.w": 1, "control.trunk.w": 2})
    ({'trunk.w': 1}, {'control': {'trunk.w': 2}})
    """
    shared: dict[str, FloatArray] = {}
    beside: dict[str, dict[str, FloatArray]] = {}
    for name, array in arrays.items():
        if travels_beside(name):
            kind, _, parameter = name.partition(".")
            beside.setdefault(kind, {})[parameter] = array
        else:
            shared[name] = array
    return shared, beside


def with_beside(trunk: Mapping[str, FloatArray], experiment: Experiment) -> dict[str, FloatArray]:
    """Add to what is shared what travels beside it, as it is before round 1: zeros."""
    kinds = ALGORITHMS[experiment.federation.algorithm].travels
    beside = {f"{kind}.{name}": np.zeros_like(trunk[name]) for kind in kinds for name in trunk}
    return {**trunk, **beside}


def task_parts_travel(experiment: Experiment) -> bool:
    """Whether the trunk's parts of single tasks are shared; so every client has those of all."""
    return bool(shared_names(["trunk.task-any.weight"], experiment))


def is_statistic(name: str) -> bool:
    """Whether a parameter is a running statistic, which no gradient moves.

    >>> is_statistic("trunk.1.norm_mean"), is_statistic("trunk.1.norm_weight")
    (True, False)
    """
    return bool(_STATISTIC.search(name))


def task_of(name: str) -> str | None:
    """Name the task that a parameter belongs to; None where it belongs to all.

    >>> task_of("heads.task-digit.0.weight"), task_of("trunk.encoder.layers.0.weight")
    ('digit', None)
    """
    found = _TASK.search(name)
    return found.group(1) if found else None
