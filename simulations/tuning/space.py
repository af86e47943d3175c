"""The space that a tuning searches: a range or a list of values for each setting.

Values are kept as text, a TOML literal each, as ``--set`` takes them.
"""

import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from simulations.variants import UNVARIED

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Number = int | float
Settings = Mapping[str, str]  # key -> TOML literal

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"(log:)?({_NUMBER})\.\.({_NUMBER})")
_ROWS = (
    "it decides the rows by which trials are judged, and their figures would not compare; tune "
    "once for each value, with --set"
)
UNTUNED = UNVARIED | {  # key or table -> why not, and a way out
    "seed": "it would be luck; --seeds N averages every trial over seeds 0 to N-1",
    "data": _ROWS,
    "partition": _ROWS,
    "privacy": "less privacy would always win; lay settings side by side: fedmtl compare --vary",
}
MOST_POINTS = 10_000  # of a grid
FORMS = "LOW..HIGH, log:LOW..HIGH or a list of values such as [A, B]"


@dataclass(frozen=True)
class Range:
    """All numbers between two: whole ones where both ends are.

    Attributes:
        low: the lowest, itself included.
        high: the highest, itself included.
        log: drawn evenly by their logarithm.
    """

    low: Number
    high: Number
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are in it."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> "BaseDistribution":
        """Say the same to Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def points(self) -> Sequence[Number]:
        """List its numbers for a grid; none where there is no end of them."""
        return range(int(self.low), int(self.high) + 1) if self.is_whole else ()


@dataclass(frozen=True)
class Choice:
    """One of a few values, a TOML literal each."""

    values: tuple[str, ...]

    def distribution(self) -> "BaseDistribution":
        """Say the same to Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def points(self) -> Sequence[str]:
        """List its values for a grid."""
        return self.values


Space = Mapping[str, Range | Choice]


def read_space(options: Sequence[str]) -> dict[str, str]:
    """Collect what ``--space`` names: ``KEY=VALUES``, or a TOML file of such keys.

    Returns:
        Key -> its values, as `parse_space` takes them.

    Raises:
        ConfigError: an option is neither, a file cannot be read, or a key stands twice.
    """
    found: dict[str, str] = {}
    for option in options:
        key, equals, text = (part.strip() for part in option.partition("="))
        own = {key: text} if equals else _read_file(Path(option))
        for key, text in own.items():
            if key in found:
                raise ConfigError(f"--space names {key} twice; give all of its values in one.")
            found[key] = text
    if not found:
        raise ConfigError("--space must name a setting to tune, as in training.lr=log:0.001..0.1.")
    return found


def parse_space(texts: Mapping[str, str]) -> Space:
    """Read each key's values.

    Raises:
        ConfigError: a line for every key that cannot be tuned, or not so.

    >>> parse_space({"training.lr": "log:0.01..1", "trunk.widths": "[[64], [64, 32]]"})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'training.lr': Range(low=0.01, high=1, log=True),
     'trunk.widths': Choice(values=('[64]', '[64, 32]'))}
    """
    space: dict[str, Range | Choice] = {}
    problems = []
    for key, text in texts.items():
        reason = next((UNTUNED[k] for k in UNTUNED if f"{key}.".startswith(f"{k}.")), "")
        if not key or reason:
            problems.append(f"--space cannot tune '{key}': {reason or 'it is no key'}.")
            continue
        try:
            space[key] = _parse(text)
        except ValueError as error:
            problems.append(f"--space: {key} must be {FORMS}, got {text}{error}.")
    if problems:
        raise ConfigError("\n".join(problems))
    return space


def grid_points(space: Space) -> Iterator[dict[str, Number | str]]:
    """Combine every value of every key with those of the others; the last key runs fastest.

    Raises:
        ConfigError: a key has a range of fractions, of which there is no end, or there are more
            than `MOST_POINTS`.
    """
    points = {key: values.points() for key, values in space.items()}
    for key, values in points.items():
        if not values:
            raise ConfigError(
                f"--sampler grid needs a list of values for {key}, got a range of fractions; write "
                f"--space {key}=[A, B, C], or take --sampler tpe"
            )
    count = math.prod(map(len, points.values()))
    if count > MOST_POINTS:
        raise ConfigError(
            f"--sampler grid takes at most {MOST_POINTS} combinations, got {count}; list fewer "
            "values, or take --sampler tpe"
        )
    for chosen in itertools.product(*points.values()):
        yield dict(zip(points, chosen, strict=True))


def as_settings(params: Mapping[str, Any]) -> dict[str, str]:
    """Write what Optuna has chosen as overrides: numbers as they are, a choice is a literal."""
    return {key: v if isinstance(v, str) else repr(v) for key, v in params.items()}


def literal(value: object) -> str:
    """Write a value of a TOML file as a literal in one line.

    >>> literal([{"widths": [64], "activation": "tanh"}, True])
    '[{widths = [64], activation = "tanh"}, true]'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_name(k)} = {literal(v)}" for k, v in value.items()) + "}"
    return repr(value) if isinstance(value, int | float) else str(value)


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _parse(text: str) -> Range | Choice:
    if match := _RANGE.fullmatch(text):
        log, low, high = bool(match[1]), *map(_number, match.group(2, 3))
        if low >= high:
            raise ValueError("; LOW must be below HIGH")
        if log and low <= 0:
            raise ValueError("; LOW must be above 0 by logarithm")
        return Range(low, high, log)
    try:
        values = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ValueError(_how_to_list(text)) from None
    if not isinstance(values, list):
        raise ValueError("; for one value, take --set")
    literals = tuple(map(literal, values))
    if len({*literals}) < max(2, len(literals)):
        raise ValueError("; a list needs two values or more, each once")
    return Choice(literals)


def _how_to_list(text: str) -> str:
    """Say how what is meant as a list is written as one.

    >>> _how_to_list("hard,mmoe"), _how_to_list("[32],[64,32]")
    ('; a list has brackets, as in ["a", "b"]', '; a list has brackets, as in [[32], [64, 32]]')
    """
    if text.startswith("[") and not re.search(r"\]\s*,\s*\[", text):
        return '; text in a list needs quotes, as in ["a", "b"]'
    if "," not in text:
        return ""
    example = "[[32], [64, 32]]" if text.startswith("[") else '["a", "b"]'
    return f"; a list has brackets, as in {example}"


def _number(text: str) -> Number:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _read_file(path: Path) -> dict[str, str]:
    """Read a file of keys; tables in it are parts of keys."""
    if not path.is_file():
        raise ConfigError(f"--space must be KEY=VALUES or a TOML file, got '{path}'.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--space: {path} cannot be read as TOML: {error}.") from error
    return dict(_flatten(content, ()))


def _flatten(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, (*above, key))
        else:
            yield ".".join((*above, key)), value if isinstance(value, str) else literal(value)
