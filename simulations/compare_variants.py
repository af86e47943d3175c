"""Which setting of the federation is best? The same seeds, trained with each, side by side."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.experiment import Experiment
from common.quieting import without_warnings
from simulations.baselines import read_clients
from simulations.compare import (
    FIGURES,
    describe_comparison,
    require_new_folder,
    seed_folder,
    with_seed,
    write_figures,
)
from simulations.contenders import train_baseline, train_federation
from simulations.gains import YARDSTICK, TaskFigures, spread, summarise
from simulations.holdout import Holdout, check_holdout, divide
from simulations.holdout_figures import Newcomers, describe_newcomers, fit_newcomers
from simulations.jobs import run_jobs
from simulations.run_record import read_run
from simulations.step_time import ms_per_step
from simulations.tracked_run import UNTRACKED, Track
from simulations.variants import Plan, Variant

logger = logging.getLogger("fedmtl.compare")

Progress = Callable[[int, int], None]  # jobs done, of how many


@dataclass(frozen=True)
class Job:
    """One training: a variant's federation, or a yardstick, under one seed.

    Attributes:
        name: of the variant or yardstick.
        experiment: with the seed.
        engine: what the federation runs on.
        folder: its run folder; None for a yardstick.
        holdout: clients that take no part, if any.
        track: who is told of a federation's rounds.
    """

    name: str
    experiment: Experiment
    engine: str = ""
    folder: Path | None = None
    holdout: Holdout | None = None
    track: Track = UNTRACKED


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        tasks: test figures.
        step_ms: see `simulations.step_time`; NaN for a yardstick.
        newcomers: of the variant's trunk, where clients were held out.
    """

    tasks: TaskFigures
    step_ms: float = math.nan
    newcomers: Newcomers | None = None


Outcomes = dict[int, dict[str, Outcome]]  # seed -> variant or yardstick -> outcome


def compare_variants(
    plan: Plan,
    seeds: Sequence[int],
    out: Path,
    jobs: int = 1,
    on_progress: Progress = lambda done, total: None,
    holdout: Holdout | None = None,
    track: Track = UNTRACKED,
) -> dict[str, Any]:
    """Train every variant and yardstick for every seed and summarise the test figures.

    A seed decides splits, partition and initial parameters, for all variants alike. Each run is
    read at its best round by ``evaluation.best-by``. The loss, the weighted sum of the task losses,
    chooses a round within a run, and is no figure to compare variants of other weights by.
    The same summary of a seed alone is in ``out/seed-N/comparison.json`` as soon as it is done.

    Args:
        plan: the variants, checked.
        seeds: each variant once with each.
        out: folder for the figures and run folders, ``out/seed-N/<variant>``; must not exist.
        jobs: variants trained at a time, of whatever seed, in processes of their own.
        on_progress: told of every job that is done.
        holdout: clients that take no part in a seed's trainings, and are personalised on the trunk
            of every variant afterwards.
        track: who is told of every variant; a yardstick has no rounds to tell of.

    Returns:
        What `simulations.compare.describe_comparison` says, with ``vary``: key -> values, ``jobs``,
        and ``contenders``: ``{name: {"settings": {key: value}, "tasks": {task: spread}, "delta-m":
        spread}}`` for yardsticks and variants; these also with ``fingerprint``, ``engine``,
        ``folder``, ``yardstick`` and ``step-ms``, a spread. Without yardsticks there is no Delta-m.
        With `holdout` there is ``newcomers``, as of `simulations.compare.compare`, with the
        variants' trunks.

    Raises:
        FedMTLError: the data cannot be used, or `out` exists.
    """
    require_new_folder(out)
    for variant in plan.variants:
        check_holdout(variant.experiment, holdout, seeds)
    work = list_jobs(plan, seeds, out, holdout, track)
    contenders = len(work) // len(seeds)
    outcomes: Outcomes = {seed: {} for seed in seeds}

    def keep(job: Job, outcome: Outcome) -> None:
        seed = job.experiment.seed
        outcomes[seed][job.name] = outcome
        if len(outcomes[seed]) == contenders:
            whole = summarise_plan(plan, {seed: outcomes[seed]}, jobs)
            write_figures(seed_folder(out, seed) / FIGURES, whole)
        on_progress(sum(map(len, outcomes.values())), len(work))

    run_jobs(do_job, work, jobs, keep)
    comparison = summarise_plan(plan, outcomes, jobs)
    write_figures(out / FIGURES, comparison)
    return comparison


def list_jobs(
    plan: Plan,
    seeds: Sequence[int],
    out: Path,
    holdout: Holdout | None = None,
    track: Track = UNTRACKED,
) -> list[Job]:
    """List what is to be trained, seed after seed, the slow yardsticks first."""
    listed = []
    for seed in seeds:
        listed += [
            Job(name, with_seed(e, seed), holdout=holdout) for name, e in plan.yardsticks.items()
        ]
        listed += [
            Job(
                v.name,
                with_seed(v.experiment, seed),
                v.engine,
                seed_folder(out, seed) / v.folder,
                holdout,
                track,
            )
            for v in plan.variants
        ]
    return listed


def do_job(job: Job) -> Outcome:
    """Train a federation or a yardstick; then personalise a federation's held-out clients."""
    experiment, held_out = divide(job.experiment, job.holdout)
    if job.folder is None:
        clients, agreement = read_clients(experiment)
        return Outcome(train_baseline(YARDSTICK, experiment, agreement, clients))
    with without_warnings("fedmtl.server"):  # of a variant that diverges, one a client and round
        tasks = train_federation(experiment, job.engine, job.folder, job.track)
    newcomers = None
    if job.holdout is not None:
        newcomers = fit_newcomers(experiment, job.folder, held_out, job.holdout)
    record = read_run(job.folder)
    left_out = sum(len(line["clients"]["left-out"]) for line in record.rounds)
    if left_out and record.results:
        about = "%s, seed %d: %d replies were left out; metrics.jsonl in its folder says why"
        logger.warning(about, job.name, job.experiment.seed, left_out)
    return Outcome(tasks, ms_per_step(record), newcomers)


def summarise_plan(plan: Plan, outcomes: Outcomes, jobs: int) -> dict[str, Any]:
    """Summarise what came of all seeds, or of those that are given."""
    experiment, seeds = plan.experiment, list(outcomes)

    def tasks_of(name: str) -> list[TaskFigures]:
        return [outcomes[seed][name].tasks for seed in seeds]

    def newcomers_of(name: str) -> dict[int, Newcomers]:
        return {seed: own for seed in seeds if (own := outcomes[seed][name].newcomers)}

    def describe(variant: Variant) -> dict[str, Any]:
        yardsticks = tasks_of(variant.yardstick) if plan.yardsticks else None
        return {
            "settings": dict(variant.settings),
            "fingerprint": variant.experiment.fingerprint(),
            "engine": variant.engine,
            "folder": variant.folder,
            "yardstick": variant.yardstick,
            **summarise(experiment, tasks_of(variant.name), yardsticks),
            "step-ms": spread([outcomes[seed][variant.name].step_ms for seed in seeds]),
        }

    about_rows = {variant.yardstick: variant.about_rows for variant in plan.variants}
    standards = {
        name: {
            "settings": about_rows[name],
            **summarise(experiment, tasks_of(name), tasks_of(name)),
        }
        for name in plan.yardsticks
    }
    return {
        **describe_comparison(experiment, seeds),
        "vary": dict(plan.axes),
        "jobs": jobs,
        "contenders": standards | {v.name: describe(v) for v in plan.variants},
        **describe_newcomers({v.name: newcomers_of(v.name) for v in plan.variants}, experiment),
    }
