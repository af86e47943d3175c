"""How to invert gradients: the settings, and what of them cannot work on an update."""

import math
from dataclasses import dataclass

from common.errors import ConfigError
from common.sections.training import Training
from simulations.attacks.local_steps import LOCAL
from simulations.attacks.observed import Observed
from simulations.attacks.wire import EVERYBODY

METHODS = ("analytic", "dlg", "cosine")
HEADS = ("initial", "true", "random", "learned")
LABELS = ("known", "learned")
ITERATIONS = {"analytic": 0, "dlg": 100, "cosine": 1000}


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


def iterations_of(settings: Settings) -> int:
    """Count the iterations of a method."""
    return ITERATIONS[settings.method] if settings.iterations is None else settings.iterations


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
    if texts := [n for n, one in observed.experiment.inputs.items() if one.kind == "text"]:
        raise ConfigError(
            f"attack inversion searches along gradients of inputs, got inputs.{texts[0]} of kind "
            "'text', whose tokens have none; attack a run of numbers or images, or infer labels "
            "with `fedmtl attack labels`"
        )
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
    if settings.local == "unrolled":
        _require_known_steps(training)
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


def _require_known_steps(training: Training) -> None:
    """Refuse steps that cannot be followed without the client's rows, or are no plain ones.

    Raises:
        ConfigError: names the setting.
    """
    given = {
        "optimiser-options": training.optimiser_options,
        "patience": training.patience,
        "balance 'classes'": training.balance == "classes",
    }
    for name, value in given.items():
        if value:
            raise ConfigError(
                "--local unrolled follows plain steps over rows in an order that the seed tells, "
                f"got a run with training.{name}; take --local one-gradient"
            )
