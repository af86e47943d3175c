"""Texts from what is installed: ``python -m simulations.benchmarks.docstrings FOLDER``.

No set of labelled texts comes with this project, and none is downloaded. Every installed package
has some: the first sentences of its docstrings, which say what a piece of code is for. Each
package is a client, with a style of its own. Of a sentence one can ask

- ``kind``: does it stand at a class, a function or a method?
- ``returns``: does that function or method return a value? Classes have no label of it.

Sources are parsed, not imported. A sentence that a package has twice counts once; which ones are
taken, where there are more than ``--rows``, their hash decides.
"""

import argparse
import ast
import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

# What this project is installed with, and has some hundred documented classes each.
PACKAGES = (
    "flwr",
    "mlflow",
    "numpy",
    "optuna",
    "pandas",
    "plotly",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "torch",
)
KINDS = ("class", "function", "method")
FEWEST_WORDS = 4
LONGEST_FILE = 500_000  # bytes; longer ones are generated

Row = tuple[str, str, str]  # text, kind, returns


def read_package(name: str) -> list[Row]:
    """Read a package's documented classes, functions and methods; none where it is missing."""
    spec = find_spec(name)
    places = list((spec.submodule_search_locations if spec else None) or ())
    rows: dict[str, Row] = {}
    for path in sorted(path for place in places for path in Path(place).rglob("*.py")):
        if "test" in str(path.relative_to(Path(places[0]).parent)):
            continue
        if path.stat().st_size > LONGEST_FILE:
            continue
        for row in read_source(path.read_text(encoding="utf-8", errors="replace")):
            rows.setdefault(row[0], row)
    return list(rows.values())


def read_source(source: str) -> Iterator[Row]:
    """Read one file.

    >>> list(read_source("def count(): 'Count what is there.'; return 1"))
    [('Count what is there.', 'function', '1')]
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text = first_sentence(ast.get_docstring(node) or "")
        if len(text.split()) < FEWEST_WORDS or not text.isascii():
            continue
        if isinstance(node, ast.ClassDef):
            yield text, "class", ""
            continue
        kind = "method" if isinstance(parents.get(node), ast.ClassDef) else "function"
        yield text, kind, str(int(gives_value(node)))


def first_sentence(text: str) -> str:
    """Take the first sentence of a docstring, on one line.

    >>> first_sentence("Do this.  And that.")
    'Do this.'
    """
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


def gives_value(function: ast.AST) -> bool:
    """Whether a function's own code returns a value, or yields any."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if isinstance(node, ast.Return):
            nothing = node.value is None
            if not nothing and not (
                isinstance(node.value, ast.Constant) and node.value.value is None
            ):
                return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return False


def choose(rows: Sequence[Row], most: int) -> list[Row]:
    """Take so many rows, by the hash of their text."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest())
    return ordered[:most]


def write_folder(folder: Path, packages: Sequence[str], most: int) -> dict[str, int]:
    """Write a CSV file for each package; returns their numbers of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name in packages:
        rows = choose(read_package(name), most)
        if len({kind for _, kind, _ in rows}) < len(KINDS):
            continue
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "kind", "returns"), *rows])
        counts[name] = len(rows)
    return counts


def main() -> None:
    """Write the folder and say what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200, help="most of a package")
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    wanted = parser.parse_args()
    for name, rows in write_folder(wanted.folder, wanted.packages, wanted.rows).items():
        print(f"{name}: {rows} rows")


if __name__ == "__main__":
    main()
