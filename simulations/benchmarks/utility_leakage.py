"""``python -m simulations.benchmarks.utility_leakage digits faces --out FOLDER``: privacy's price.

Whole-model FedAvg, trunk only, trunk only with secure aggregation, and with differential privacy by
row at several epsilons and by client, all on the same data: how well each predicts, and what
gradient inversion, label leakage and task inference make of what its server saw. Every run is
recorded (``--record-wire``), and the attacks start from the record. Writes ``utility-leakage.html``
and ``results.json``.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import CheckpointError, ConfigError
from common.json_gaps import without_gaps
from server.checkpoint import replace_text
from simulations.benchmarks.leakage_arms import ARMS, DATASETS
from simulations.benchmarks.leakage_page import write_leakage_page
from simulations.benchmarks.leakage_tables import Summary, summarise, to_markdown
from simulations.benchmarks.leakage_trial import Effort, Outcome, Trial, run_trial
from simulations.formats import format_seconds
from simulations.jobs import run_jobs
from simulations.terminal import told_in_lines

RESULTS = "results.json"
Found = dict[str, dict[str, Summary]]  # data set -> scene -> arm -> figures


def plan(names: Sequence[str], seeds: int, folder: Path, **options: Any) -> list[Trial]:
    """List the trials.

    Args:
        names: of data sets.
        seeds: how many, from 0.
        folder: where run folders go.
        options: more of `Trial`.

    Raises:
        ConfigError: there is no such data set.
    """
    if unknown := [name for name in names if name not in DATASETS]:
        raise ConfigError(f"data sets must be some of {', '.join(DATASETS)}, got '{unknown[0]}'")
    return [
        Trial(name, scene, arm, seed, folder, **options)
        for seed in range(seeds)
        for name in dict.fromkeys(names)
        for scene, own in DATASETS[name].scenes.items()
        for arm in own.arms
    ]


def run_all(trials: Sequence[Trial], processes: int) -> dict[Trial, Outcome]:
    """Run trials and say how each went, on stderr."""
    found: dict[Trial, Outcome] = {}

    def note(trial: Trial, outcome: Outcome) -> None:
        found[trial] = outcome
        told = [f"utility {outcome.figures['utility']:.3f}"]
        if "inversion/gain" in outcome.figures:
            told.append(f"error taken away {outcome.figures['inversion/gain']:.0%}")
        where = f"[{len(found)}/{len(trials)}] {trial.dataset}, {trial.scene}, {trial.arm}"
        typer.echo(f"{where}, seed {trial.seed}: {', '.join(told)}", err=True)

    run_jobs(run_trial, trials, processes, note)
    return found


def collect(outcomes: Mapping[Trial, Outcome]) -> Found:
    """Put seeds together, in the order of data sets, scenes and arms."""
    found: Found = {}
    for dataset, known in DATASETS.items():
        for scene, own in known.scenes.items():
            by_arm = {
                arm: [
                    outcome
                    for trial, outcome in sorted(outcomes.items(), key=lambda item: item[0].seed)
                    if (trial.dataset, trial.scene, trial.arm) == (dataset, scene, arm)
                ]
                for arm in own.arms
            }
            by_arm = {arm: seeds for arm, seeds in by_arm.items() if seeds}
            if by_arm:
                found.setdefault(dataset, {})[scene] = summarise(by_arm)
    return found


def pictures_of(outcomes: Mapping[Trial, Outcome]) -> dict[tuple[str, str], dict[str, Any]]:
    """Take the pictures of seed 0: (data set, scene) -> arm -> true and reconstructed."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    order = list(ARMS)
    for trial, outcome in sorted(outcomes.items(), key=lambda item: order.index(item[0].arm)):
        if trial.seed == 0 and outcome.pictures is not None:
            found.setdefault((trial.dataset, trial.scene), {})[trial.arm] = outcome.pictures
    return found


def settings_text(names: Sequence[str]) -> Iterator[str]:
    """Write out what every scene and arm sets, a line each."""
    for name in dict.fromkeys(names):
        yield f"{name}: experiment {DATASETS[name].experiment}"
        for scene, own in DATASETS[name].scenes.items():
            yield f"  {scene}: {own.settings}"
            numbers = {"norm": own.norm, "wide": own.wide, "noise": own.noise}
            for arm in own.arms:
                yield f"    {arm}: {(ARMS[arm].settings or own.whole).format(**numbers)}"


def main(
    names: Annotated[
        list[str], typer.Argument(metavar="DATA...", help=f"Some of {', '.join(DATASETS)}.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for page, figures and runs.")],
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with seeds 0 to N-1.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, a process each.")] = 2,
    iterations: Annotated[int, typer.Option(min=1, help="Of a gradient inversion.")] = 300,
    victims: Annotated[int, typer.Option(min=1, help="Clients that are inverted.")] = 3,
    shadows: Annotated[int, typer.Option(min=20, help="Shadow clients of a probe.")] = 60,
    keep_wire: Annotated[
        bool, typer.Option("--keep-wire", help="Keep the recorded messages: gigabytes.")
    ] = False,
) -> None:
    """Train every arm, attack what its server saw, and write one page."""
    logging.getLogger("fedmtl").setLevel(logging.ERROR)
    with told_in_lines():
        effort, started = Effort(iterations, victims, shadows), time.perf_counter()
        trials = plan(names, seeds, out / "runs", effort=effort, keep_wire=keep_wire)
        make_folder(out)
        outcomes = run_all(trials, jobs)
        found, seconds = collect(outcomes), time.perf_counter() - started
        facts = {
            "data": ", ".join(found), "seeds": seeds, "inverted clients": victims,
            "iterations": iterations, "shadows": shadows, "runs": len(trials),
            "took": format_seconds(seconds),
        }  # fmt: skip
        settings = "\n".join(settings_text(names))
        path = write_leakage_page(out, found, pictures_of(outcomes), facts, settings)
        write_results(out / RESULTS, {**facts, "seconds": seconds, "datasets": found})
    for name, scenes in found.items():
        typer.echo(to_markdown(name, DATASETS[name], scenes) + "\n")
    typer.echo(f"written: {path}")


def make_folder(out: Path) -> None:
    """Make the folder before anything is trained.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"--out {out} cannot be made ({error.strerror}); choose another folder"
        ) from error


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write figures as JSON; what does not exist is null.

    Raises:
        CheckpointError: they cannot be written.
    """
    text = json.dumps(without_gaps(dict(content)), indent=1, allow_nan=False)
    try:
        replace_text(path, text + "\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_show_locals=False)
    app.command()(main)
    sys.exit(app())
