"""What there is to choose, each with a line and its paper: the table behind `fedmtl list`."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.algorithms import ALGORITHMS, MCMAHAN
from common.architectures.table import SHARINGS
from common.errors import ConfigError
from common.experiment_file import known_experiments
from common.experiment_problems import suggest
from common.methods import Method
from common.optimisers.table import OPTIMISERS
from common.schedules.table import SCHEDULES
from common.sources.registry import SOURCES
from common.strategies import STRATEGIES
from common.weighting.table import WEIGHTINGS
from simulations.tracking import TRACKERS


@dataclass(frozen=True)
class Choice:
    """One choice: what it is in a line, where it is described, and what it costs."""

    line: str
    paper: str = ""
    cost: str = ""

    @classmethod
    def of(cls, method: Method) -> "Choice":
        """Show an entry of a table of methods."""
        return cls(method.line, method.paper, method.cost)


@dataclass(frozen=True)
class Heading:
    """Choices of one kind.

    Attributes:
        setting: where to choose; the key of an experiment file, or an option.
        choices: name -> choice.
    """

    setting: str
    choices: Mapping[str, Choice]


TASK_KINDS = {
    "multiclass": Choice("one of several classes per row; cross-entropy"),
    "binary": Choice("yes or no; cross-entropy on one logit"),
    "multilabel": Choice("several yes-or-no labels per row; mean cross-entropy over the labels"),
    "regression": Choice("one or several numbers; mean squared error"),
}
METRICS = {
    "accuracy": Choice("share of right decisions; higher is better"),
    "f1": Choice("harmonic mean of precision and recall, averaged over classes; higher is better"),
    "auroc": Choice("area under the ROC curve, averaged over clients; higher is better"),
    "mse": Choice("mean squared error; lower is better"),
    "rmse": Choice("its root, in the target's unit; lower is better"),
    "mae": Choice("mean absolute error, in the target's unit; lower is better"),
    "r2": Choice("share of the target's variance that is explained; higher is better"),
}
ENGINES = {
    "loopback": Choice("clients one after another, on --workers processes; starts at once"),
    "batched": Choice("a round's clients as one stacked model; many small clients, mlp trunks"),
    "auto": Choice("batched or loopback, whichever is faster for the experiment, and says why"),
    "flower": Choice("Flower's Simulation Runtime on Ray: many cores, several GPUs, a cluster"),
}
PARTITIONS = {
    "iid": Choice("rows shuffled and dealt evenly"),
    "dirichlet": Choice(
        "class shares per client drawn with concentration alpha",
        "Hsu et al., Measuring the effects of non-identical data distribution, 2019",
    ),
    "pathological": Choice("every client holds rows of a few classes only", MCMAHAN),
    "natural": Choice("a column names the client"),
}
TASK_SKEWS = {
    "none": Choice("every client holds all tasks"),
    "rotate": Choice("client i holds the tasks from the i-th on"),
    "random": Choice("every client's tasks are a seeded draw"),
}
ARCHITECTURES = {
    "mlp": Choice("fully connected layers over all inputs"),
    "cnn": Choice("3x3 convolutions with 2x2 max pooling per image, then fully connected layers"),
    "transformer": Choice(
        "a local model of Hugging Face's transformers, of images or of text",
        "Vaswani et al., Attention is all you need, NeurIPS 2017",
    ),
    "timm": Choice("a model of timm, of images", "Wightman, PyTorch image models, 2019"),
}
NORMS = {
    "none": Choice("layers as they are"),
    "layer": Choice(
        "each row by mean and variance of its features",
        "Ba et al., Layer normalization, 2016",
    ),
    "batch": Choice(
        "each feature by mean and variance over the batch's rows",
        "Ioffe & Szegedy, Batch normalization, ICML 2015",
    ),
    "group": Choice(
        "each row by mean and variance of groups of its features",
        "Wu & He, Group normalization, ECCV 2018",
    ),
}
NORM_PARAMETERS = {
    "shared": Choice("they travel and are averaged, running statistics too"),
    "local": Choice(
        "weights, biases and running statistics stay with the client (FedBN)",
        "Li et al., FedBN: federated learning on non-IID features via local batch normalization, "
        "ICLR 2021",
    ),
    "local-statistics": Choice(
        "the running statistics of batch norm stay with the client (SiloBN)",
        "Andreux et al., Siloed federated learning for multi-centric histopathology datasets, 2020",
    ),
}
SCALINGS = {
    "none": Choice("losses as they are"),
    "initial": Choice(
        "each loss by the task's first one", "Chen et al., GradNorm, ICML 2018: the loss ratio"
    ),
    "running-mean": Choice("each loss by the task's running mean"),
    "log": Choice(
        "each loss's logarithm, whose gradient has no unit",
        "Lin et al., Dual-balancing for multi-task learning, 2023",
    ),
}


def catalogue() -> dict[str, Heading]:
    """Collect all choices, those of experiments and sources from where they are defined."""
    return {
        "experiments": Heading("EXPERIMENT", _experiments()),
        "sources": Heading(
            "data.source", {n: Choice(s.summary, s.citation) for n, s in SOURCES.items()}
        ),
        "task-kinds": Heading("tasks.NAME.kind", TASK_KINDS),
        "metrics": Heading("tasks.NAME.metric", METRICS),
        "engines": Heading("--engine", ENGINES),
        "partitions": Heading("partition.kind", PARTITIONS),
        "task-skews": Heading("partition.task-skew", TASK_SKEWS),
        "architectures": Heading("trunk.architecture", ARCHITECTURES),
        "sharings": Heading(
            "trunk.sharing", {name: Choice.of(method) for name, method in SHARINGS.items()}
        ),
        "weightings": Heading(
            "loss.weighting", {name: Choice.of(method) for name, method in WEIGHTINGS.items()}
        ),
        "scalings": Heading("loss.scaling", SCALINGS),
        "norms": Heading("trunk.norm", NORMS),
        "norm-parameters": Heading("trunk.norm-parameters", NORM_PARAMETERS),
        "optimisers": Heading(
            "training.optimiser",
            {name: Choice.of(method) for name, method in OPTIMISERS.items()},
        ),
        "schedules": Heading(
            "training.schedule",
            {name: Choice.of(method) for name, method in SCHEDULES.items()},
        ),
        "algorithms": Heading(
            "federation.algorithm",
            {
                name: Choice(m.line, m.paper, f"{m.cost}; at home stays: {m.keeps}")
                for name, m in ALGORITHMS.items()
            },
        ),
        "strategies": Heading(
            "federation.strategy", {name: Choice.of(method) for name, method in STRATEGIES.items()}
        ),
        "trackers": Heading("--track", {name: Choice(t.about) for name, t in TRACKERS.items()}),
    }


def select(headings: Mapping[str, Heading], what: str) -> dict[str, Heading]:
    """Take one heading, or all where none is named.

    Raises:
        ConfigError: there is no such heading.
    """
    if not what:
        return dict(headings)
    if what not in headings:
        raise ConfigError(
            f"There is nothing to list under '{what}'.{suggest(what, list(headings))} "
            f"Known: {', '.join(headings)}."
        )
    return {what: headings[what]}


def to_json(headings: Mapping[str, Heading]) -> dict[str, Any]:
    """Write headings and choices as plain tables."""
    return {name: asdict(heading) for name, heading in headings.items()}


def print_catalogue(headings: Mapping[str, Heading], console: Console) -> None:
    """Print headings with their choices."""
    for name, heading in headings.items():
        console.print(f"[bold]{name}[/bold]  [dim]{escape(heading.setting)}[/dim]", highlight=False)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2), highlight=False)
        table.add_column(style="cyan", no_wrap=True)
        for key, choice in heading.choices.items():
            cost = f"costs: {choice.cost}" if choice.cost else ""
            about = "".join(f"\n[dim]{escape(text)}[/dim]" for text in (cost, choice.paper) if text)
            table.add_row(key, escape(choice.line) + about)
        console.print(table)
        console.print()


def _experiments() -> dict[str, Choice]:
    """Read the description of every known experiment, without validating the rest."""
    described = {
        name: tomllib.loads(path.read_text(encoding="utf-8")).get("description", "")
        for name, path in known_experiments().items()
    }
    return {name: Choice(" ".join(text.split())) for name, text in described.items()}
