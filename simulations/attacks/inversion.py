"""Gradient inversion: rows whose training would have sent the update that was seen.

``dlg``: Zhu, Liu & Han, "Deep leakage from gradients", NeurIPS 2019, eq. 4: L-BFGS on the squared
distance of gradients. ``cosine``: Geiping et al., "Inverting gradients", NeurIPS 2020, eq. 4: their
angle and the image's total variation, by Adam on the signs of the slopes. ``analytic``: see
`simulations.attacks.analytic`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.own_arrays import divide_own
from common.dataset import Rows
from common.errors import ConfigError
from common.model import MultiTaskModel
from common.seeding import torch_generator
from simulations.attacks.analytic import recover
from simulations.attacks.guesses import (
    Guess,
    Parameters,
    draw_inputs,
    draw_labels,
    known_labels,
    make_model,
    own_parameters,
)
from simulations.attacks.local_steps import LOCAL
from simulations.attacks.observed import Observed, observe
from simulations.attacks.scoring import (
    Frame,
    Match,
    describe,
    describe_images,
    drawn_rows,
    match,
    mean_rows,
)
from simulations.attacks.truth import client_data, other_rows, replay, trained_rows
from simulations.attacks.wire import EVERYBODY, Wire

METHODS = ("analytic", "dlg", "cosine")
HEADS = ("initial", "true", "random", "learned")
LABELS = ("known", "learned")
ITERATIONS = {"analytic": 0, "dlg": 100, "cosine": 1000}
LBFGS_STEPS = 20  # evaluations in one iteration of L-BFGS, as in Zhu et al.'s code
STANDSTILL = 1e-4  # least gain of such an iteration, as a share, that is worth another
EXACT = 1e-13  # an objective below which nothing is left to gain


@dataclass(frozen=True)
class Settings:
    """How to invert.

    Attributes:
        method: of `METHODS`.
        heads: what the attacker takes for parameters that stay at the client: "initial", as the
            experiment's seed makes them, which the server knows and which are the true ones before
            a client's first round; "true", as the client had them; "random"; or "learned" beside
            the rows, from random ones.
        labels: "known", or "learned" beside the rows as soft labels.
        local: "one-gradient" or "unrolled"; see `simulations.attacks.local_steps`.
        rows: how many to look for; None for as many as the wire tells.
        iterations: None for `ITERATIONS`.
        restarts: how often to start from other random rows; the best objective wins.
        lr: step of "cosine", in units of encoded inputs.
        total_variation: weight of "cosine"'s total variation of images.
        seed: draws what is random.
    """

    method: str = "cosine"
    heads: str = "initial"
    labels: str = "known"
    local: str = "one-gradient"
    rows: int | None = None
    iterations: int | None = None
    restarts: int = 1
    lr: float = 0.1
    total_variation: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Reconstruction:
    """What an inversion found, beside the truth.

    Attributes:
        inputs: input name -> float64 [M, ...], encoded.
        labels: task name -> guessed labels; empty under method "analytic".
        objective: what the attacker reached, which tells him how well he did; NaN where there is
            none.
        errors: contender -> figure -> value with its interval: "attack"; "mean-row", the mean of
            other rows; "other-rows", as many rows of others.
        pictures: image input -> (true, guessed), float64 [L, C, H, W] in pairs.
        match: which guess goes with which true row.
        facts: what was attacked, and how.
    """

    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    objective: float
    errors: dict[str, dict[str, Any]]
    pictures: dict[str, tuple[Tensor, Tensor]]
    match: Match
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Share of the mean row's squared error that the attack takes away; 1 is an exact copy."""
        mse = {name: self.errors[name]["mse"]["value"] for name in ("attack", "mean-row")}
        return float(1 - mse["attack"] / mse["mean-row"]) if mse["mean-row"] else 0.0


def invert(
    wire: Wire, client: str, number: int, settings: Settings | None = None
) -> Reconstruction:
    """Reconstruct the rows behind an update, and score them against the true ones.

    Args:
        wire: of a recorded run, `open_wire`.
        client: a name; `EVERYBODY` for the change of the shared trunk over the round.
        number: the round.
        settings: of the attack.

    Raises:
        ConfigError: there is no such update, or it cannot be attacked so.
    """
    settings = settings or Settings()
    observed = observe(wire, number, client, settings.rows)
    check(observed, settings)
    true, others = trained_rows(wire, number, client), other_rows(wire, number, client)
    if settings.method == "analytic":
        found, labels, objective = recover(observed), dict[str, Tensor](), float("nan")
    else:
        own = true_heads(wire, observed, settings) if settings.heads == "true" else None
        guess, objective = reconstruct(observed, settings, true, own)
        found, labels = guess.inputs, guess.hard_labels(wire.experiment)
    found = clamp(observed, found)  # whoever knows the box knows better than what lies outside
    names = wire.clients(number) if client == EVERYBODY else [client]
    frame = Frame.of(wire, client_data(wire, names[0]).fitted)
    return score(frame, observed, settings, found, labels, objective, true, others)


def check(observed: Observed, settings: Settings) -> None:
    """Refuse what cannot work, before anything is computed.

    Raises:
        ConfigError: names the option and a way out.
    """
    options = {
        "method": METHODS, "heads": HEADS, "labels": LABELS, "local": tuple(LOCAL),
    }  # fmt: skip
    for option, choices in options.items():
        if (got := getattr(settings, option)) not in choices:
            raise ConfigError(f"--{option} must be one of {', '.join(choices)}, got '{got}'")
    if not 0 < settings.lr < math.inf:
        raise ConfigError(f"--lr must be a positive finite number, got {settings.lr}")
    if not 0 <= settings.total_variation < math.inf:
        raise ConfigError(
            "--total-variation must be a finite number of at least 0, got "
            f"{settings.total_variation}"
        )
    training, trunk = observed.experiment.training, observed.experiment.trunk
    if settings.method == "analytic":
        return
    if trunk.norm == "batch":
        raise ConfigError(
            f"--method {settings.method} does not know trunk.norm 'batch', whose gradients depend "
            "on a batch's statistics; attack a run with another norm"
        )
    if training.optimiser != "sgd" and (settings.method == "dlg" or settings.local == "unrolled"):
        raise ConfigError(
            f"--method dlg and --local unrolled need training.optimiser 'sgd', whose update is a "
            f"gradient, got '{training.optimiser}'; take --method cosine --local one-gradient"
        )
    if training.optimiser_options and settings.local == "unrolled":
        raise ConfigError(
            "--local unrolled follows plain steps, got training.optimiser-options; take --local "
            "one-gradient"
        )
    if training.patience is not None and settings.local == "unrolled":
        raise ConfigError(
            "--local unrolled needs to know how many epochs a client did, got training.patience "
            f"{training.patience}, by which its validation rows decide; take --local one-gradient"
        )
    if training.balance == "classes" and settings.local == "unrolled":
        raise ConfigError(
            "--local unrolled needs to know which rows a step visited, got training.balance "
            "'classes', which goes by their labels; take --local one-gradient"
        )
    if settings.local == "unrolled" and observed.client == EVERYBODY:
        raise ConfigError(
            "--local unrolled follows the steps of one client: name it with --client, or take "
            "--local one-gradient"
        )
    algorithm = observed.experiment.federation.algorithm
    if settings.local == "unrolled" and algorithm not in ("joint", "whole-model"):
        raise ConfigError(
            f"--local unrolled follows federation.algorithm 'joint' and 'whole-model', got "
            f"'{algorithm}'; take --local one-gradient"
        )


def true_heads(wire: Wire, observed: Observed, settings: Settings) -> Parameters:
    """Work out what the client kept at home before the round."""
    if observed.client == EVERYBODY:
        raise ConfigError(
            "--heads true is for the update of one client: each has heads of its own; name one "
            "with --client, or take --heads initial"
        )
    own, _ = replay(wire, observed.number, observed.client)
    kept = divide_own(own).parameters
    return {name: torch.tensor(array, dtype=torch.float64) for name, array in kept.items()}


def reconstruct(
    observed: Observed, settings: Settings, true: Rows, own: Parameters | None = None
) -> tuple[Guess, float]:
    """Optimise a guess from several starts; returns the best with its objective.

    Args:
        observed: the update.
        settings: of the attack.
        true: gives the labels where they are known, and nothing else.
        own: what stays at the client, under ``heads = "true"``.
    """
    model = make_model(observed)
    best: tuple[Guess, float] | None = None
    for restart in range(settings.restarts):
        guess = start(observed, settings, true, own, restart)
        descend = DESCENTS[settings.method]
        objective = descend(observed, settings, model, guess)
        if best is None or objective < best[1]:
            best = guess, objective
    if best is None:
        raise ConfigError(f"--restarts must be at least 1, got {settings.restarts}")
    return best


def start(
    observed: Observed, settings: Settings, true: Rows, own: Parameters | None, restart: int
) -> Guess:
    """Draw what an optimisation starts from."""
    generator = torch_generator(settings.seed, "inversion", restart)
    inputs = draw_inputs(observed, generator)
    known = settings.labels == "known"
    tasks = [task for task in observed.tasks if task in true.targets]
    if known and observed.rows != len(true):
        raise ConfigError(
            f"--labels known needs --rows {len(true)}, a row for each label, got {observed.rows}; "
            "leave --rows out, or take --labels learned"
        )
    labels = (
        known_labels(observed.experiment, true, tasks)
        if known
        else draw_labels(observed, generator)
    )
    everywhere = torch.ones(observed.rows, dtype=torch.bool)
    labelled = {task: true.labelled[task] if known else everywhere for task in labels}
    kept = heads_of(observed, settings, restart) if own is None else own
    learned = [*inputs.values()]
    learned += [] if known else [*labels.values()]
    learned += [*kept.values()] if settings.heads == "learned" else []
    for leaf in learned:
        leaf.requires_grad_()
    return Guess(inputs, labels, not known, labelled, kept, learned)


def heads_of(observed: Observed, settings: Settings, restart: int) -> Parameters:
    """Take heads from the experiment's seed, or draw others."""
    seed = None
    if settings.heads != "initial":
        seed = int(torch_generator(settings.seed, "heads", restart).initial_seed() % 2**31)
    return own_parameters(make_model(observed, seed), observed)


def descend_dlg(
    observed: Observed, settings: Settings, model: MultiTaskModel, guess: Guess
) -> float:
    """Fit by L-BFGS: ``||g' - g||^2 / ||g||^2``, Zhu et al.'s but for a constant.

    Of a clipped update the length is unknown: there it is ``min_c ||c g' - g||^2 / ||g||^2``, the
    squared sine of the angle.
    """
    optimiser = torch.optim.LBFGS(
        guess.learned, lr=1.0, max_iter=LBFGS_STEPS, history_size=100,
        tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip
    local, gradient = LOCAL[settings.local], observed.gradient
    size = sum(part.square().sum() for part in gradient.values())
    lowest, kept = float("inf"), [leaf.detach().clone() for leaf in guess.learned]

    def distance() -> Tensor:
        made = local(observed, model, guess)
        if observed.is_clipped:
            return 1 - cosine(made, gradient).square()
        apart = torch.stack([(made[name] - gradient[name]).square().sum() for name in made]).sum()
        return apart / size

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = distance()
        for leaf, slope in zip(guess.learned, _slopes(value, guess.learned), strict=True):
            leaf.grad = slope
        return value.detach()

    for _ in range(iterations_of(settings)):
        optimiser.step(closure)  # type: ignore[no-untyped-call]
        value = float(distance().detach())
        if not value < lowest * (1 - STANDSTILL):  # it stands still, or fell out of the numbers
            break
        lowest, kept = value, [leaf.detach().clone() for leaf in guess.learned]
        if value < EXACT:
            break
    _put(guess, kept)
    return lowest


def descend_cosine(
    observed: Observed, settings: Settings, model: MultiTaskModel, guess: Guess
) -> float:
    """Fit by signed Adam: ``1 - cos(g', g) + tv * TV(x)``, pixels kept within their box."""
    count = iterations_of(settings)
    optimiser = torch.optim.Adam(guess.learned, lr=settings.lr)
    falls = [round(count * share) for share in (3 / 8, 5 / 8, 7 / 8)]  # Geiping et al.'s code
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, falls, gamma=0.1)
    local, gradient = LOCAL[settings.local], observed.gradient
    lowest, kept = float("inf"), [leaf.detach().clone() for leaf in guess.learned]
    for _ in range(count):
        angle = 1 - cosine(local(observed, model, guess), gradient)
        objective = angle + settings.total_variation * total_variation(observed, guess.inputs)
        value = float(objective.detach())
        if value < lowest:
            lowest, kept = value, [leaf.detach().clone() for leaf in guess.learned]
        for leaf, slope in zip(guess.learned, _slopes(objective, guess.learned), strict=True):
            leaf.grad = slope.sign()
        optimiser.step()
        schedule.step()
        _stay_inside(observed, guess)
    _put(guess, kept)
    return lowest


Descent = Callable[[Observed, Settings, MultiTaskModel, Guess], float]
DESCENTS: dict[str, Descent] = {"dlg": descend_dlg, "cosine": descend_cosine}


def iterations_of(settings: Settings) -> int:
    """Count the iterations of a method."""
    return ITERATIONS[settings.method] if settings.iterations is None else settings.iterations


def cosine(made: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Tensor:
    """Compute the cosine of the angle between two gradients over all their parameters, []."""
    dot = torch.stack([(made[name] * seen[name]).sum() for name in seen]).sum()
    squares = [torch.stack([g[n].square().sum() for n in seen]).sum() for g in (made, seen)]
    return dot / (squares[0] * squares[1]).clamp(min=1e-300).sqrt()


def total_variation(observed: Observed, inputs: Mapping[str, Tensor]) -> Tensor:
    """Average the steps between neighbouring pixels of image inputs, [] (Rudin et al. 1992)."""
    total = torch.zeros((), dtype=torch.float64)
    for name, shape in observed.shapes.items():
        if len(shape) == 3:
            image = inputs[name]
            total = total + (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
            total = total + (image[..., 1:] - image[..., :-1]).abs().mean()
    return total


def _slopes(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate; a slope that is no number moves nothing."""
    slopes = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return tuple(slope.nan_to_num(0.0, 0.0, 0.0) for slope in slopes)


def clamp(observed: Observed, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put pixels that lie outside of their box on its edge; NaN on its lower one."""
    clamped = {name: values.detach() for name, values in inputs.items()}
    for name, (low, high) in observed.box.items():
        low, high = low.reshape(1, -1, 1, 1), high.reshape(1, -1, 1, 1)
        values = torch.where(clamped[name].isnan(), low, clamped[name])
        clamped[name] = torch.minimum(torch.maximum(values, low), high)
    return clamped


@torch.no_grad()
def _stay_inside(observed: Observed, guess: Guess) -> None:
    for name, values in clamp(observed, guess.inputs).items():
        guess.inputs[name].copy_(values)


@torch.no_grad()
def _put(guess: Guess, values: list[Tensor]) -> None:
    for leaf, value in zip(guess.learned, values, strict=True):
        leaf.copy_(value)


def score(
    frame: Frame,
    observed: Observed,
    settings: Settings,
    found: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    objective: float,
    true: Rows,
    others: Rows,
) -> Reconstruction:
    """Compare a reconstruction, and guesses that saw no update, with the true rows."""
    generator, count = torch_generator(settings.seed, "baseline"), observed.rows
    contenders = {
        "attack": found,
        "mean-row": mean_rows(others, count),
        "other-rows": drawn_rows(others, count, generator),
    }
    shown, flat = frame.show(true.inputs), frame.flat(true.inputs)
    errors, pairs, pictures = {}, dict[str, Match](), {}
    for name, inputs in contenders.items():
        rows: NDArray[np.float64] = np.nan_to_num(frame.flat(inputs), posinf=1e6, neginf=-1e6)
        pair = pairs[name] = match(flat, rows)
        errors[name] = describe(flat, rows, pair)
        guessed = frame.show(inputs)
        for key in (n for n, shape in observed.shapes.items() if len(shape) == 3):
            both = shown[key][pair.true], guessed[key][pair.guessed]
            errors[name] |= describe_images(*both)
            if name == "attack":
                pictures[key] = both
    facts = {
        "rows": count, "true-rows": len(true), "steps": observed.steps, "tasks": observed.tasks,
    }  # fmt: skip
    return Reconstruction(
        {name: values.detach() for name, values in found.items()},
        dict(labels), objective, errors, pictures, pairs["attack"], facts,
    )  # fmt: skip
