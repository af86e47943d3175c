"""Loss weighting at work without a model: experiments of plain tasks, and steps on given losses."""

import torch
from torch import Tensor

from common.experiment import Experiment
from common.weighting.balance import Balance, Rules
from common.weighting.gradients import GradientBalancing
from common.weighting.scaling import SCALINGS
from common.weighting.table import WEIGHTINGS

NAMES = ("a", "b", "c")


def experiment_of(weighting="equal", tasks=NAMES, kinds=None, **loss) -> Experiment:
    """Tasks are squared errors, unless `kinds` names others."""
    kinds = kinds or {}
    settings = {
        "name": "losses",
        "data": {"source": "digits"},
        "inputs": {"x": {"columns": ["x*"]}},
        "tasks": {
            task: {"kind": kinds.get(task, "regression"), "target": f"y-{task}"} for task in tasks
        },
        "loss": {"weighting": weighting, **loss},
        "training": {"device": "cpu"},
    }
    return Experiment.model_validate(settings)


def rules_of(weighting="equal", tasks=NAMES, kinds=None, **loss) -> Rules:
    return Rules(experiment_of(weighting, tasks, kinds, **loss))


def balance_of(rules: Rules, clients=1, memory=None, dtype=torch.float64) -> Balance:
    """A round's balance for some clients that all remember the same, in double precision."""
    state = rules.remember(memory or {}, torch.device("cpu"))
    state = {name: values.to(dtype).repeat(clients, 1) for name, values in state.items()}
    balance = Balance(rules, state, dict.fromkeys(rules.tasks, 1.0))
    balance.start_epoch(1, 0)
    return balance


def take_step(
    balance: Balance,
    losses: Tensor,
    after: Tensor | None = None,
    norms: Tensor | None = None,
    taught: Tensor | None = None,
) -> Tensor:
    """Weigh [K, T] losses and learn from the step; returns the weights."""
    taught = torch.ones_like(losses, dtype=torch.bool) if taught is None else taught
    norms = losses.sqrt() if norms is None and balance.rules.norms else norms
    norms = None if norms is None else dict.fromkeys(balance.rules.norms, norms)
    weights = balance.weigh(losses, taught, norms)
    if balance.rules.weighting.needs_after:
        after = 0.9 * losses if after is None else after
    else:
        after = None
    balance.learn(after)
    return weights


def fits(weighting: str, scaling: str) -> bool:
    return SCALINGS[scaling].positive or not WEIGHTINGS[weighting].load().needs_positive


LOSS_WEIGHTINGS = [n for n, m in WEIGHTINGS.items() if not issubclass(m.load(), GradientBalancing)]
GRADIENT_METHODS = [n for n, m in WEIGHTINGS.items() if issubclass(m.load(), GradientBalancing)]
LEARNING = [n for n in LOSS_WEIGHTINGS if WEIGHTINGS[n].load().STATE]
COMBINATIONS = [(w, s) for w in LOSS_WEIGHTINGS for s in SCALINGS if fits(w, s)]
