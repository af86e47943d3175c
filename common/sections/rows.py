"""Where rows come from and who has them: [data], [inputs], [tasks], [partition]."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.settings import Finite, Fraction, Names, Rate, Settings, Sizes

TaskKind = Literal["multiclass", "binary", "multilabel", "regression"]
InputKind = Literal["numeric", "categorical", "image", "text"]
WITH_CLASSES = ("multiclass", "binary")  # kinds of task whose rows have one class each
Metric = Literal["accuracy", "f1", "auroc", "mse", "rmse", "mae", "r2"]

METRICS_OF_KIND: dict[str, tuple[Metric, ...]] = {  # the first one is the default
    "multiclass": ("accuracy", "f1"),
    "binary": ("accuracy", "f1", "auroc"),
    "multilabel": ("f1", "accuracy"),
    "regression": ("rmse", "mse", "mae", "r2"),
}
PartitionKind = Literal["iid", "dirichlet", "pathological", "natural"]


class Data(Settings):
    """Where rows come from and how every client splits its own."""

    source: str = Field(description="A source of `fedmtl list`: digits, table, folder, school, ...")
    path: str = Field("", description="File or folder with the raw data; empty for embedded data.")
    client_column: str = Field("", description="Source `table`: the column that names the client.")
    clients: Names = Field((), description="Only these clients; empty means all.")
    memory: Literal["ram", "disk"] = Field(
        "ram",
        description="ram: a client's rows are read whole; disk: read in pieces, encoded into a "
        "mapped file, and gathered from it batch by batch, for rows that do not fit in memory "
        "(sources `table` and `folder`, no [partition]). Results are the same.",
    )
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
    """One named input: some columns of the client's table, or one column of images or of texts."""

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
        "refuse", description="What an empty cell means; zero: 0, or a text without words."
    )
    categories: Names = Field(
        (),
        description="Categorical: the known values; empty collects them once from all clients, at "
        "most 100 of a column.",
    )
    max_length: int = Field(
        128,
        ge=1,
        description="Text: tokens of a row, by the tokenizer of trunk.model; what is longer is "
        "cut.",
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
        if self.kind == "text":
            if self.standardise != "none":
                raise ValueError("standardise does not apply to a text; remove it")
            if self.missing == "mean":
                raise ValueError("missing for a text must be 'refuse', 'drop-row' or 'zero'")
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
        if self.kind in WITH_CLASSES and not isinstance(self.target, str):
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
