"""Experiments on disk: find and read a TOML file, override its keys, write one back.

Errors of a file are reported all at once, a line each; `common.experiment_problems` words them.
"""

import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from common.availability import read_lines
from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_problems import describe_problems, suggest
from common.model_folder import digest_folder
from common.ready_models import reads_folder

PATHS = (
    ("data", "path"),
    ("federation", "availability"),
    ("trunk", "model"),
    ("trunk", "weights"),
)
_QUOTE_OR_BRACKET = re.compile(r"\"(?:\\.|[^\"\\])*\"|'[^']*'|[\[{]|[\]}]|\s+|.", re.DOTALL)


def known_experiments() -> dict[str, Path]:
    """Name the experiments that ship with this package, each with its file."""
    folder = Path(__file__).parent / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_experiment(
    name_or_path: str,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    data_path: str | None = None,
) -> Experiment:
    """Read an experiment, override some of its keys, and validate the whole.

    Args:
        name_or_path: a known experiment, or the path of a TOML file. In a file of the user's own
            relative paths (`PATHS`) are relative to that file's folder.
        overrides: ``key=value`` with a dotted key; the value is a TOML literal or plain text.
        seed: overrides ``seed``.
        data_path: overrides ``data.path``; relative to the working directory, as in `overrides`.

    Raises:
        ConfigError: the experiment cannot be read or is wrong; one line per problem.
    """
    known = known_experiments()
    path = known.get(name_or_path) or _existing_file(name_or_path, list(known))
    content = _read_toml(path)
    if name_or_path not in known:
        _anchor_paths(content, path.parent)
    problems = _override(content, overrides)
    _forget_digest(content, overrides)
    if seed is not None:
        _assign(content, ["seed"], seed)
    if data_path is not None:
        _assign(content, ["data", "path"], data_path)
    _anchor_paths(content, Path.cwd())
    problems += _read_availability(content)
    experiment = None
    try:
        experiment = Experiment.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += describe_problems(error, content, Experiment.model_json_schema())
    if problems or experiment is None:
        raise ConfigError("\n".join(problems))
    return _read_model(experiment)


def parse_set(text: str) -> list[str]:
    """Split Flower's ``set`` into overrides at the spaces outside quotes and brackets.

    >>> parse_set("training.lr=0.1  trunk.widths=[32, 16] name='a b'")
    ['training.lr=0.1', 'trunk.widths=[32, 16]', "name='a b'"]
    """
    return [override for override in _split_outside(text, str.isspace) if override]


def split_values(text: str) -> list[str]:
    """Split the values of one key at the commas outside quotes and brackets.

    >>> split_values("0.1,[64],[64, 64], 'a, b'")
    ['0.1', '[64]', '[64, 64]', "'a, b'"]
    """
    return [value.strip() for value in _split_outside(text, lambda token: token == ",")]


def dump_experiment(experiment: Experiment) -> str:
    """Write an experiment as TOML that loads to an equal one; what is None is left out."""
    return tomli_w.dumps(experiment.model_dump(mode="json", by_alias=True, exclude_none=True))


def json_schema() -> dict[str, Any]:
    """Describe the file as JSON Schema, which editors check and complete TOML with."""
    schema = Experiment.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _split_outside(text: str, is_separator: Callable[[str], bool]) -> list[str]:
    """Split a text where a separator stands outside quotes and brackets."""
    parts, depth = [""], 0
    for token in _QUOTE_OR_BRACKET.findall(text):
        depth += (token in "[{") - (token in "]}")
        if is_separator(token) and depth <= 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def _existing_file(name: str, known: list[str]) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"Experiment '{name}' is a folder; name the .toml file in it.")
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise ConfigError(f"There is no experiment file '{name}'.")
    raise ConfigError(
        f"There is no experiment '{name}'.{suggest(name, known)} "
        f"Known: {', '.join(known)}; or name a .toml file."
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: byte {error.start} is wrong.") from error
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).rstrip(")").partition(" (at ")
        raise ConfigError(f"{path}, {where}: {what}.") from error


def _anchor_paths(content: dict[str, Any], folder: Path) -> None:
    """Make relative paths absolute, so that the resolved file means the same anywhere."""
    for place, key in PATHS:
        table = content.get(place)
        path = table.get(key) if isinstance(table, dict) else None
        if key == "model" and not _is_folder(table, path):
            continue
        if isinstance(table, dict) and isinstance(path, str) and path:
            table[key] = str((folder.absolute() / Path(path).expanduser()).resolve())


def _is_folder(trunk: Any, model: Any) -> bool:
    """Tell a folder from a model's name, which timm looks up by itself."""
    named = isinstance(trunk, dict) and trunk.get("architecture") == "timm"
    return not named or "/" in str(model)


def _read_model(experiment: Experiment) -> Experiment:
    """Note what the folder of a ready model holds, where the file does not say.

    Raises:
        ConfigError: the folder cannot be used.
    """
    trunk = experiment.trunk
    if trunk.model_digest or not reads_folder(trunk):
        return experiment
    digest = digest_folder(trunk)
    return experiment.model_copy(
        update={"trunk": trunk.model_copy(update={"model_digest": digest})}
    )


def _read_availability(content: dict[str, Any]) -> list[str]:
    """Put a trace's lines in the place of its path; return what is wrong with the file."""
    federation = content.get("federation")
    path = federation.get("availability") if isinstance(federation, dict) else None
    if not isinstance(federation, dict) or not isinstance(path, str):
        return []
    federation["availability"] = []
    try:
        federation["availability"] = read_lines(Path(path)) if path else []
    except ConfigError as error:
        return [str(error)]
    return []


def _forget_digest(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Let other weights than the file's be hashed anew."""
    trunk = content.get("trunk")
    keys = [override.partition("=")[0].strip() for override in overrides]
    if isinstance(trunk, dict) and "trunk.weights" in keys:
        trunk.pop("weights-digest", None)


def _override(content: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Apply ``key=value`` overrides; return what is wrong with their form."""
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = key.strip().split(".")
        if not equals or not all(keys):
            problems.append(
                f"An override must be key=value, as in training.lr=0.1, got '{override}'."
            )
            continue
        try:
            _assign(content, keys, _parse_literal(text.strip()))
            if keys in (["trunk", "model"], ["trunk", "pretrained"]):  # of other files
                content["trunk"].pop("model-digest", None)
        except tomllib.TOMLDecodeError:
            problems.append(
                f"{key} must be a TOML value, got {text.strip()}. "
                'Inside brackets, text needs quotes: ["a", "b"].'
            )
    return problems


def _parse_literal(text: str) -> object:
    """Parse a TOML literal; anything else is plain text, except an unfinished list or table."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text.startswith(("[", "{")):
            raise
        return text


def _assign(content: dict[str, Any], keys: list[str], value: object) -> None:
    """Set a nested key; what stands in the way is replaced, and validation then names it."""
    *tables, last = keys
    for key in tables:
        if not isinstance(content.get(key), dict):
            content[key] = {}
        content = content[key]
    content[last] = value
