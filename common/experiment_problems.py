"""What is wrong with an experiment, a line per key: what it must be, what it was, a way out.

The expectations are read from the schema of `common.experiment` (as JSON Schema), so that a new
setting brings its own wording, and a key that takes several types still gets one line.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

Node = Mapping[str, Any]  # a JSON Schema, or a part of one
Path = tuple[str, ...]  # keys from the top of the file down

LONGEST_VALUE = 60  # characters of a wrong value that a line shows


def describe_problems(
    error: ValidationError, content: Mapping[str, Any], schema: Node, above: Path = ()
) -> list[str]:
    """Put pydantic's errors into one line per key, in the order of the schema.

    Args:
        error: what `model_validate` raised.
        content: the tables that it was given.
        schema: the model's JSON Schema.
        above: keys above the model's own.
    """
    lines: dict[str, None] = {}  # an ordered set: the branches of a union share their line
    for problem in error.errors():
        lines[_describe(problem, schema, content, above)] = None
    return list(lines)


def suggest(word: str, known: Sequence[str]) -> str:
    """Ask whether the nearest known word was meant; empty where none is near.

    >>> suggest("ephocs", ["epochs", "lr"])
    " Did you mean 'epochs'?"
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def show(value: object) -> str:
    """Write a wrong value as TOML spells it, shortened.

    >>> show(True), show("x" * 80)
    ('true', "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'")
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 4]}...{text[-1]}"


def _describe(problem: Any, schema: Node, content: Mapping[str, Any], above: Path) -> str:
    path, node = _locate(problem["loc"], schema)
    key = ".".join((*above, *path))
    if problem["type"] == "value_error":  # raised by a validator of ours, in our words
        message = str(problem["ctx"]["error"])
        return f"{key}: {message}." if key else f"{message}."
    if problem["type"] == "extra_forbidden":
        unknown = str(problem["loc"][-1])
        return (
            f"{'.'.join((*above, *path, unknown))} is no setting."
            f"{_known_keys(path, node, unknown, schema, above)}"
        )
    if problem["type"] == "missing":
        about = f" {node['description']}" if "description" in node else ""
        return f"{key} is missing; it must be {_expectation(node, schema)}.{about}"
    value = _value_at(content, path)
    line = f"{key} must be {_expectation(node, schema)}, got {show(value)}."
    choices = _choices(node, schema)
    if isinstance(value, str) and (hint := suggest(value, choices)):
        return line + hint
    default = node.get("default")
    if default in (None, "") or isinstance(default, dict):
        return line
    return f"{line} Leave it out for the default, {show(default)}."


def _locate(loc: Sequence[int | str], schema: Node) -> tuple[Path, Node]:
    """Follow an error's location as far as it names keys of the file; unions and lists end it."""
    path: list[str] = []
    node = schema
    for step in loc:
        table = _resolve(node, schema)
        child = table.get("properties", {}).get(step) or table.get("additionalProperties")
        if not child:
            break
        path.append(str(step))
        node = child
    return tuple(path), node


def _resolve(node: Node, schema: Node) -> Node:
    """Look up a reference, through ``X | None`` too."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        node = options[0]
    if "$ref" in node:
        resolved: Node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return resolved
    return node


def _known_keys(path: Path, node: Node, unknown: str, schema: Node, above: Path) -> str:
    """Name the nearest key, wherever it is, and all keys of the table."""
    known = list(_resolve(node, schema).get("properties", {}))
    if not known:
        return " It has none."
    elsewhere = [
        f"{table}.{unknown}"
        for table, child in schema.get("properties", {}).items()
        if unknown in _resolve(child, schema).get("properties", {})
    ]
    hint = f" Did you mean '{elsewhere[0]}'?" if elsewhere else suggest(unknown, known)
    table = ".".join((*above, *path))
    where = f"Keys of [{table}]" if table else "Keys and tables of an experiment"
    return f"{hint} {where}: {', '.join(known)}."


def _value_at(content: Any, path: Path) -> object:
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _choices(node: Node, schema: Node) -> list[str]:
    """Collect the words that a setting may be."""
    node = _resolve(node, schema)
    options = [choice for part in node.get("anyOf", ()) for choice in _choices(part, schema)]
    return [*options, *node.get("enum", ()), *([node["const"]] if "const" in node else [])]


def _expectation(node: Node, schema: Node, plural: bool = False) -> str:
    """Say what a value must be."""
    node = _resolve(node, schema)
    if "anyOf" in node:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        return ", or ".join(_expectation(option, schema, plural) for option in options)
    if choices := _choices(node, schema):
        quoted = ", ".join(f"'{choice}'" for choice in choices)
        return quoted if len(choices) == 1 else f"one of {quoted}"
    return _KINDS[node["type"]](node, schema, plural)


def _number(node: Node, _: Node, plural: bool) -> str:
    kind = "whole number" if node["type"] == "integer" else "finite number"
    limits = [
        f"{words} {node[limit]:g}"
        for limit, words in (
            ("minimum", "of at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "of at most"),
            ("exclusiveMaximum", "below"),
        )
        if limit in node
    ]
    return " ".join(filter(None, [f"{kind}s" if plural else f"a {kind}", " and ".join(limits)]))


def _text(node: Node, _: Node, plural: bool) -> str:
    kind = "texts" if plural else "a text"
    return f"{kind} that matches {node['pattern']}" if "pattern" in node else kind


def _list(node: Node, schema: Node, plural: bool) -> str:
    kind = "lists" if plural else "a list"
    size = " (not empty)" if node.get("minItems") else ""
    if node.get("minItems", 0) > 1:
        size = f" ({node['minItems']} of them)"
    return f"{kind} of {_expectation(node['items'], schema, plural=True)}{size}"


def _table(node: Node, schema: Node, plural: bool) -> str:
    kind = "tables" if plural else "a table"
    if "properties" in node or node.get("additionalProperties") is True:
        return kind
    return f"{kind} with at least one named table in it"


def _boolean(node: Node, schema: Node, plural: bool) -> str:
    return "true or false"


_KINDS = {
    "integer": _number,
    "number": _number,
    "string": _text,
    "array": _list,
    "object": _table,
    "boolean": _boolean,
}
