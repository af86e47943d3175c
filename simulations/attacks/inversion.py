"""Gradient inversion: rows whose training would have sent the update that was seen.

What the methods are: ``dlg`` and ``cosine`` in `simulations.attacks.descents`, ``analytic`` in
`simulations.attacks.analytic`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.own_arrays import divide_own
from common.dataset import Rows
from common.errors import ConfigError
from common.seeding import torch_generator
from simulations.attacks.analytic import recover
from simulations.attacks.descents import DESCENTS, clamp
from simulations.attacks.guesses import (
    Guess,
    Parameters,
    draw_inputs,
    draw_labels,
    known_labels,
    make_model,
    own_parameters,
)
from simulations.attacks.inversion_settings import Settings, check
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
