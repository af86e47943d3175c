"""Tables of methods: what an experiment may name, where it lives, and what its options are.

A table is plain text, so that reading an experiment imports no PyTorch; the class behind an entry
is imported when an experiment names it. A new method is a class in a file of its own and a line in
its table: `common.weighting.table`, `common.architectures.table`, `common.optimisers.table`,
`common.schedules.table`, `common.algorithms` (classes of the client's side), `common.strategies`
(of the server's; a client looks at their options only). What others must know of a method is a
field of its entry, so that nobody else keeps lists of names.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import AfterValidator, ValidationError
from pydantic_core import PydanticCustomError

from common.errors import ConfigError
from common.experiment_problems import describe_problems


@dataclass(frozen=True)
class Method:
    """One entry of a table.

    Attributes:
        place: "module:Class" of what does it.
        line: what it does, in a line.
        paper: where it comes from, with the equation.
        cost: what it costs beside the plain weighted sum.
        needs: module that must be installed -> the extra of pyproject.toml that brings it.
        fewest_tasks: an experiment with fewer would not notice it.
        always_fits: it works with every experiment; reading one need not import it to know.
    """

    place: str
    line: str
    paper: str = ""
    cost: str = ""
    needs: Mapping[str, str] | None = None
    fewest_tasks: int = 1
    always_fits: bool = False

    def load(self) -> Any:
        """Import the class.

        It has ``Options``, the model of its options, and ``find_problems(options, experiment)``,
        which says what it cannot work with.

        Raises:
            ConfigError: it needs a library that is not installed.
        """
        for module, extra in (self.needs or {}).items():
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ConfigError(
                    f"needs the library {module}, which is not installed: pip install "
                    f"'fedmtl[{extra}]'"
                ) from error
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


def one_of(table: Mapping[str, Method]) -> tuple[AfterValidator, dict[str, Any]]:
    """Make the validator of a setting that names a method, and what its JSON schema adds."""

    def check(name: str) -> str:
        if name not in table:
            raise PydanticCustomError("unknown_method", "unknown method")
        return name

    return AfterValidator(check), {"enum": list(table)}


def method_problems(
    table: Mapping[str, Method],
    setting: str,
    name: str,
    options: Mapping[str, Any],
    whole: Any,
    key: str = "options",
) -> Iterator[str]:
    """Say what is wrong with a method's options, or with the method in this experiment.

    Args:
        table: the methods.
        setting: where it is chosen, such as "loss.weighting".
        name: the method.
        options: what the table of options beside the setting holds.
        whole: the experiment.
        key: name of that table.
    """
    method = table[name]
    if len(whole.tasks) < method.fewest_tasks:
        yield (
            f"{setting} '{name}' needs at least {method.fewest_tasks} tasks, got "
            f"{len(whole.tasks)}: with fewer it would change nothing; remove it"
        )
    if method.always_fits and not options:
        return
    try:
        found = method.load()
    except ConfigError as error:
        yield f"{setting} '{name}' {error}"
        return
    where = (*setting.split(".")[:-1], key)
    try:
        read = found.Options.model_validate(dict(options))
    except ValidationError as error:
        lines = describe_problems(error, options, found.Options.model_json_schema(), where)
        yield from (f"{line.removesuffix('.')} ({setting} is '{name}')" for line in lines)
        return
    yield from found.find_problems(read, whole)


def make_options(table: Mapping[str, Method], name: str, options: Mapping[str, Any]) -> Any:
    """Read a method's options, which the experiment's schema has checked."""
    return table[name].load().Options.model_validate(dict(options))
