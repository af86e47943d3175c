"""``python -m simulations.benchmarks.mixed_precision``: what precision and memory settings cost.

One federation trains under every setting, one client after another, each run in a process of its
own: on a GPU where there is one. The rows are resident there from the first round on. Runs take
turns, seed by seed, and a time is compared with float32's under the same seed. A figure in the last
column within one standard deviation of float32's own losses is what a seed would change as well.
A perceptron trains in its stacked form in float32, and by autograd in the other arms; to compare
like with like, set an optimiser that has no stacked form, such as rmsprop.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Annotated, Any

import typer

from common.errors import ConfigError
from common.experiment_file import load_experiment
from simulations.benchmarks.precision_trial import WARM_UP, Trial, run_trial
from simulations.terminal import print_json, told_in_lines

PLAIN = "float32"
BF16, FP16 = "training.precision=bfloat16", "training.precision=float16"
COMPILED, AGAIN = "training.compile=true", "training.recompute-activations=true"
MICRO_BATCH = "training.micro-batch"  # a quarter of the batch
BY_PIXEL = "images by pixel"  # no setting: the layout of images on a GPU
SIZES = ("trunk.channels=[256,512]", "training.batch-size=256")
VERDICTS = {True: ", within noise", False: ", more than noise", None: ""}
ARMS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "bfloat16": (BF16,),
    "float16": (FP16,),
    "float32, by pixel": (BY_PIXEL,),
    "bfloat16, by pixel": (BF16, BY_PIXEL),
    "float32, compiled": (COMPILED,),
    "bfloat16, compiled": (BF16, COMPILED),
    "float32, recomputed": (AGAIN,),
    "float32, micro-batches": (MICRO_BATCH,),
    "bfloat16, recomputed, micro-batches": (BF16, AGAIN, MICRO_BATCH),
}


def usual_arms() -> list[str]:
    """Name the arms that differ on this machine: a CPU's images lie by pixel anyway."""
    import torch

    return [arm for arm in ARMS if torch.cuda.is_available() or BY_PIXEL not in ARMS[arm]]


def settings_of(arm: str, overrides: Sequence[str], experiment: str) -> list[str]:
    """List an arm's settings."""
    size = load_experiment(experiment, list(overrides)).training.batch_size
    own = [name for name in ARMS[arm] if name != BY_PIXEL]
    micro_batch = f"{MICRO_BATCH}={max(1, size // 4)}"
    return [*overrides, *(micro_batch if name == MICRO_BATCH else name for name in own)]


def measure(
    experiment: str, arms: Sequence[str], overrides: Sequence[str], rounds: int, seeds: int
) -> dict[str, list[Trial]]:
    """Run every arm under every seed, in turns; arm -> a trial for each seed."""
    found: dict[str, list[Trial]] = {arm: [] for arm in arms}
    fixed = [f"federation.rounds={rounds}", "evaluation.every=1000"]
    for seed in range(seeds):
        for arm in arms if seed % 2 == 0 else reversed(arms):
            settings = [*settings_of(arm, overrides, experiment), *fixed, f"seed={seed}"]
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            with pool as alone:
                job = alone.submit(run_trial, experiment, settings, BY_PIXEL in ARMS[arm])
                found[arm].append(job.result())
    return found


def summarise(found: Mapping[str, Sequence[Trial]]) -> list[dict[str, Any]]:
    """Put each arm's trials beside those in float32, a line for each arm."""
    plain = found[PLAIN]
    noise = _deviation([trial.loss for trial in plain])
    lines = []
    for arm, trials in found.items():
        pairs = list(zip(trials, plain, strict=True))
        gap = statistics.mean(one.loss - other.loss for one, other in pairs)
        lines.append(
            {
                "arm": arm,
                "round-ms": 1000 * statistics.median(trial.round_s for trial in trials),
                "ratio": statistics.median(one.round_s / other.round_s for one, other in pairs),
                "peak-mb": statistics.median(trial.peak_bytes for trial in trials) / 1e6,
                "loss": statistics.mean(trial.loss for trial in trials),
                "loss-deviation": _deviation([trial.loss for trial in trials]),
                "loss-gap": gap,
                "within-noise": None if math.isnan(noise) or arm == PLAIN else abs(gap) <= noise,
            }
        )
    return lines


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def main(
    experiment: Annotated[
        str, typer.Argument(help="A known experiment, or a file.")
    ] = "mnist-pairs",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"Settings; default: {', '.join(SIZES)}."),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm", metavar="NAME", help=f"Beside {PLAIN}; default: all of {'; '.join(ARMS)}."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=WARM_UP + 1, help="Of each run.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every trial.")] = False,
) -> None:
    """Time a round, and read memory and losses, under every precision and memory setting."""
    with told_in_lines():
        for arm in arms or ():
            if arm not in ARMS:
                raise ConfigError(f"--arm must be one of {'; '.join(ARMS)}, got '{arm}'")
        chosen = list(dict.fromkeys([PLAIN, *(arms or usual_arms())]))
        found = measure(experiment, chosen, overrides or SIZES, rounds, seeds)
        lines = summarise(found)
        if as_json:
            trials = {arm: [asdict(trial) for trial in own] for arm, own in found.items()}
            print_json({"arms": lines, "trials": trials})
            return
    typer.echo("| setting | ms a round | ratio | peak MB | validation loss | less float32's |")
    typer.echo("|---|---:|---:|---:|---:|---|")
    for line in lines:
        verdict = VERDICTS[line["within-noise"]]
        typer.echo(
            f"| {line['arm']} | {line['round-ms']:.0f} | {line['ratio']:.2f} | "
            f"{line['peak-mb']:.0f} | {line['loss']:.4f} ± {line['loss-deviation']:.4f} | "
            f"{line['loss-gap']:+.4f}{verdict} |"
        )


if __name__ == "__main__":
    typer.run(main)
