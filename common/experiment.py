"""The schema of an experiment: one TOML file describes one experiment completely.

Every table of the file is a frozen pydantic model here; unknown keys are refused. Reading files,
overrides and the wording of errors live in `common.experiment_file`. Keys are written in
kebab-case in TOML (``clients-per-round``) and in snake_case in Python (``clients_per_round``).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS
from common.availability import seal, trace_problems
from common.idle_settings import idle_settings
from common.methods import Method, method_problems, one_of
from common.privacy.problems import privacy_problems
from common.privacy.settings import Privacy
from common.schedules.rates import round_schedule
from common.schedules.table import SCHEDULES
from common.settings import Finite, Fraction, Lines, Names, Rate, Settings, Sizes
from common.strategies import STRATEGIES
from common.weighting.table import WEIGHTINGS

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

TaskKind = Literal["multiclass", "binary", "multilabel", "regression"]
InputKind = Literal["numeric", "categorical", "image"]
Metric = Literal["accuracy", "f1", "auroc", "mse", "rmse", "mae", "r2"]

Optimiser = Literal[
    "sgd",
    "adam",
    "adamw",
    "adadelta",
    "adagrad",
    "adamax",
    "asgd",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
]
STACKED_OPTIMISERS = ("sgd", "adam", "adamw")  # for many clients side by side

METRICS_OF_KIND: dict[str, tuple[Metric, ...]] = {  # the first one is the default
    "multiclass": ("accuracy", "f1"),
    "binary": ("accuracy", "f1", "auroc"),
    "multilabel": ("f1", "accuracy"),
    "regression": ("rmse", "mse", "mae", "r2"),
}


class Data(Settings):
    """Where rows come from and how every client splits its own."""

    source: str = Field(description="A source of `fedmtl list`: digits, table, folder, school, ...")
    path: str = Field("", description="File or folder with the raw data; empty for embedded data.")
    client_column: str = Field("", description="Source `table`: the column that names the client.")
    clients: Names = Field((), description="Only these clients; empty means all.")
    validation: Fraction = Field(0.15, description="Share of a client's rows kept for validation.")
    test: Fraction = Field(0.2, description="Share of a client's rows kept for the test.")
    split: Literal["random", "ordered", "column"] = Field(
        "random",
        description="random: seeded shuffle; ordered: by split-column, the last rows are the test; "
        "column: split-column says train, validation or test.",
    )
    split_column: str = Field("", description="The column for split 'ordered' or 'column'.")
    stratify: str = Field("", description="A task whose classes every random split keeps in share.")
    seed: int | None = Field(
        None,
        ge=0,
        description="Deals rows and tasks to clients and splits rows; none: the run's seed. Runs "
        "with other seeds and the same one here train and test on the same rows.",
    )
    min_rows: int = Field(2, ge=2, description="A client with fewer rows is unusable.")
    unusable: Literal["refuse", "leave-out"] = Field(
        "refuse",
        description="What to do with a client that has too few rows or no training label at all, "
        "and with a task whose labels at a client all fell outside training.",
    )
    unseen_classes: Literal["refuse", "keep"] = Field(
        "refuse",
        description="A class of a client's validation or test rows that its training rows lack: "
        "refuse the client, or keep the rows (they count as errors).",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.validation + self.test >= 1.0:
            raise ValueError(
                f"validation and test together must be below 1, got {self.validation} + "
                f"{self.test}; leave some rows for training"
            )
        if self.split != "random" and not self.split_column:
            raise ValueError(f"split '{self.split}' needs split-column, the column to split by")
        return self


class Input(Settings):
    """One named input: some columns of the client's table, or one column that holds images."""

    kind: InputKind = Field("numeric", description="What the columns hold.")
    columns: Names = Field(
        min_length=1, description="Column names; `*` and `?` match as in a shell."
    )
    exclude: Names = Field((), description="Columns the patterns match but that are no features.")
    shape: Sizes = Field((), description="Images: channels, height, width.")
    scale: Finite = Field(1.0, gt=0, description="Values are divided by this first (images: 255).")
    standardise: Literal["none", "client", "federation"] = Field(
        "none",
        description="none; by the mean and deviation of the client's own training rows; or by sums "
        "collected once from all clients' training rows.",
    )
    missing: Literal["refuse", "drop-row", "mean", "zero", "own-category"] = Field(
        "refuse", description="What an empty cell means."
    )
    categories: Names = Field(
        (),
        description="Categorical: the known values; empty collects them once from all clients, at "
        "most 100 of a column.",
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind == "image":
            if len(self.shape) != 3:
                raise ValueError("an image needs shape = [channels, height, width]")
            if self.missing not in ("refuse", "drop-row"):
                raise ValueError("missing for an image must be 'refuse' or 'drop-row'")
        elif self.shape:
            raise ValueError(f"shape is for images, this input is {self.kind}")
        if self.kind == "categorical":
            if self.standardise != "none":
                raise ValueError("standardise does not apply to a categorical input; remove it")
            if self.missing in ("mean", "zero"):
                raise ValueError("missing for a categorical input: refuse, drop-row, own-category")
        elif self.missing == "own-category":
            raise ValueError("missing = 'own-category' needs kind = 'categorical'")
        elif self.categories:
            raise ValueError("categories need kind = 'categorical'")
        return self


class Task(Settings):
    """One task: its kind, its target column, its weight in the loss, its metric, its head."""

    kind: TaskKind = Field(description="Decides loss, outputs and metrics.")
    target: str | Names = Field(
        "",
        description="Target column, or several (multilabel, regression); default: the task's name.",
    )
    classes: Annotated[int, Field(ge=2)] | Names | None = Field(
        None, description="Number of classes coded 0, 1, ..., or their names. Multiclass needs it."
    )
    weight: Finite = Field(1.0, ge=0, description="Needs loss.weighting = 'manual'.")
    metric: Metric | None = Field(None, description="Default: the first that fits the kind.")
    transform: Literal["none", "log1p"] = Field(
        "none", description="Regression: log1p predicts, and measures, log(1 + target)."
    )
    standardise: Literal["none", "client"] = Field(
        "none",
        description="Regression: train on targets standardised by the client's own training rows; "
        "metrics stay in the target's unit.",
    )
    hidden: Sizes = Field((), description="Hidden layers of the head; empty is a linear head.")
    dropout: Fraction = Field(
        0.0,
        description="Rate of what each layer of the head reads: the features, then hidden layers.",
    )
    init: Literal["random", "zero"] = Field(
        "random",
        description="What the head's last layer starts from; zero spares a linear model the noise "
        "of a random start, which few or noisy steps do not wash out.",
    )
    weight_decay: Rate | None = Field(
        None, description="For this task's own parameters; default: training.weight-decay."
    )
    l1: Rate | None = Field(
        None, description="For this task's own parameters; default: training.l1."
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.metric is not None and self.metric not in METRICS_OF_KIND[self.kind]:
            known = ", ".join(METRICS_OF_KIND[self.kind])
            raise ValueError(
                f"metric of a {self.kind} task must be one of {known}, got '{self.metric}'"
            )
        if self.kind == "multiclass" and self.classes is None:
            raise ValueError("a multiclass task needs classes: their number, or a list of names")
        if self.kind == "binary" and self.class_count not in (None, 2):
            raise ValueError(
                f"a binary task has two classes, got {self.class_count}; use multiclass"
            )
        if self.kind in ("multilabel", "regression") and self.classes is not None:
            raise ValueError(f"classes do not apply to a {self.kind} task; remove them")
        if self.kind in ("multiclass", "binary") and not isinstance(self.target, str):
            raise ValueError(f"a {self.kind} task has one target column, got a list")
        if self.kind == "multilabel" and isinstance(self.target, str):
            raise ValueError("a multilabel task needs target = [one column per label]")
        if self.kind != "regression" and (self.transform != "none" or self.standardise != "none"):
            raise ValueError("transform and standardise are for regression targets; remove them")
        return self

    @property
    def class_count(self) -> int | None:
        """Number of classes, or None where the kind has none or they are plain 0 and 1."""
        if isinstance(self.classes, tuple):
            return len(self.classes)
        return self.classes

    @property
    def metric_name(self) -> Metric:
        """The chosen metric, or the kind's default."""
        return self.metric or METRICS_OF_KIND[self.kind][0]


class Trunk(Settings):
    """The shared part of the model."""

    architecture: Literal["mlp", "cnn"] = Field(
        "mlp", description="mlp: flatten all inputs; cnn: convolutions over every image input."
    )
    widths: Sizes = Field(
        (64, 64),
        description="Fully connected layers; empty hands the inputs straight to the heads.",
    )
    channels: Sizes = Field(
        (16, 32), description="CNN: 3x3 convolutions, each followed by 2x2 max."
    )
    activation: Literal["relu", "gelu", "tanh", "none"] = Field(
        "relu", description="After every layer; none makes the trunk linear."
    )
    sharing: Annotated[str, one_of(SHARINGS)[0]] = Field(
        "hard",
        description="How tasks share the trunk; `fedmtl list sharings` explains each.",
        json_schema_extra=one_of(SHARINGS)[1],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="What the sharing architecture can be told; see below."
    )
    task_parts: Literal["shared", "home"] | None = Field(
        None,
        description="The trunk's parts that belong to one task. shared: they travel, averaged over "
        "the clients that hold the task; home: they stay, as heads do, which is the default where "
        "the architecture allows both.",
    )
    norm: Literal["none", "layer", "batch", "group"] = Field(
        "none",
        description="After every layer and convolution. layer: each row over its features; group: "
        "over groups of them; batch: each feature over the batch's rows. A convolution's features "
        "are its channels, at all places together.",
    )
    norm_groups: int = Field(
        8, ge=1, description="Norm 'group': number of groups, a divisor of widths and channels."
    )
    norm_parameters: Literal["shared", "local", "local-statistics"] = Field(
        "shared",
        description="shared: they travel, running statistics too; local: all stay with the client "
        "(FedBN); local-statistics: of batch norm the running statistics stay (SiloBN).",
    )
    dropout: Fraction = Field(0.0, description="Rate after every fully connected layer.")
    weight_decay: Rate | None = Field(
        None, description="For what all tasks share; default: training.weight-decay."
    )
    l1: Rate | None = Field(None, description="For what all tasks share; default: training.l1.")

    @model_validator(mode="after")
    def _has_whole_groups(self) -> Self:
        if self.norm != "group":
            return self
        convolutions = self.channels if self.architecture == "cnn" else ()
        groups = self.norm_groups
        for size in (*self.widths, *convolutions):
            if size % groups:
                raise ValueError(
                    f"norm-groups must divide widths and channels, got {groups} for {size}; change "
                    "one of them"
                )
        for size in self.widths:
            if size < 3 * groups:
                raise ValueError(
                    f"norm-groups must leave groups of three features or more of each of widths, "
                    f"got {groups} for {size}: one feature normalised is 0, two are -1 and 1; "
                    "change one of them"
                )
        return self

    @property
    def has_layers(self) -> bool:
        """Whether there is anything to share; a perceptron of no width is its input."""
        return bool(self.widths) or (self.architecture == "cnn" and bool(self.channels))


class Loss(Settings):
    """How the task losses become one: ``L = sum_t w_t * L_t`` over labelled rows."""

    weighting: Annotated[str, one_of(WEIGHTINGS)[0]] = Field(
        "equal",
        description="How w_t comes about; `fedmtl list weightings` explains each.",
        json_schema_extra=one_of(WEIGHTINGS)[1],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="What the weighting can be told; see below."
    )
    scaling: Literal["none", "initial", "running-mean", "log"] = Field(
        "none",
        description="Before weighting, every loss is taken as it is, divided by the task's first "
        "loss or by its running mean, or its logarithm is taken.",
    )
    scope: Literal["global", "local"] = Field(
        "global",
        description="Who owns what scaling and weighting remember: global, the server averages it "
        "every round and all clients start from the same; local, each client keeps its own.",
    )
    record: Literal["weights", "gradients"] = Field(
        "weights",
        description="weights: each round's mean weights, in the run folder and the report; "
        "gradients: the norms of the tasks' gradients on the trunk too, at a backward pass per "
        "task and step.",
    )


class Training(Settings):
    """What a client does with a trunk it received."""

    epochs: int = Field(1, ge=1, description="Passes over the client's training rows per round.")
    batch_size: int = Field(16, ge=1, description="Rows per step; the last batch may be smaller.")
    optimiser: Optimiser = Field(
        "sgd",
        description="Its state lives for one round. Others than sgd, adam and adamw are those of "
        "torch.optim, with its defaults but for lr; clients train one by one, on engine loopback.",
    )
    lr: Finite = Field(0.05, gt=0, description="Learning rate.")
    schedule: Annotated[str, one_of(SCHEDULES)[0]] = Field(
        "constant",
        description="How lr changes from round to round; `fedmtl list schedules` explains each.",
        json_schema_extra=one_of(SCHEDULES)[1],
    )
    schedule_options: dict[str, Any] = Field(
        default_factory=dict, description="What the schedule can be told; see below."
    )
    step_schedule: Annotated[str, one_of(SCHEDULES)[0]] = Field(
        "constant",
        description="How lr changes from step to step, in each stretch of a client's local "
        "training anew: its epochs of a round, or what an algorithm makes of them. The factors of "
        "both schedules are multiplied.",
        json_schema_extra=one_of(SCHEDULES)[1],
    )
    step_schedule_options: dict[str, Any] = Field(
        default_factory=dict, description="What the schedule over steps can be told; see below."
    )
    clip_norm: Finite | None = Field(
        None,
        gt=0,
        description="No step's gradient is longer, over all parameters that step; default: any "
        "length. What regularisation and the algorithm add is added after. Under example-level "
        "privacy it is the noisy gradient's.",
    )
    momentum: Finite = Field(0.0, ge=0, lt=1, description="SGD only.")
    weight_decay: Rate = Field(0.0, description="adamw: decoupled; else an L2 term.")
    l1: Rate = Field(0.0, description="An L1 term: l1 * sign(w) is added to the gradient.")
    balance: Literal["tasks", "none"] = Field(
        "tasks", description="tasks: every batch holds each task's labelled rows in equal share."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, mps, cuda or cuda:N; auto takes a GPU where there is one.",
    )
    threads: int = Field(1, ge=1, description="CPU threads of one worker; small models want one.")
    compile: bool = Field(
        False,
        description="Compile the training step with torch.compile, which takes seconds to minutes "
        "in every process and has cost more than it gained on CPUs; the log tells its time.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.momentum and self.optimiser != "sgd":
            raise ValueError(f"momentum is for optimiser 'sgd', not '{self.optimiser}'; remove it")
        return self


class Federation(Settings):
    """Rounds, who takes part, and how the server combines what it gets."""

    rounds: int = Field(20, ge=1, description="Rounds; a resumed run may be given more.")
    clients_per_round: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="How many are drawn each round, by the seed."
    )
    sampling: Literal["uniform", "by-size", "poisson"] = Field(
        "uniform",
        description="uniform: every client is as likely to be drawn; by-size: in proportion to its "
        "training rows; poisson: each by itself, so that clients-per-round are expected.",
    )
    availability: Lines = Field(
        (),
        description="Simulated presence: a CSV file, or its lines, with client, from-round, "
        "to-round, and delay-s if wanted; clients without a line are always there.",
    )
    over_selection: Finite = Field(
        0.0,
        ge=0,
        description="Ask so many more than clients-per-round, as a share of it; the round closes "
        "when clients-per-round usable replies are there.",
    )
    min_clients: int = Field(1, ge=1, description="Wait until so many clients are connected.")
    algorithm: Annotated[str, one_of(ALGORITHMS)[0]] = Field(
        "joint",
        description="What a client does with trunk and heads; `fedmtl list algorithms` explains "
        "each.",
        json_schema_extra=one_of(ALGORITHMS)[1],
    )
    algorithm_options: dict[str, Any] = Field(
        default_factory=dict, description="What the algorithm can be told; see below."
    )
    heads: Literal["local", "per-task"] = Field(
        "local",
        description="local: every client keeps its own; per-task: they travel, and each task's "
        "head is averaged over the clients that hold the task.",
    )
    strategy: Annotated[str, one_of(STRATEGIES)[0]] = Field(
        "fedavg",
        description="How trunks become the next trunk; `fedmtl list strategies` explains each.",
        json_schema_extra=one_of(STRATEGIES)[1],
    )
    strategy_options: dict[str, Any] = Field(
        default_factory=dict, description="What the strategy can be told; see below."
    )
    weight_by: Literal["examples", "uniform", "labelled"] = Field(
        "examples",
        description="A client's weight in the mean. examples: its training rows; uniform: 1; "
        "labelled: its labelled training rows, summed over tasks, and in a task's own parts those "
        "of the task.",
    )
    affinity_every: int = Field(
        10,
        ge=0,
        description="How alike clients' and tasks' updates are is measured in round 1 and every "
        "n-th, for results.json and the report; 0 never does.",
    )
    round_timeout_s: Finite = Field(
        3600.0,
        gt=0,
        description="Seconds to wait for a round's replies; then without the rest. Simulated "
        "seconds where availability has delays.",
    )
    least_replies: Finite = Field(
        0.0,
        ge=0,
        le=1,
        description="A round with fewer usable replies, as a share of the clients asked (under "
        "over-selection, of clients-per-round), is dealt with as too-few says.",
    )
    too_few: Literal["use", "skip", "repeat"] = Field(
        "use",
        description="use: what is there; skip: the trunk stays as it was; repeat: newly drawn "
        "clients are asked, from the same trunk.",
    )
    most_repeats: int = Field(2, ge=1, description="too-few 'repeat': then the round is skipped.")
    checkpoint_interval_s: Finite = Field(
        0.25,
        ge=0,
        description="A simulation's rounds that follow faster share a checkpoint; 0 writes one "
        "after every round. A resumed run repeats what came after the last one, exactly.",
    )


class Evaluation(Settings):
    """When clients evaluate, what, and when the run stops early."""

    by: Literal["train-reply", "message"] = Field(
        "train-reply",
        description="train-reply: a round's clients evaluate the trunk they received, on the same "
        "reply; message: all clients evaluate the new trunk, one more message each.",
    )
    model: Literal["shared", "personal"] = Field(
        "shared",
        description="shared: the received trunk with the client's own heads; personal: both after "
        "the client's local epochs on that trunk.",
    )
    every: int = Field(1, ge=1, description="Evaluate in every n-th round; the last one always.")
    patience: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without a better validation loss."
    )


PartitionKind = Literal["iid", "dirichlet", "pathological", "natural"]


class Partition(Settings):
    """Simulation only: how one table becomes many clients, and who holds which tasks."""

    kind: PartitionKind = Field("iid", description="How rows are dealt out.")
    clients: int = Field(10, ge=1, description="Number of clients; `natural` takes its own.")
    by: str = Field("", description="Column: class for dirichlet and pathological, id for natural.")
    alpha: Finite = Field(0.5, gt=0, description="dirichlet: small is unlike, large is alike.")
    classes_per_client: int = Field(2, ge=1, description="pathological: classes a client sees.")
    task_skew: Literal["none", "rotate", "random"] = Field(
        "none",
        description="none: every client holds all tasks; rotate: client i holds the "
        "tasks-per-client tasks from the i-th on; random: a seeded draw.",
    )
    tasks_per_client: int = Field(1, ge=1, description="For task-skew rotate or random.")

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind != "iid" and not self.by:
            raise ValueError(f"partition kind '{self.kind}' needs by, the column to partition by")
        return self


# Settings that name a method -> its table, and the key beside it that holds the method's options.
METHODS: dict[str, tuple[Mapping[str, Method], str]] = {
    "trunk.sharing": (SHARINGS, "options"),
    "loss.weighting": (WEIGHTINGS, "options"),
    "training.schedule": (SCHEDULES, "schedule-options"),
    "training.step-schedule": (SCHEDULES, "step-schedule-options"),
    "federation.algorithm": (ALGORITHMS, "algorithm-options"),
    "federation.strategy": (STRATEGIES, "strategy-options"),
}


class Experiment(Settings):
    """One experiment; see the module's docstring."""

    name: str = Field(
        pattern=rf"^{NAME_PATTERN.pattern}$",
        description="Names run folders; letters, digits, . _ -",
    )
    description: str = Field("", description="For people.")
    seed: int = Field(0, ge=0, description="All randomness derives from it.")
    data: Data
    inputs: dict[str, Input] = Field(min_length=1)
    tasks: dict[str, Task] = Field(min_length=1)
    trunk: Trunk = Trunk()
    loss: Loss = Loss()
    training: Training = Training()
    federation: Federation = Federation()
    evaluation: Evaluation = Evaluation()
    privacy: Privacy = Privacy()
    partition: Partition | None = None

    @field_validator("inputs", "tasks")
    @classmethod
    def _plain_names(cls, tables: dict[str, Any]) -> dict[str, Any]:
        bad = [name for name in tables if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)]
        if bad:
            raise ValueError(f"names are letters, digits, - and _, got {', '.join(map(repr, bad))}")
        return tables

    @model_validator(mode="after")
    def _means_what_it_says(self) -> Self:
        traces = trace_problems(self.federation.availability)
        problems = [*self._leaks(), *idle_settings(self), *privacy_problems(self), *traces]
        for setting, (table, key) in METHODS.items():
            place, name = setting.replace("-", "_").split(".")
            settings = getattr(self, place)
            options, chosen = getattr(settings, key.replace("-", "_")), getattr(settings, name)
            problems += method_problems(table, setting, chosen, options, self, key)
        if problems:
            raise ValueError(".\n".join(problems))
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data.stratify and self.data.stratify not in self.tasks:
            raise ValueError(
                f"data.stratify must name a task ({', '.join(self.tasks)}), "
                f"got '{self.data.stratify}'"
            )
        if self.data.stratify and self.tasks[self.data.stratify].kind not in (
            "multiclass",
            "binary",
        ):
            raise ValueError("data.stratify must name a multiclass or binary task")
        if self.trunk.architecture == "cnn" and "image" not in {
            i.kind for i in self.inputs.values()
        }:
            raise ValueError("trunk.architecture 'cnn' needs an input of kind 'image'; use 'mlp'")
        skewed = self.partition is not None and self.partition.task_skew != "none"
        if self.partition and skewed and self.partition.tasks_per_client > len(self.tasks):
            raise ValueError(
                f"partition.tasks-per-client must be at most {len(self.tasks)}, the number of "
                f"tasks, got {self.partition.tasks_per_client}"
            )
        return self

    def _leaks(self) -> Iterator[str]:
        """Name inputs that list a target; a pattern never matches one, a name stands for itself."""
        predicted = {column: task for task in self.tasks for column in self.targets(task)}
        for name, settings in self.inputs.items():
            for column in settings.columns:
                if column in predicted:
                    yield (
                        f"inputs.{name}.columns must not name a target, got '{column}', which "
                        f"tasks.{predicted[column]} predicts; remove it from the input"
                    )

    def task_weights(self) -> dict[str, float]:
        """The weight w_t of every task in the loss, before any round."""
        if self.loss.weighting == "manual":
            return {name: task.weight for name, task in self.tasks.items()}
        return dict.fromkeys(self.tasks, 1.0)

    def targets(self, task: str) -> tuple[str, ...]:
        """The target columns of one task."""
        target = self.tasks[task].target or task
        return (target,) if isinstance(target, str) else target

    @property
    def data_seed(self) -> int:
        """The seed that says which client has which rows and tasks, and which rows are its test."""
        return self.seed if self.data.seed is None else self.data.seed

    def for_clients(self) -> str:
        """Write as JSON what clients are sent: all but when which client is there."""
        sealed = {"availability": seal(self.federation.availability)}
        federation = self.federation.model_copy(update=sealed)
        return self.model_copy(update={"federation": federation}).model_dump_json(by_alias=True)

    def fingerprint(self) -> str:
        """Hash what a result depends on; not the description, paths, device, or how many rounds.

        Rounds count where a privacy budget is shared out over them, or a schedule ends with them.
        Two runs with one fingerprint (and the same data) pass through the same trunks.
        """
        content = self.model_dump(mode="json")
        del content["description"], content["data"]["path"], content["federation"]["rounds"]
        del content["training"]["device"], content["federation"]["affinity_every"]
        if self.data.seed is None:  # checkpoints of versions without it go on
            del content["data"]["seed"]
        del content["federation"]["checkpoint_interval_s"]
        ends = round_schedule(self.training).ENDS
        if ends or any(level and level.noise_multiplier is None for level in self.privacy.levels):
            # Rates, or noise, are worked out for them.
            content["federation"]["rounds"] = self.federation.rounds
        content["federation"]["availability"] = seal(self.federation.availability)
        if not self.federation.availability:  # its delays would make the deadline part of a result
            del content["federation"]["round_timeout_s"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
