"""What a guess would have sent: its gradient, or its local training step by step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from client.batches import epoch_order, shuffle_key
from common.experiment import Experiment
from common.model import MultiTaskModel
from common.sharing import task_of
from simulations.attacks.guesses import Guess, Parameters, weighted_loss
from simulations.attacks.observed import Observed


def one_gradient(observed: Observed, model: MultiTaskModel, guess: Guess) -> Parameters:
    """Take the gradient of all guessed rows in one batch, at the trunk that was sent.

    What an update of many steps is compared with under ``local = "one-gradient"``: exact for one
    step of plain SGD, an approximation for more.

    Returns:
        Names of the update -> gradient, through which autograd can pass.
    """
    parameters = _parameters(observed, guess)
    index = torch.arange(observed.rows)
    return _gradient(observed, model, parameters, guess, index, list(observed.update))


def unrolled(observed: Observed, model: MultiTaskModel, guess: Guess) -> Parameters:
    """Train on the guessed rows as the client does, and return ``-u / (lr * steps)``.

    The epochs' orders are the client's own: they are drawn from the experiment's seed and its name,
    which the server knows. Trunk and heads move together.

    Returns:
        As `one_gradient`.
    """
    training = observed.experiment.training
    before = _parameters(observed, guess)
    parameters, velocity = dict(before), dict[str, Tensor]()
    names = [name for name in parameters if name in observed.update or name in guess.own]
    rates = observed.rates
    for index, rate in zip(batches_of(observed), rates, strict=True):
        slopes = _gradient(observed, model, parameters, guess, index, names)
        if training.clip_norm is not None:
            norm = torch.stack([slope.square().sum() for slope in slopes.values()]).sum().sqrt()
            factor = (training.clip_norm / (norm + 1e-6)).clamp(max=1)
            slopes = {name: slope * factor for name, slope in slopes.items()}
        for name, slope in slopes.items():
            decay, l1 = rates_of(observed.experiment, name)
            slope = slope + decay * parameters[name] + l1 * parameters[name].sign()
            if training.momentum:
                slope = velocity[name] = training.momentum * velocity.get(name, 0.0) + slope
            parameters[name] = parameters[name] - rate * slope
    scale = 1.0 / sum(rates)
    return {name: (before[name] - parameters[name]) * scale for name in observed.update}


def rates_of(experiment: Experiment, name: str) -> tuple[float, float]:
    """Tell a parameter's rates of weight decay and of the L1 term."""
    training, task = experiment.training, task_of(name)
    own = experiment.trunk if task is None else experiment.tasks[task]
    decay = training.weight_decay if own.weight_decay is None else own.weight_decay
    return decay, training.l1 if own.l1 is None else own.l1


def batches_of(observed: Observed) -> Sequence[Tensor]:
    """List the batches of a client's round, each int64 [B] of places among its rows."""
    training, seed = observed.experiment.training, observed.experiment.seed
    key, batches = shuffle_key(seed, observed.client), list[Tensor]()
    for epoch in range(training.epochs):
        order = epoch_order(observed.rows, None, training.balance, key, observed.number, epoch)[
            : observed.rows
        ]
        batches += torch.split(torch.from_numpy(order.copy()), training.batch_size)
    return batches


LOCAL = {"one-gradient": one_gradient, "unrolled": unrolled}


def _parameters(observed: Observed, guess: Guess) -> Parameters:
    """Put a whole model together, every parameter a part of autograd's graph."""
    shared = {n: p.clone().requires_grad_() for n, p in observed.received.items()}
    own = {n: p if p.requires_grad else p.clone().requires_grad_() for n, p in guess.own.items()}
    return {**shared, **own}


def _gradient(
    observed: Observed,
    model: MultiTaskModel,
    parameters: Parameters,
    guess: Guess,
    index: Tensor,
    names: Sequence[str],
) -> Parameters:
    loss = weighted_loss(observed, model, parameters, guess, index)
    wanted = [parameters[name] for name in names]
    slopes = torch.autograd.grad(
        loss, wanted, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, slopes, strict=True))
