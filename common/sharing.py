"""Which parameters travel and which stay home: the one place that decides it.

It goes by names. A parameter with ``task-NAME`` in its path belongs to that task, any other to all
tasks. What is under ``heads.`` is the client's own; what is under ``trunk.`` is shared, except a
task's own parts where the experiment keeps those at home. Client, server and the wire ask here;
nothing else filters arrays.
"""

import re
from collections.abc import Callable, Iterable

from common.architectures.table import SHARINGS
from common.experiment import Experiment

# Algorithm -> whether a parameter travels, by its name and whether the trunk's task parts do.
SHARED: dict[str, Callable[[str, bool], bool]] = {
    # Arivazhagan et al., "Federated learning with personalization layers", 2019 (FedPer).
    "joint": lambda name, parts: name.startswith("trunk.") and (parts or task_of(name) is None),
    # McMahan et al., "Communication-efficient learning of deep networks ...", 2017 (FedAvg).
    "whole-model": lambda name, parts: True,
}

_TASK = re.compile(r"(?:^|\.)task-([^.]+)\.")


def shared_names(names: Iterable[str], experiment: Experiment) -> list[str]:
    """Select the parameters that travel, in the given order.

    >>> from common.experiment_file import load_experiment
    >>> shared_names(["trunk.w", "heads.task-a.w"], load_experiment("digits"))
    ['trunk.w']
    """
    travels = SHARED[experiment.federation.algorithm]
    places = SHARINGS[experiment.trunk.sharing].task_parts
    parts = (experiment.trunk.task_parts or "".join(places[:1])) == "shared"
    return [name for name in names if travels(name, parts)]


def task_parts_travel(experiment: Experiment) -> bool:
    """Whether the trunk's parts of single tasks are shared; so every client has those of all."""
    return bool(shared_names(["trunk.task-any.weight"], experiment))


def task_of(name: str) -> str | None:
    """Name the task that a parameter belongs to; None where it belongs to all.

    >>> task_of("heads.task-digit.0.weight"), task_of("trunk.encoder.layers.0.weight")
    ('digit', None)
    """
    found = _TASK.search(name)
    return found.group(1) if found else None
