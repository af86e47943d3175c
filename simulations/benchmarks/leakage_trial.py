"""One run of `simulations.benchmarks.utility_leakage`: train, record, attack, and read figures."""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.experiment import Experiment
from common.privacy.accounting import epsilon_of
from common.privacy.client_level import client_events
from common.privacy.example_level import example_events
from simulations.attacks import inversion, labels, membership, task_inference
from simulations.attacks.inversion_settings import Settings
from simulations.attacks.truth import trained_rows
from simulations.attacks.wire import EVERYBODY, Wire, open_wire
from simulations.benchmarks.leakage_arms import (
    DATASETS,
    INVERSION,
    LABELS,
    MEMBERSHIP,
    TASKS,
    make_experiment,
)
from simulations.simulate import choose_engine, simulate
from simulations.wire_record import FOLDER

ATTACKED = 1  # the round: before a client's first, its heads are the seed's, which the server knows
NEAR = 0.1  # of the mean row's squared error: a row that is found nearer than this is recovered
SHOWN = 8  # rows in a picture
# Attack -> its settings; the smooth one holds against noise what the other has in detail.
INVERSIONS: dict[str, dict[str, Any]] = {
    "analytic": {"method": "analytic"},
    "cosine": {"method": "cosine"},
    "smooth cosine": {"method": "cosine", "total_variation": 0.1},
}
Figures = dict[str, float]
Images = NDArray[np.float64]


@dataclass(frozen=True)
class Effort:
    """How hard an attacker tries.

    Attributes:
        iterations: of the optimisation in a gradient inversion.
        victims: clients whose updates are inverted.
        shadows: shadow clients of a probe.
    """

    iterations: int = 300
    victims: int = 3
    shadows: int = 60


@dataclass(frozen=True)
class Trial:
    """One run that is to be made and attacked.

    Attributes:
        dataset: a key of `DATASETS`.
        scene: one of its scenes.
        arm: a key of `ARMS`.
        seed: of the run.
        folder: where run folders go.
        effort: of the attacks.
        keep_wire: leave the recorded messages where they are.
        more: overrides that come last.
    """

    dataset: str
    scene: str
    arm: str
    seed: int
    folder: Path
    effort: Effort = field(default_factory=Effort)
    keep_wire: bool = False
    more: str = ""

    @property
    def experiment(self) -> Experiment:
        """The experiment with all of its settings."""
        return make_experiment(self.dataset, self.scene, self.arm, self.seed, self.more)

    @property
    def out(self) -> Path:
        """Its run folder."""
        return self.folder / f"{self.dataset}-{self.scene}-{self.arm}-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        figures: name -> number; what does not exist is left out.
        facts: what else is told of it, in words.
        pictures: true and reconstructed images of the first victim, [L, C, H, W] from 0 to 1.
    """

    figures: Figures
    facts: dict[str, str]
    pictures: tuple[Images, Images] | None = None


def run_trial(trial: Trial) -> Outcome:
    """Train with the wire recorded, attack what the server saw, and drop the record.

    Raises:
        FedMTLError: settings or data cannot be used.
    """
    logging.getLogger("fedmtl").setLevel(logging.ERROR)
    experiment, out = trial.experiment, trial.out
    shutil.rmtree(out, ignore_errors=True)
    engine, _ = choose_engine(experiment)
    results = simulate(experiment, engine=engine, out=out, record=True)
    wire = open_wire(out)
    found = Outcome(utility_of(experiment, results) | budgets_of(experiment, wire), {})
    for name in DATASETS[trial.dataset].scenes[trial.scene].attacks:
        own = ATTACKS[name](wire, trial.effort)
        pictures = own.pictures or found.pictures
        found = Outcome(found.figures | own.figures, found.facts | own.facts, pictures)
    if not trial.keep_wire:
        shutil.rmtree(out / FOLDER)
    return found


def utility_of(experiment: Experiment, results: dict[str, Any]) -> Figures:
    """Read the tasks' metrics on all test rows, and their mean, in which an R2 below 0 is 0."""
    tasks = results["final"]["test"]["tasks"]
    found = {
        f"task/{name}": float(tasks[name][task.metric_name])
        for name, task in experiment.tasks.items()
        if name in tasks
    }
    return {**found, "utility": fmean(max(0.0, value) for value in found.values())}


def budgets_of(experiment: Experiment, wire: Wire) -> Figures:
    """Work out what the run costs its dearest unit: a client, and a row of some client."""
    privacy, rounds = experiment.privacy, experiment.federation.rounds
    sizes = [told.examples["train"] for told in wire.descriptions.values()]
    found = {}
    if privacy.client_level is not None:
        events = client_events(experiment, len(sizes), rounds)
        delta = privacy.client_level.delta
        found["epsilon/client"] = epsilon_of(events, delta, privacy.accountant)
    if privacy.example_level is not None:
        delta = privacy.example_level.delta
        found["epsilon/row"] = max(
            epsilon_of(example_events(experiment, rows, rounds), delta, privacy.accountant)
            for rows in set(sizes)
        )
    return found


def invert_updates(wire: Wire, effort: Effort) -> Outcome:
    """Invert the updates of some clients, or the sum's, by each attack; tell of the strongest.

    The strongest is known with hindsight, by the true rows: no attacker who has these does better.
    Labels and the first heads are known to the attacker.
    """
    names = [EVERYBODY] if wire.is_summed_securely else wire.clients(ATTACKED)[: effort.victims]
    tried = {
        attack: [_invert(wire, name, attack, effort) for name in names] for attack in INVERSIONS
    }
    gains = {attack: fmean(found.gain for found in own) for attack, own in tried.items()}
    best = max(gains, key=gains.__getitem__)
    errors = {
        who: fmean(found.errors[who]["mse"]["value"] for found in tried[best])
        for who in ("attack", "mean-row")
    }
    figures = {f"inversion/gain/{attack}": gain for attack, gain in gains.items()}
    figures |= {
        "inversion/gain": gains[best],
        "inversion/recovered": fmean(map(recovered_share, tried[best])),
        "inversion/psnr": psnr(errors["attack"]),
        "inversion/psnr-mean-row": psnr(errors["mean-row"]),
    }
    shown = first_rows(wire, tried[best][0])
    seen = "sum over all clients" if wire.is_summed_securely else "a client's update"
    return Outcome(figures, {"inversion": best, "seen": seen}, shown)


def _invert(wire: Wire, client: str, attack: str, effort: Effort) -> inversion.Reconstruction:
    settings = Settings(
        **INVERSIONS[attack],
        # What the wire tells of the number of rows, or would tell without secure aggregation.
        rows=len(trained_rows(wire, ATTACKED, client)),
        iterations=effort.iterations,
    )
    return inversion.invert(wire, client, ATTACKED, settings)


def recovered_share(found: inversion.Reconstruction) -> float:
    """Tell which share of the rows was found much nearer than the mean row is."""
    limit = NEAR * found.errors["mean-row"]["mse"]["value"]
    return float((found.match.mse < limit).mean())


def psnr(mse: float) -> float:
    """Write a squared error of pixels from 0 to 1 in dB.

    >>> psnr(0.01)
    20.0
    """
    return -10 * math.log10(max(mse, 1e-12))


def first_rows(wire: Wire, found: inversion.Reconstruction) -> tuple[Images, Images]:
    """Take the pictures of the first client's first rows, which begin the rows of a sum, too."""
    true, guessed = next(iter(found.pictures.values()))
    count = min(SHOWN, len(trained_rows(wire, ATTACKED, wire.clients(ATTACKED)[0])))
    chosen = np.flatnonzero(found.match.true < count)
    return true[chosen].clamp(0, 1).numpy(), guessed[chosen].clamp(0, 1).numpy()


def leak_labels(wire: Wire, effort: Effort) -> Outcome:
    """Count the clients' labels by their updates; figures are means over tasks."""
    if wire.is_summed_securely:
        return Outcome({}, {"labels": "no update of a client is seen"})
    found = labels.leak_labels(wire, ATTACKED, labels.Settings(shadows=effort.shadows))
    figures = {
        f"labels/{who}": fmean(leak.accuracy[name]["value"] for leak in found)
        for who, name in (("right", "attack"), ("prior", "prior"))
    }
    return Outcome(figures, {"labels": found[0].by})


def infer_tasks(wire: Wire, effort: Effort) -> Outcome:
    """Infer the clients' tasks from their updates, by parts that stand still or by a probe."""
    settings = task_inference.Settings(shadows=effort.shadows)
    found = task_inference.infer_tasks(wire, ATTACKED, settings)
    by = "parts" if "parts" in found.figures else "probe"
    own = found.figures[by]
    figures = {
        "tasks/auc": fmean(figure["auc"]["value"] for figure in own["tasks"].values()),
        "tasks/right": own["set"]["accuracy"]["value"],
        "tasks/base-rate": own["set"]["base-rate"],
    }
    return Outcome(figures, {"tasks": by})


def infer_members(wire: Wire, _: Effort) -> Outcome:
    """Tell training rows from held-out ones by their loss under the final model."""
    found = membership.infer_membership(wire.run, membership.Attack("threshold"))
    figures = {
        f"membership/{attacker}": own["methods"]["threshold"]["auc"]["value"]
        for attacker, own in found["attackers"].items()
    }
    return Outcome(figures, {})


Attack = Callable[[Wire, Effort], Outcome]
ATTACKS: dict[str, Attack] = {
    INVERSION: invert_updates,
    LABELS: leak_labels,
    TASKS: infer_tasks,
    MEMBERSHIP: infer_members,
}
