"""Hand-made updates for tests of aggregation rules."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.experiment import Experiment
from common.experiment_file import load_experiment
from common.strategies import STRATEGIES
from server.aggregation.rule import Rule, Updates


def rule_for(strategy: str, base: str = "digits", **options: Any) -> Rule:
    """Make a rule with options, for one of the experiments that ship."""
    experiment = experiment_for(strategy, base, options)
    found = STRATEGIES[strategy].load()
    made: Rule = found(found.Options(**experiment.federation.strategy_options), experiment)
    return made


def experiment_for(
    strategy: str, base: str = "digits", options: Mapping[str, Any] | None = None, *more: str
) -> Experiment:
    """Read an experiment with a strategy and its options."""
    given = [
        f"federation.strategy-options.{name.replace('_', '-')}={_literal(value)}"
        for name, value in (options or {}).items()
    ]
    return load_experiment(base, [f"federation.strategy={strategy}", *given, *more])


def updates_of(
    steps: Sequence[Sequence[float]],
    *,
    round: int = 1,
    clients: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    labelled: Sequence[Sequence[int]] | None = None,
    losses: Sequence[float] | None = None,
    tasks: Sequence[str] = ("digit", "parity", "ink"),
    before: Any = 0.0,
    columns: Mapping[str, slice] | None = None,
) -> Updates:
    """Make what a round brought, from the clients' updates."""
    moved = np.array(steps, np.float32)
    start = np.zeros(moved.shape[1], np.float32) + np.asarray(before, np.float32)
    shares = np.array(weights or [1.0] * len(moved))
    return Updates(
        round=round,
        clients=list(clients or [f"client-{k}" for k in range(len(moved))]),
        before=start,
        rows=start + moved,
        weights=shares / shares.sum(),
        labelled=np.array(labelled or [[10] * len(tasks)] * len(moved)),
        tasks=list(tasks),
        losses=np.array(losses or [0.0] * len(moved)),
        columns=columns or {"trunk.w": slice(0, moved.shape[1])},
    )


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
