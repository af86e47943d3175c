"""Settings to compare: the grid that `--vary KEY=V1,V2` spans, checked before anything trains."""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError, FedMTLError
from common.experiment import Experiment
from common.experiment_file import load_experiment, split_values
from simulations.check import check_clients
from simulations.compare import require_rows_in_memory, require_test_rows
from simulations.gains import YARDSTICK
from simulations.simulate import check_options, choose_engine

Settings = Mapping[str, str]  # varied key -> value, as it was typed

ROW_TABLES = ("data", "inputs", "partition")  # decide rows, those of the test included
FREE_OF_TASK = {"weight": 1.0, "hidden": (), "standardise": "none"}  # not what a task measures
LONGEST_FOLDER = 80
_ONE_DATA_SET = "figures on different data fit into no one table; compare one data set at a time"
UNVARIED = {  # key -> why not, and a way out
    "seed": "--seeds N repeats every variant with seeds 0 to N-1",
    "name": "it changes no result; remove it",
    "description": "it changes no result; remove it",
    "data.path": f"{_ONE_DATA_SET}, with --data",
    "data.source": f"{_ONE_DATA_SET}, with an experiment each",
}


@dataclass(frozen=True)
class Variant:
    """One setting of the federation.

    Attributes:
        settings: what it overrides.
        experiment: the resolved experiment.
        engine: what it runs on.
        folder: name of its run folders.
    """

    settings: Settings
    experiment: Experiment
    engine: str
    folder: str

    @property
    def name(self) -> str:
        """Its settings, as in ``training.lr=0.1, trunk.widths=[64, 64]``."""
        return describe(self.settings)

    @property
    def about_rows(self) -> dict[str, str]:
        """Those of its settings that decide the rows."""
        return {k: v for k, v in self.settings.items() if k.split(".")[0] in ROW_TABLES}

    @property
    def yardstick(self) -> str:
        """Name of the single-task training on its rows."""
        return ", ".join([YARDSTICK, *filter(None, [describe(self.about_rows)])])


@dataclass(frozen=True)
class Plan:
    """What a comparison of variants trains.

    Attributes:
        experiment: without the varied settings.
        axes: varied key -> its values, as they were typed.
        variants: all combinations of the values.
        yardsticks: name -> experiment of each single-task training; empty to have no Delta-m.
    """

    experiment: Experiment
    axes: Mapping[str, Sequence[str]]
    variants: Sequence[Variant]
    yardsticks: Mapping[str, Experiment]


def plan_variants(
    name_or_path: str,
    options: Sequence[str],
    overrides: Sequence[str] = (),
    data_path: str | None = None,
    *,
    with_yardstick: bool = True,
) -> Plan:
    """Read an experiment in all its variants, and check every one of them and its data.

    Single-task training has the experiment's own settings, not those of a variant, so that Delta-m
    of all variants is relative to the same figures. Only where a varied key belongs to [data],
    [inputs] or [partition], and so decides the rows, is it trained anew for each such setting.

    Args:
        name_or_path: a known experiment, or the path of a TOML file.
        options: ``key=value,value,...``, one for each key.
        overrides: ``key=value``, for all variants.
        data_path: overrides ``data.path``.
        with_yardstick: train single tasks, which Delta-m needs.

    Raises:
        ConfigError: an option, the experiment, or a variant or its data is wrong; a line for every
            problem, which names the variant.
    """

    def read(settings: Settings) -> Experiment:
        own = [f"{key}={value}" for key, value in settings.items()]
        return load_experiment(name_or_path, [*overrides, *own], data_path=data_path)

    axes = parse_axes(options)
    experiment = read({})
    variants: list[Variant] = []
    yardsticks: dict[str, Experiment] = {}
    problems: list[str] = []
    for settings in grid(axes):
        try:
            folder = name_folder(describe(settings), {v.folder for v in variants})
            variant = check_variant(settings, read(settings), experiment, folder)
            variants.append(variant)
            if with_yardstick and variant.yardstick not in yardsticks:
                yardsticks[variant.yardstick] = read(variant.about_rows)
        except FedMTLError as error:
            problems += [f"{describe(settings)}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    refuse_twins(variants)
    return Plan(experiment, axes, variants, yardsticks)


def parse_axes(options: Sequence[str]) -> dict[str, list[str]]:
    """Split each ``key=value,value,...`` into a key and its values.

    Raises:
        ConfigError: a line for every option that is none.

    >>> parse_axes(["training.lr=0.1,0.01", "trunk.widths=[64],[64, 64]"])
    {'training.lr': ['0.1', '0.01'], 'trunk.widths': ['[64]', '[64, 64]']}
    """
    axes: dict[str, list[str]] = {}
    problems = []
    for option in options:
        key, _, text = (part.strip() for part in option.partition("="))
        values = split_values(text)
        if not key or not all(values):
            problems.append(
                "--vary must be KEY=VALUE,VALUE,..., as in training.lr=0.1,0.01, got "
                f"'{option}'; write a text without characters as ''."
            )
        elif key in axes:
            problems.append(f"--vary names {key} twice; give all of its values in one --vary.")
        elif reason := next((UNVARIED[k] for k in UNVARIED if f"{k}.".startswith(f"{key}.")), ""):
            problems.append(f"--vary cannot vary {key}: {reason}.")
        axes[key] = values
    if problems:
        raise ConfigError("\n".join(problems))
    return axes


def grid(axes: Mapping[str, Sequence[str]]) -> Iterator[Settings]:
    """Combine every value of every key with those of the others; the last key runs fastest.

    >>> [describe(settings) for settings in grid({"a": ["1", "2"], "b": ["x"]})]
    ['a=1, b=x', 'a=2, b=x']
    """
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def describe(settings: Settings) -> str:
    """Write settings in one line."""
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def check_variant(
    settings: Settings, experiment: Experiment, base: Experiment, folder: str
) -> Variant:
    """Make a variant of what can run and can be compared with the other variants of `base`.

    Raises:
        FedMTLError: it cannot; a line for every problem.
    """
    require_test_rows(experiment)
    require_rows_in_memory(experiment)
    if measures(experiment) != measures(base):
        raise ConfigError(
            "tasks must be the same in all variants, whose figures stand in one column; of a task, "
            f"vary {', '.join(FREE_OF_TASK)}, and compare other tasks with a command of their own."
        )
    check_clients(experiment)
    engine, _ = choose_engine(experiment)
    check_options(experiment, engine, workers=1, profile=False)
    return Variant(settings, experiment, engine, folder)


def measures(experiment: Experiment) -> dict[str, Any]:
    """Tell what the figures of every task mean: all of its settings but how it is learned."""
    return {name: task.model_copy(update=FREE_OF_TASK) for name, task in experiment.tasks.items()}


def refuse_twins(variants: Sequence[Variant]) -> None:
    """Refuse to train the same settings twice.

    Raises:
        ConfigError: names the first two that are the same.
    """
    for one, other in itertools.combinations(variants, 2):
        if one.experiment == other.experiment:
            raise ConfigError(
                f"--vary: '{one.name}' and '{other.name}' are the same settings; remove one."
            )


def name_folder(name: str, taken: Collection[str]) -> str:
    """Name a variant's run folder after it, in characters that every file system takes.

    >>> name_folder("trunk.widths=[64, 64]", {}), name_folder("a=B c", {"a=b_c"})
    ('trunk.widths=64_64', 'a=B_c-2')
    """
    plain = re.sub(r"[^A-Za-z0-9.=-]+", "_", name.replace("=[", "="))[:LONGEST_FOLDER].strip("_.")
    used = {folder.lower() for folder in taken}  # some file systems take B and b for the same
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    return next(
        folder for folder in itertools.chain([plain], numbered) if folder.lower() not in used
    )
