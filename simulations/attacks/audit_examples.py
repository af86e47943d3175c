"""An audit by example: one run with canary rows at one client, and what it gives away."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cells import list_names
from common.errors import ConfigError
from common.experiment import Experiment
from common.preparation import PreparedClient
from common.privacy.accounting import Event, epsilon_of
from common.privacy.example_level import example_events
from common.privacy.settings import ExampleLevel
from common.sharing import task_of
from server.run_folder import RunFolder
from simulations.attacks.audit_bound import audit
from simulations.attacks.audit_clients import check_canaries, describe_bound, read_prepared
from simulations.attacks.audit_estimate import gaussian_epsilon
from simulations.attacks.canary_rows import CanaryRows
from simulations.attacks.other_rows import engine_of, read_own, run_on
from simulations.attacks.row_scores import RowScorer
from simulations.attacks.row_watch import RowWatch
from simulations.kept_federation import KeptFederation, read_federation
from simulations.loopback import LoopbackGrid

SCORES = ("gradient", "loss")
FloatArray = NDArray[np.float64]


def audit_examples(
    experiment: Experiment, canaries: int, out: Path, client: str = "", score: str = "gradient"
) -> dict[str, Any]:
    """Run an experiment with canary rows at one client, once, and bound its epsilon from below.

    Args:
        experiment: with ``[privacy.example-level]``.
        canaries: number of canary rows; about half of them are in.
        out: folder for the run, "run" in it.
        client: whose rows; may be left out for the one with the most.
        score: gradient, by every round's update, or loss, by the final model of the client.

    Returns:
        Figures for people and machines: bound, estimates, and the accountant's epsilon.

    Raises:
        ConfigError: the experiment, the number or the client cannot serve.
    """
    check_canaries(canaries)
    level = _check_experiment(experiment, score)
    prepared = read_prepared(experiment)
    rows = CanaryRows(experiment, prepared, choose_client(prepared, client), canaries)
    count = len(prepared[rows.client].splits["train"]) + int(rows.included.sum())
    watch, folder = RowWatch(rows), RunFolder(out / "run")
    folder.create(experiment, engine_of(experiment))

    def look_on(grid: LoopbackGrid) -> None:
        watch.read_own = lambda: read_own(grid, rows.client)

    run_on(rows, folder, watch, look_on)
    if not watch.taken:
        raise ConfigError(
            f"client '{rows.client}', whose rows are audited, took part in none of the "
            f"{experiment.federation.rounds} rounds; ask more clients per round, run more rounds, "
            "or name another with --client"
        )
    kept = read_federation(folder.path, experiment)
    scores = watch.scores if score == "gradient" else score_losses(kept, rows)
    events = example_events(experiment, count, watch.taken)
    return {
        "unit": "example",
        "experiment": experiment.name,
        "client": rows.client,
        "rows": count,
        "rounds": kept.round,
        "taken": watch.taken,
        "score": score,
        **describe_rows(experiment, level, events, scores, rows.included),
    }


def _check_experiment(experiment: Experiment, score: str) -> ExampleLevel:
    if score not in SCORES:
        raise ConfigError(f"--score must be one of {', '.join(SCORES)}, got '{score}'")
    level = experiment.privacy.example_level
    if level is None:
        raise ConfigError(
            "--unit example needs [privacy.example-level] in the experiment, whose claim is "
            "audited, got none; add that table"
        )
    if score == "loss" and level.covers == "trunk":
        raise ConfigError(
            "--score loss looks at heads, which covers 'trunk' makes no claim about; use --score "
            "gradient"
        )
    if experiment.privacy.secure_aggregation is not None:
        raise ConfigError(
            "--unit example looks at one client's updates, which secure aggregation hides; remove "
            "[privacy.secure-aggregation], which the claim does not rest on"
        )
    return level


def choose_client(prepared: dict[str, PreparedClient], client: str) -> str:
    """Find the client whose rows are audited: as named, or the one with the most training rows.

    Raises:
        ConfigError: there is none of that name.
    """
    if not client:
        return max(prepared, key=lambda name: len(prepared[name].splits["train"]))
    if client not in prepared:
        raise ConfigError(
            f"--client must name a client of the experiment, got '{client}'; there are "
            f"{list_names(list(prepared))}"
        )
    return client


def score_losses(kept: KeptFederation, rows: CanaryRows) -> FloatArray:
    """Score canaries by their loss under the client's final model, its sign changed; [m]."""
    if rows.canaries is None:
        raise RuntimeError("the client's rows were never encoded")
    arrays = kept.arrays_of(rows.client)
    scorer = RowScorer(kept.experiment, kept.shapes)
    scorer.load(arrays)
    tasks = {task_of(name) for name in arrays if name.startswith("heads.")}
    return -scorer.score(rows.canaries, [task for task in tasks if task is not None]).loss


def describe_rows(
    experiment: Experiment,
    level: ExampleLevel,
    events: list[Event],
    scores: FloatArray,
    included: NDArray[np.bool_],
) -> dict[str, Any]:
    """Set what canary rows show beside what the accountant claims.

    Args:
        experiment: names the accountant.
        level: whose claim it is.
        events: of the client, over the run.
        scores: [m].
        included: [m].
    """
    claimed = epsilon_of(events, level.delta, experiment.privacy.accountant)
    # A sampled Gaussian mechanism has another trade-off curve.
    found = describe_bound(
        audit(scores, included, level.delta), all(event.sampling == 1 for event in events)
    )
    inside, outside = scores[included], scores[~included]
    middle, spread = float(outside.mean()), float(outside.std(ddof=1))
    mean, own = float(inside.mean()), float(inside.std(ddof=1))
    return {
        "delta": level.delta,
        "noise-multiplier": events[0].noise_multiplier,
        "canaries": len(included),
        "included": int(included.sum()),
        "claimed": claimed,
        "bound": found,
        "estimates": {
            "canaries": gaussian_epsilon(middle, spread, mean, own, level.delta),
            "canaries, one deviation": gaussian_epsilon(middle, spread, mean, spread, level.delta),
        },
        "scores": {"included": inside.tolist(), "left-out": outside.tolist()},
        "refuted": max(found["epsilon"], found["gaussian"] or 0.0) > claimed,
    }
