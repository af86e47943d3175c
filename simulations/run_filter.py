"""Which runs to list, and in what order: ``--where KEY=VALUE`` and ``--sort KEY``."""

import operator
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from common.experiment_problems import suggest
from simulations.charts import is_figure
from simulations.formats import LOWER_IS_BETTER
from simulations.run_list import RunRow

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*([\w.-]+)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*", re.DOTALL)
COLUMNS: dict[str, Callable[[RunRow], Any]] = {
    "name": lambda row: row.name,
    "experiment": lambda row: row.experiment,
    "state": lambda row: row.state,
    "rounds": lambda row: row.round,
    "seed": lambda row: row.seed,
    "seconds": lambda row: row.seconds,
    "epsilon": lambda row: max((e for e in row.epsilon.values() if e is not None), default=None),
    "when": lambda row: -row.when.timestamp(),  # the newest first
}
Settings = dict[str, Any]  # dotted key -> value


@dataclass(frozen=True)
class Condition:
    """A setting, how it is compared, and with what.

    Attributes:
        key: dotted.
        sign: a key of `COMPARISONS`.
        value: a TOML value, or plain text.
    """

    key: str
    sign: str
    value: Any

    def holds(self, settings: Settings) -> bool:
        """Tell whether an experiment fits; one without the setting never does."""
        if self.key not in settings:
            return False
        found = settings[self.key]
        if self.sign in ("=", "!="):
            return COMPARISONS[self.sign](_comparable(found), _comparable(self.value))
        return _is_number(found) and COMPARISONS[self.sign](found, self.value)


def parse_condition(text: str) -> Condition:
    """Read ``key=value``, or one of <, >, <=, >=, != in the place of =.

    Raises:
        ConfigError: it is none, or orders what is no number.

    >>> parse_condition("training.lr<0.1")
    Condition(key='training.lr', sign='<', value=0.1)
    >>> parse_condition("loss.weighting=uncertainty").value
    'uncertainty'
    """
    found = _CONDITION.fullmatch(text)
    if not found or not found[3]:
        raise ConfigError(
            f"--where must be KEY=VALUE, as in training.lr=0.1, got '{text}'; <, >, <=, >= and != "
            "go too"
        )
    key, sign, value = found[1], found[2], _parse(found[3])
    if sign not in ("=", "!=") and not _is_number(value):
        raise ConfigError(
            f"--where {key}{sign} must be followed by a number, got '{found[3]}'; only = and != "
            "compare text"
        )
    return Condition(key, sign, value)


def select_runs(rows: Sequence[RunRow], conditions: Sequence[Condition]) -> list[RunRow]:
    """Keep the runs that fit all conditions.

    Raises:
        ConfigError: no run has such a setting.
    """
    known = {key for row in rows for key in row.settings}
    for condition in conditions:
        if rows and condition.key not in known:
            raise ConfigError(f"--where must name a setting of a run, {_unknown(condition, known)}")
    return [row for row in rows if all(c.holds(row.settings) for c in conditions)]


def sort_runs(rows: Sequence[RunRow], key: str, *, reverse: bool = False) -> list[RunRow]:
    """Order runs: a task's figures from the best down, ``when`` from the newest, the rest upwards.

    Runs without what is asked for come last, whatever the direction.

    Args:
        rows: the runs.
        key: a key of `COLUMNS`, a task, or a dotted setting.
        reverse: the other way round.

    Raises:
        ConfigError: no run has such a thing.
    """
    take = _sorted_by(rows, key)
    ordered = sorted(rows, key=lambda row: row.name)
    with_it = [row for row in ordered if take(row) is not None]
    try:
        with_it.sort(key=take, reverse=reverse)
    except TypeError:  # such as a number here, "auto" there
        with_it.sort(key=lambda row: str(take(row)), reverse=reverse)
    return with_it + [row for row in ordered if take(row) is None]


def _sorted_by(rows: Sequence[RunRow], key: str) -> Callable[[RunRow], Any]:
    if key in COLUMNS:
        return COLUMNS[key]
    tasks = {task for row in rows for task in row.figures}
    if key in tasks:
        return lambda row: _from_the_best(row, key)
    settings = {name for row in rows for name in row.settings}
    if rows and key not in settings:
        known = [*COLUMNS, *tasks, *settings]
        raise ConfigError(
            f"--sort must be one of {', '.join(COLUMNS)}, a task or a setting, got '{key}'."
            f"{suggest(key, known)}"
        )
    return lambda row: row.settings.get(key)


def _from_the_best(row: RunRow, task: str) -> float | None:
    figure = row.figures.get(task)
    if not is_figure(figure):
        return None
    return figure if row.metrics[task] in LOWER_IS_BETTER else -figure


def _unknown(condition: Condition, known: set[str]) -> str:
    below = sorted(key for key in known if key.startswith(f"{condition.key}."))
    if below:
        return f"got the table '{condition.key}'; name a setting in it, such as {below[0]}"
    return f"got '{condition.key}', which none has.{suggest(condition.key, sorted(known))}"


def _parse(text: str) -> Any:
    """Read a TOML value; anything else is plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _comparable(value: Any) -> Any:
    """Keep true apart from 1, which Python takes for the same."""
    return (value,) if isinstance(value, bool) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
