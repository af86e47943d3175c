"""Which parameters travel and which stay home: the one place that decides it.

Client, server and the wire ask here, by parameter name; nothing else filters arrays.
"""

from collections.abc import Callable, Iterable

SHARED: dict[str, Callable[[str], bool]] = {
    # Arivazhagan et al., "Federated learning with personalization layers", 2019 (FedPer).
    "joint": lambda name: name.startswith("trunk."),
    # McMahan et al., "Communication-efficient learning of deep networks ...", 2017 (FedAvg).
    "whole-model": lambda name: True,
}


def shared_names(names: Iterable[str], algorithm: str) -> list[str]:
    """Select the parameters that travel, in the given order.

    >>> shared_names(["trunk.w", "heads.task-a.w"], "joint")
    ['trunk.w']
    """
    return [name for name in names if SHARED[algorithm](name)]


def head_task(name: str) -> str | None:
    """Name the task whose head a parameter belongs to; None for the trunk.

    >>> head_task("heads.task-digit.0.weight")
    'digit'
    """
    if not name.startswith("heads.task-"):
        return None
    return name.removeprefix("heads.task-").split(".", 1)[0]
