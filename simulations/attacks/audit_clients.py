"""An audit by client: one run of an experiment with canary clients, and what it gives away."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.stacked_model import find_batched_obstacle
from common.clients import open_clients
from common.errors import ConfigError
from common.experiment import Experiment
from common.preparation import PreparedClient, UnusableClientError, prepare
from common.privacy.accounting import epsilon_of
from common.privacy.client_level import client_events, client_level, client_noise
from server.federation import initial_trunk
from server.run_folder import RunFolder
from simulations.attacks.audit_bound import Bound, audit
from simulations.attacks.audit_estimate import cosines, gaussian_epsilon
from simulations.attacks.canary_clients import CanaryClients, add_canaries, keep_rates
from simulations.attacks.other_rows import PreparedRows, engine_of, run_on
from simulations.kept_federation import read_federation

LEAST_CANARIES = 20
TINY = 1e-300  # in the place of a length of 0
FloatArray = NDArray[np.float64]


def audit_clients(experiment: Experiment, canaries: int, out: Path) -> dict[str, Any]:
    """Run an experiment with canary clients, once, and bound its epsilon from below.

    Args:
        experiment: with ``[privacy.client-level]``.
        canaries: number of canary clients; about half of them send their direction.
        out: folder for the run, "run" in it.

    Returns:
        Figures for people and machines: bound, estimates, and the accountant's epsilon.

    Raises:
        ConfigError: the experiment or the number cannot serve.
    """
    check_canaries(canaries)
    _check_experiment(experiment)
    prepared = read_prepared(experiment)
    everybody, names = add_canaries(prepared, canaries)
    experiment = keep_rates(experiment, len(prepared), canaries)
    watched = CanaryClients(experiment, names)
    folder = RunFolder(out / "run")
    folder.create(experiment, engine_of(experiment))
    run_on(PreparedRows(experiment, everybody), folder, watched)
    kept = read_federation(folder.path, experiment)
    # A file keeps no order.
    order = initial_trunk(experiment, kept.agreement)
    watched.observe(np.concatenate([kept.trunk[name].reshape(-1) for name in order]))
    return describe_audit(experiment, watched, len(everybody), kept.round)


def check_canaries(canaries: int) -> None:
    """Refuse so few canaries that nothing can be found.

    Raises:
        ConfigError: names the option.
    """
    if canaries < LEAST_CANARIES:
        raise ConfigError(
            f"--canaries must be at least {LEAST_CANARIES}, for fewer can refute no epsilon to "
            f"speak of, got {canaries}; raise it"
        )


def _check_experiment(experiment: Experiment) -> None:
    level = experiment.privacy.client_level
    if level is None:
        raise ConfigError(
            "--unit client needs [privacy.client-level] in the experiment, whose claim is audited, "
            "got none; add that table"
        )
    if experiment.privacy.secure_aggregation is None:
        return
    if level.quantile is not None:
        raise ConfigError(
            "--unit client under secure aggregation needs a fixed max-norm, which canaries keep to "
            f"by themselves, got privacy.client-level.quantile {level.quantile:g}; remove it"
        )
    if engine_of(experiment) != "batched":
        raise ConfigError(
            "--unit client under secure aggregation needs a model that engine 'batched' can train, "
            f"for canaries send no masks: {find_batched_obstacle(experiment)}; audit the same "
            "noise without secure aggregation"
        )


def read_prepared(experiment: Experiment) -> dict[str, PreparedClient]:
    """Read all clients' rows; those that take no part are left out."""
    source, prepared = open_clients(experiment), {}
    for name in source.names:
        try:
            prepared[name] = prepare(source.read(name), experiment)
        except UnusableClientError:
            if experiment.data.unusable == "refuse":
                raise
    return prepared


def describe_audit(
    experiment: Experiment, watched: CanaryClients, clients: int, rounds: int
) -> dict[str, Any]:
    """Set what the canaries show beside what the accountant claims.

    Args:
        experiment: of the run.
        watched: its canaries.
        clients: of the federation, canaries counted in.
        rounds: that were done.
    """
    level = client_level(experiment)
    taken = rounds if level.amplification else int(watched.taken.max())
    events = client_events(experiment, clients, taken)
    claimed = epsilon_of(events, level.delta, experiment.privacy.accountant)
    final = cosines(watched.directions, watched.moved())
    # Who does not know which rounds asked a canary has the last trunk's word for all of them.
    scores = final if level.amplification else watched.scores
    # A Poisson sample has another trade-off curve.
    is_gaussian = all(event.sampling == 1 for event in events)
    found = describe_bound(audit(scores, watched.included, level.delta), is_gaussian)
    return {
        "unit": "client",
        "experiment": experiment.name,
        "delta": level.delta,
        "rounds": rounds,
        "clients": clients - len(watched.names),
        "canaries": len(watched.names),
        "included": int(watched.included.sum()),
        "parameters": int(watched.directions.shape[1]),
        "noise-multiplier": client_noise(experiment, clients),
        "taken": taken,
        "claimed": claimed,
        "bound": found,
        "estimates": estimates_of(watched, final, level.delta),
        "scores": {
            "included": scores[watched.included].tolist(),
            "left-out": scores[~watched.included].tolist(),
        },
        "refuted": max(found["epsilon"], found["gaussian"] or 0.0) > claimed,
    }


def describe_bound(bound: Bound, is_gaussian: bool) -> dict[str, Any]:
    """Write a bound for machines; that for Gaussian noise only where the noise is that."""
    return {
        "epsilon": bound.epsilon,
        "gaussian": bound.gaussian if is_gaussian else None,
        "guesses": bound.guesses,
        "right": bound.right,
    }


def estimates_of(watched: CanaryClients, final: FloatArray, delta: float) -> dict[str, float]:
    """Estimate epsilon from the last trunk alone, and from all that was released.

    A direction without part is known to show ``N(0, 1/d)``; where each update is looked at on its
    own (local noise), both kinds are fitted. The paper fits the deviation of those with part, too,
    and epsilon at a small delta hangs on it; "one deviation" takes it to be that of the others, as
    it is under Gaussian noise that is much more than the other clients' updates. A claim that rests
    on amplification is about who does not know which rounds asked a client: the last trunk alone.
    """
    inside = watched.included
    if inside.sum() < 2 or (~inside).sum() < 2:
        return {}
    shares = watched.scores / np.maximum(watched.lengths, TINY)
    null = float(1 / np.sqrt(watched.directions.shape[1]))
    if watched.is_local:
        null = float(shares[~inside].std(ddof=1))
    mean, deviation = float(shares[inside].mean()), float(shares[inside].std(ddof=1))
    last = float(final[inside].mean()), float(final[inside].std(ddof=1))
    found = {"last trunk": gaussian_epsilon(0.0, null, *last, delta)}
    if watched.level.amplification:
        return found
    return {
        **found,
        "all rounds": gaussian_epsilon(0.0, null, mean, deviation, delta),
        "all rounds, one deviation": gaussian_epsilon(0.0, null, mean, null, delta),
    }
