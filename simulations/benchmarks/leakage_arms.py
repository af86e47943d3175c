"""What `simulations.benchmarks.utility_leakage` compares: data, ways to train them, and arms.

Two ways, because leakage depends on them. With one local step on few rows an update is a gradient,
the case that gradient inversion is known for, and in which nothing but protection helps. With many
steps on more rows it is blurred, and noise costs less.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.experiment import Experiment
from common.experiment_file import load_experiment

CLIENT, EXAMPLE = "privacy.client-level", "privacy.example-level"
SECURE = "privacy.secure-aggregation"
DELTA = 0.005  # below one over the rows of any client here, and over the number of clients
INVERSION, LABELS, TASKS, MEMBERSHIP = "inversion", "labels", "tasks", "membership"


@dataclass(frozen=True)
class Arm:
    """One way to share what was learned.

    Attributes:
        title: for people.
        settings: overrides, blanks between; ``{norm}``, ``{wide}`` and ``{noise}`` are the scene's.
        summed: whether the server sees sums over clients alone.
    """

    title: str
    settings: str
    summed: bool = False


def _example(epsilon: int) -> Arm:
    budget = f"{EXAMPLE}.epsilon={epsilon} {EXAMPLE}.delta={DELTA:g} {EXAMPLE}.max-norm=1"
    return Arm(f"trunk only, row DP, eps {epsilon}", f"federation.algorithm=joint {budget}")


WHOLE = "whole-model"
ARMS: dict[str, Arm] = {
    WHOLE: Arm("whole-model FedAvg", ""),  # its settings are the scene's
    "trunk": Arm("trunk only", "federation.algorithm=joint"),
    "trunk-secure": Arm(
        "trunk only, secure sum",
        f"federation.algorithm=joint {SECURE}.max-norm={{wide}}",
        summed=True,
    ),
    **{f"trunk-row-eps-{epsilon}": _example(epsilon) for epsilon in (30, 8, 3, 1)},
    "trunk-client": Arm(
        "trunk only, client DP, secure sum",
        f"federation.algorithm=joint federation.weight-by=uniform {CLIENT}.noise=shares "
        f"{CLIENT}.noise-multiplier={{noise}} {CLIENT}.delta={DELTA:g} "
        f"{CLIENT}.max-norm={{norm}} {SECURE}.threshold=0.66",
        summed=True,
    ),
}


@dataclass(frozen=True)
class Scene:
    """One way to train a data set; every arm trains so.

    Attributes:
        line: what it is, for people.
        settings: overrides, blanks between.
        attacks: what is tried on each arm.
        norm: largest L2 norm of an update under client-level privacy.
        wide: the same under plain secure aggregation, above what updates have.
        noise: noise multiplier of client-level privacy.
        whole: settings of the arm whose heads travel.
        with_sums: whether arms are run whose updates are summed securely.
    """

    line: str
    settings: str
    attacks: tuple[str, ...] = (INVERSION, LABELS, MEMBERSHIP)
    norm: float = 0.5
    wide: float = 5.0
    noise: float = 1.0
    whole: str = "federation.algorithm=whole-model"
    with_sums: bool = True

    @property
    def arms(self) -> list[str]:
        """Names of the arms that are run."""
        return [name for name, arm in ARMS.items() if self.with_sums or not arm.summed]


@dataclass(frozen=True)
class Dataset:
    """A known experiment, and the ways to train it.

    Attributes:
        experiment: its name.
        scenes: name -> scene.
    """

    experiment: str
    scenes: Mapping[str, Scene] = field(default_factory=dict)


SGD = "training.optimiser=sgd training.momentum=0"
LAST = "evaluation={by='message',every=1000} federation.checkpoint-interval-s=3600"
ONE_STEP = f"{SGD} {LAST} data.validation=0 training.epochs=1 training.batch-size=64"
LIGHT_INK = "loss.weighting=manual tasks.ink.weight=0.3"  # at full weight it upsets plain SGD
SMALL_DIGITS = (
    f"{ONE_STEP} data.test=0.75 partition.clients=30 trunk.widths=[128] trunk.activation=relu "
    f"training.lr=0.2 {LIGHT_INK} federation.rounds=60"
)
DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "digits",
        {
            "one-step": Scene(
                "30 clients with 15 digits each; a round is one step of SGD on all of them.",
                SMALL_DIGITS,
            ),
            "many-steps": Scene(
                "10 clients with 144 digits each; a round is 18 steps of SGD on 16 of them.",
                f"{SGD} {LAST} data.validation=0 training.epochs=2 trunk.widths=[128] "
                f"trunk.activation=relu training.lr=0.1 {LIGHT_INK} federation.rounds=20",
            ),
            "unlike-tasks": Scene(
                "As with one step, but every client holds one of the three tasks. The whole model "
                "is trunk and heads, each averaged over its holders.",
                f"{SMALL_DIGITS} partition.task-skew=random",
                attacks=(TASKS,),
                whole="federation.algorithm=joint federation.heads=per-task",
                with_sums=False,
            ),
        },
    ),
    "faces": Dataset(
        "cmu-faces",
        {
            "one-step": Scene(
                "20 persons with 12 portraits each; a round is one step of SGD on all of them.",
                f"{ONE_STEP} data.test=0.6 training.lr=0.05 federation.rounds=40",
            ),
            "many-steps": Scene(
                "20 persons with 22 portraits each; a round is 6 steps of SGD on 8 of them.",
                f"{SGD} {LAST} data.validation=0 data.test=0.3 training.epochs=2 "
                "training.lr=0.02 federation.rounds=20",
            ),
        },
    ),
}


def make_experiment(dataset: str, scene: str, arm: str, seed: int, more: str = "") -> Experiment:
    """Put the settings of one run together.

    Args:
        dataset: a key of `DATASETS`.
        scene: one of its scenes.
        arm: a key of `ARMS`.
        seed: of the run.
        more: overrides that come last.
    """
    known = DATASETS[dataset]
    own = known.scenes[scene]
    chosen = own.whole if arm == WHOLE else ARMS[arm].settings
    numbers = {"norm": f"{own.norm:g}", "wide": f"{own.wide:g}", "noise": f"{own.noise:g}"}
    text = f"{own.settings} {chosen.format(**numbers)} {more}"
    return load_experiment(known.experiment, text.split(), seed=seed)
