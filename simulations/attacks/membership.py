"""Membership inference on a finished run: which rows did its clients train on?

The *insider* knows the final trunk and the clients' own heads. The *server* knows the trunk alone;
it fits heads to rows of its own, and does not know which client a head belongs to.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.algorithms import ALGORITHMS
from common.dataset import ClientData, Rows
from common.encoding import encode_prepared
from common.errors import ConfigError
from common.preparation import PreparedClient
from common.sharing import task_of
from simulations.attacks.candidates import (
    Candidates,
    divide_clients,
    draw_halves,
    require_kept,
)
from simulations.attacks.lira import Shadows, likelihood_ratios, require_shadows
from simulations.attacks.roc import summarise, thin_curve, trace_roc
from simulations.attacks.row_scores import RowScorer, RowScores
from simulations.attacks.shadow_federations import train_shadow
from simulations.kept_federation import KeptFederation, open_federation

METHODS = ("threshold", "lira")
ATTACKERS = ("insider", "server")
KNOWS = {
    "insider": "final trunk and every client's own heads",
    "server": "final trunk; fits heads to rows of its own",
}

FloatArray = NDArray[np.float64]
Told = Callable[[int, int, float], None]  # shadow federations done, of how many, seconds so far


@dataclass(frozen=True)
class Attack:
    """What is asked for.

    Attributes:
        method: threshold (Yeom et al. 2018, "Privacy risk in machine learning": a small loss means
            member), or lira, whose figures are told beside those of the threshold.
        attackers: of `ATTACKERS`.
        shadows: number of shadow federations.
    """

    method: str = "threshold"
    attackers: Sequence[str] = ATTACKERS
    shadows: int = 16


def infer_membership(
    folder: Path, attack: Attack, data: str | None = None, told: Told | None = None
) -> dict[str, Any]:
    """Attack a run.

    Args:
        folder: of the run.
        attack: what is asked for.
        data: where raw data is, if not where the experiment says.
        told: follows the shadow federations.

    Returns:
        Figures for people and machines: attacker -> method -> AUC, rates, curve.

    Raises:
        ConfigError: the run, or what is asked for, cannot serve.
        CheckpointError: the run's folder cannot be read.
    """
    check_attack(attack)
    kept = open_federation(folder, data)
    candidates = divide_clients(kept.experiment)
    if "insider" in attack.attackers:
        require_kept(candidates, kept.own, str(folder))
    if "server" in attack.attackers:
        _require_trunk(kept)
    started = time.perf_counter()
    prepared = {name: own.as_attacked() for name, own in candidates.items()}
    target = score_rows(kept, prepared, attack.attackers)
    members = np.concatenate([own.members for own in candidates.values()])
    shadows: dict[str, Shadows] = {}
    if attack.method == "lira":
        shadows = train_shadows(kept, candidates, attack, told)
    return {
        "run": kept.run,
        "experiment": kept.experiment.name,
        "fingerprint": kept.experiment.fingerprint(),
        "round": kept.round,
        "clients": len(candidates),
        "method": attack.method,
        "shadows": attack.shadows if shadows else 0,
        "attackers": {
            attacker: {
                "knows": KNOWS[attacker],
                "methods": {
                    method: describe_scores(scores, members)
                    for method, scores in attacked(target[attacker], shadows.get(attacker))
                },
            }
            for attacker in attack.attackers
        },
        "seconds": time.perf_counter() - started,
    }


def check_attack(attack: Attack) -> None:
    """Refuse what is no attack.

    Raises:
        ConfigError: names the option.
    """
    if attack.method not in METHODS:
        raise ConfigError(
            f"--method must be one of {', '.join(METHODS)}, got '{attack.method}'; choose one"
        )
    unknown = [attacker for attacker in attack.attackers if attacker not in ATTACKERS]
    if unknown or not attack.attackers:
        raise ConfigError(
            f"--attacker must be {', '.join(ATTACKERS)} or both, got '{(*unknown, '')[0]}'"
        )
    if attack.method == "lira":
        require_shadows(attack.shadows)


def _require_trunk(kept: KeptFederation) -> None:
    algorithm = kept.experiment.federation.algorithm
    if ALGORITHMS[algorithm].shares == "nothing":
        raise ConfigError(
            f"--attacker server needs a run that sends a trunk, got federation.algorithm "
            f"'{algorithm}', which sends none; use --attacker insider"
        )


def attacked(target: RowScores, shadows: Shadows | None) -> Iterator[tuple[str, FloatArray]]:
    """Name the methods, each with its score of every row; the higher, the likelier a member."""
    yield "threshold", -target.loss
    if shadows is not None:
        yield "lira online", likelihood_ratios(target.confidence, shadows)
        yield "lira offline", likelihood_ratios(target.confidence, shadows, online=False)


def describe_scores(scores: FloatArray, members: NDArray[np.bool_]) -> dict[str, Any]:
    """Put the figures of one method together, with its curve."""
    inside, outside = scores[members], scores[~members]
    false, true = thin_curve(trace_roc(inside, outside))
    return {**summarise(inside, outside), "roc": {"fpr": list(false), "tpr": list(true)}}


def score_rows(
    kept: KeptFederation, prepared: Mapping[str, PreparedClient], attackers: Sequence[str]
) -> dict[str, RowScores]:
    """Score the rows in question of all clients, one client after another, for each attacker.

    Args:
        kept: a federation, attacked or shadow.
        prepared: client -> its rows as that federation divided them, those in question as "test",
            the attacker's as "validation".
        attackers: of `ATTACKERS`.
    """
    scorer = RowScorer(kept.experiment, kept.shapes)
    data = [encode_prepared(own, kept.experiment, kept.agreement) for own in prepared.values()]
    found = {}
    for attacker in attackers:
        score = _score_outside if attacker == "server" else _score_inside
        found[attacker] = RowScores.join(score(scorer, kept, data))
    return found


def _score_outside(
    scorer: RowScorer, kept: KeptFederation, data: Sequence[ClientData]
) -> list[RowScores]:
    rows = Rows.join([client.splits["validation"] for client in data])
    tasks = scorer.fit_heads(kept.trunk, rows)
    return [scorer.score(client.splits["test"], tasks) for client in data]


def _score_inside(
    scorer: RowScorer, kept: KeptFederation, data: Sequence[ClientData]
) -> list[RowScores]:
    scores = []
    for client in data:
        arrays = kept.arrays_of(client.name)
        scorer.load(arrays)
        tasks = {task_of(name) for name in arrays if name.startswith("heads.")}
        held = [task for task in tasks if task is not None]
        scores.append(scorer.score(client.splits["test"], held))
    return scores


def train_shadows(
    kept: KeptFederation,
    candidates: Mapping[str, Candidates],
    attack: Attack,
    told: Told | None = None,
) -> dict[str, Shadows]:
    """Train shadow federations, one after another, and let each score the rows in question."""
    drawn = draw_halves(candidates, attack.shadows, kept.experiment.seed)
    found: dict[str, list[FloatArray]] = {attacker: [] for attacker in attack.attackers}
    started = time.perf_counter()
    for number in range(attack.shadows):
        prepared = {n: own.trained_on(drawn[n][number]) for n, own in candidates.items()}
        shadow = train_shadow(kept.experiment, prepared, number)
        for attacker, scores in score_rows(shadow, prepared, attack.attackers).items():
            found[attacker].append(scores.confidence)
        if told is not None:
            told(number + 1, attack.shadows, time.perf_counter() - started)
    included = np.concatenate([drawn[name] for name in candidates], axis=1)
    return {attacker: Shadows(np.stack(scores), included) for attacker, scores in found.items()}
