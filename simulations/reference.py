"""The experiment file's reference, from its schema: ``python -m simulations.reference``.

A test compares docs/experiments.md with this, so that the page cannot fall behind the code.
"""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.experiment import METHODS, Experiment
from common.methods import Method

PREFACE = """# The experiment file

One TOML file describes one experiment completely. `fedmtl check FILE` reports every problem of a
file and its data at once; `fedmtl check --schema` prints the JSON schema for editors. Any key can
be overridden: `--set training.lr=0.1`. This page is written by `python -m simulations.reference`.

## Data files

Source `folder` takes a folder with one file per client, named after it; source `table` takes one
file, with `client-column` for the client of each row. Clients may have different numbers of rows,
other columns besides, and columns in any order.

- **CSV**: commas, UTF-8, a header. **Parquet**: any flat table.
- **NPZ**: arrays with an entry per row. `[N]` is a column; `[N, D]` is D columns, `NAME.0` to
  `NAME.D-1`, which `columns = ["NAME.*"]` takes together; `[N, height, width]` and
  `[N, channels, height, width]` are images.
- **Empty cells** are `NaN`, nothing, or one of `?`, `NA`, `N/A`, `NaN`, `nan`, `NULL`, `null`.
  In an input they follow its `missing`; in a target they are a missing label. A client without a
  task's column does not hold the task. A row needs all target columns of a task, or none.
- **Classes** are whole numbers from 0, or the texts that `classes` lists; a binary task also takes
  true and false, and of two listed names the second is the positive one. Labels of a multilabel
  task are 0 and 1, or true and false.
- **Patterns** in `columns` never match a target, the client or split column, or a column that
  another input names.
"""


def type_name(annotation: Any) -> str:
    """Spell a field's type as a person would.

    >>> type_name(Literal["a", "b"])
    "'a', 'b'"
    >>> type_name(tuple[int, ...])
    'list of whole numbers'
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(parts[0])
    if origin is Literal:
        return ", ".join(map(repr, parts))
    if origin in (Union, UnionType):
        return " or ".join(type_name(part) for part in parts if part is not type(None))
    if origin is dict:
        return "table"
    if origin is tuple:
        return f"list of {type_name(parts[0])}".replace("number", "numbers")
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(
        annotation, str(annotation)
    )


def default_text(field: FieldInfo) -> str:
    """Spell a field's default in TOML, an empty table as nothing; one without must be given."""
    if field.default is None or field.default_factory is not None:
        return ""
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, tuple):
        return f"`{list(field.default)}`"
    return (
        f"`{field.default}`" if isinstance(field.default, (int, float)) else f'`"{field.default}"`'
    )


def table_of(model: type[BaseModel], heading: str) -> list[str]:
    """Write one table of the file as a section with a row per key."""
    lines = [f"## {heading}", "", (model.__doc__ or "").strip().splitlines()[0], ""]
    lines += ["| key | what it is | default | meaning |", "|---|---|---|---|"]
    return [*lines, *(f"| {row} |" for row in rows_of(model)), ""]


def rows_of(model: type[BaseModel]) -> Iterator[str]:
    """Write a model's keys, each as the cells of a row."""
    for name, field in model.model_fields.items():
        if nested_model(field.annotation) is not None:
            continue  # a table of its own
        cells = [type_name(field.annotation), default_text(field), field.description or ""]
        kind, default, meaning = (cell.replace("|", "\\|") for cell in cells)
        yield f"`{field.alias or name}` | {kind} | {default} | {meaning}"


def options_of(setting: str, table: Mapping[str, Method], options: str) -> list[str]:
    """Write the options of all methods of a table as one section."""
    home, _, key = setting.rpartition(".")
    kept = f"{home}.{options}"
    rows = {name: list(rows_of(method.load().Options)) for name, method in table.items()}
    none = ", ".join(f"`{name}`" for name, own in rows.items() if not own)
    but = f"; {none} {'take' if ',' in none else 'takes'} none" if none else ""
    lines = [f"## [{kept}]", "", f"By `{setting}`{but}.", ""]
    lines += [f"| {key} | key | what it is | default | meaning |", "|---|---|---|---|---|"]
    lines += [f"| `{name}` | {row} |" for name, own in rows.items() for row in own]
    return [*lines, ""]


def write_reference() -> str:
    """Write the whole page."""
    lines = [PREFACE]
    top = {n: f for n, f in Experiment.model_fields.items() if not nested_model(f.annotation)}
    lines += ["## At the top", "", "| key | what it is | default | meaning |", "|---|---|---|---|"]
    for name, field in top.items():
        lines.append(
            f"| `{name}` | {type_name(field.annotation)} | {default_text(field)} | "
            f"{field.description or ''} |"
        )
    lines.append("")
    for name, field in Experiment.model_fields.items():
        model = nested_model(field.annotation)
        if model is not None:
            many = get_origin(field.annotation) is dict
            lines += table_of(model, f"[{name}.NAME]" if many else f"[{name}]")
            for key, inner in model.model_fields.items():
                nested = nested_model(inner.annotation)
                if nested is not None:
                    lines += table_of(nested, f"[{name}.{inner.alias or key}]")
        for setting, (table, key) in METHODS.items():
            if setting.startswith(f"{name}."):
                lines += options_of(setting, table, key)
    return "\n".join(lines).rstrip() + "\n"


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """Find the model inside ``Model``, ``Model | None`` or ``dict[str, Model]``."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


if __name__ == "__main__":
    print(write_reference(), end="")
