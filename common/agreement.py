"""What clients tell the server of their data before round 1, and what it makes of that.

A description carries names and counts, and sums or category names only where the experiment asks
for them; it comes from training rows alone. The agreement is sent with every round.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from common.blocks import blocks
from common.cells import list_names
from common.errors import ConfigError, DataError
from common.experiment import Experiment
from common.features import Features
from common.preparation import PreparedClient, UnusableClientError, prepare
from common.scaling import Scaling, column_sums, scaling_from_sums
from common.sections.rows import Input
from common.tables import ClientTable

MOST_CATEGORIES = 100  # of a column, that a client tells; beyond, they may name persons

Columns = tuple[str, ...]
Categories = dict[str, Columns]  # column -> its categories, sorted


class _Sent(BaseModel):
    """Base of what travels: frozen, checked on arrival, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> str:
        """Write as compact JSON; what is empty is left out."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not that.
        """
        return cls.model_validate_json(text)


class Sums(_Sent):
    """Per column: number of values, their sum, the sum of their squares; they add up."""

    count: tuple[float, ...]
    total: tuple[float, ...]
    squares: tuple[float, ...]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if not len(self.count) == len(self.total) == len(self.squares):
            raise ValueError("count, total and squares must have one entry per column each")
        return self


class Description(_Sent):
    """What leaves a client before round 1.

    Attributes:
        client: its stable name.
        left_out: why it takes no part although nothing is wrong (`data.unusable = "leave-out"`);
            the rest is then empty.
        examples: split -> number of rows; empty where counts are withheld.
        labelled: tasks that it holds -> number of labelled training rows; every task, as 1, where
            counts are withheld.
        columns: input -> its columns, patterns expanded.
        sums: input -> sums over training rows, where standardised over the federation.
        categories: input -> column -> categories in training rows, where the experiment has none.
    """

    client: str
    left_out: str = ""
    examples: dict[str, int] = {}
    labelled: dict[str, int] = {}
    columns: dict[str, Columns] = {}
    sums: dict[str, Sums] = {}
    categories: dict[str, Categories] = {}


class AgreedScaling(_Sent):
    """Mean and deviation per column over all clients' training rows."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def scaling(self) -> Scaling:
        """Turn into arrays."""
        return Scaling(np.array(self.mean), np.array(self.deviation))


class Agreement(_Sent):
    """What all clients encode their rows by.

    Attributes:
        columns: input -> its columns, in order.
        shapes: input -> shape of one encoded row.
        categories: input -> column -> all categories, where they were collected.
        scalings: input -> scaling, where standardised over the federation.
        frozen: what the trunk's values that never travel are known by, where they were given or
            stay as they are (`common.pretrained.prepare.fixed_digest`); else empty.
    """

    columns: dict[str, Columns]
    shapes: dict[str, tuple[int, ...]]
    categories: dict[str, Categories] = {}
    scalings: dict[str, AgreedScaling] = {}
    frozen: str = ""


def describe(table: ClientTable, experiment: Experiment) -> Description:
    """Read and describe a client's data; see `describe_prepared`."""
    return describe_prepared(table.name, lambda: prepare(table, experiment), experiment)


def describe_prepared(
    client: str, read: Callable[[], PreparedClient], experiment: Experiment
) -> Description:
    """Describe a client's data, from its training rows.

    Args:
        client: its name.
        read: reads and prepares its rows.
        experiment: what the data is to serve.

    Raises:
        DataError: the data cannot serve the experiment.
    """
    try:
        prepared = read()
    except UnusableClientError as error:
        if experiment.data.unusable == "refuse":
            raise
        return Description(client=client, left_out=error.reason)
    inputs = experiment.inputs
    described = Description(
        client=client,
        examples={split: len(rows) for split, rows in prepared.splits.items()},
        labelled={
            task: int(prepared.train(target.labelled).sum())
            for task, target in prepared.targets.items()
        },
        columns={name: features.columns for name, features in prepared.inputs.items()},
        sums={
            name: _sum_input(prepared, features)
            for name, features in prepared.inputs.items()
            if inputs[name].standardise == "federation"
        },
        categories={
            name: _categories_of(prepared, features, f"client '{client}'", name)
            for name, features in prepared.inputs.items()
            if collects_categories(inputs[name])
        },
    )
    return described if experiment.privacy.counts == "sent" else _withhold(described, experiment)


def _withhold(described: Description, experiment: Experiment) -> Description:
    """Leave counts out of a description, once what the server would refuse is checked here."""
    if missing := missing_task(described, experiment):
        raise DataError(missing)
    claimed = dict.fromkeys(experiment.tasks, 1)
    return described.model_copy(update={"examples": {}, "labelled": claimed})


def agree(descriptions: Sequence[Description], experiment: Experiment) -> Agreement:
    """Find what the clients can serve together; their order does not matter.

    The columns of an input are the list that most clients have; among equally common ones, that of
    the client whose name sorts first. Clients with another list add nothing to sums or categories.

    Raises:
        DataError: there is no client to agree with.
    """
    taking_part = sorted((d for d in descriptions if not d.left_out), key=lambda d: d.client)
    if not taking_part:
        raise DataError(
            f"no client can take part: all {len(descriptions)} were left out"
            + "".join(f"; {d.left_out}" for d in descriptions[:1])
        )
    inputs = experiment.inputs
    columns = {
        name: Counter(d.columns.get(name, ()) for d in taking_part).most_common(1)[0][0]
        for name in inputs
    }
    fitting = [d for d in taking_part if d.columns == columns]
    categories = {
        name: _unite_categories(fitting, name, columns[name])
        for name in inputs
        if collects_categories(inputs[name])
    }
    shapes = {n: _shape(inputs[n], columns[n], categories.get(n)) for n in inputs}
    return Agreement(
        columns=columns,
        shapes=shapes,
        categories=categories,
        scalings={
            name: _add_sums(
                [d.sums[name] for d in fitting if name in d.sums], name, shapes[name][0]
            )
            for name in inputs
            if inputs[name].standardise == "federation"
        },
    )


def require_labels(descriptions: Iterable[Description], experiment: Experiment) -> None:
    """Check that every task has a training label somewhere.

    Raises:
        DataError: nobody holds a task.
    """
    held = {t for d in descriptions for t, count in d.labelled.items() if count}
    for task in experiment.tasks:
        if task not in held:
            raise DataError(
                f"tasks.{task}: no client has a training label for it; check its target column "
                f"{list_names(experiment.targets(task))}, or remove the task"
            )


def disagreement(description: Description, agreement: Agreement) -> str | None:
    """Say why a client cannot serve by an agreement, or None where it can."""
    if description.left_out:
        return description.left_out
    for name, agreed in agreement.columns.items():
        if reason := columns_misfit(name, description.columns.get(name, ()), agreed):
            return reason
    for name, columns in agreement.categories.items():
        for column, agreed in columns.items():
            found = description.categories.get(name, {}).get(column, ())
            if unknown := sorted(set(found) - set(agreed)):
                return (
                    f"column '{column}' (inputs.{name}) has categories that the federation did not "
                    f"start with: {list_names(unknown)}; declare inputs.{name}.categories"
                )
    return None


def missing_task(description: Description, experiment: Experiment) -> str | None:
    """Say which tasks a client lacks that its algorithm needs, or None."""
    missing = [task for task in experiment.tasks if not description.labelled.get(task)]
    if not missing or experiment.federation.algorithm != "whole-model":
        return None
    return (
        f"algorithm 'whole-model' needs every task at every client, lacks {list_names(missing)}; "
        "choose the clients with data.clients, or set federation.algorithm to 'joint'"
    )


def require_clients(count: int, experiment: Experiment) -> None:
    """Check that there are as many clients as the federation asks for.

    Raises:
        ConfigError: there are fewer.
    """
    federation = experiment.federation
    wanted = federation.clients_per_round
    if isinstance(wanted, int) and wanted > count:
        raise ConfigError(
            f"federation.clients-per-round must be at most {count}, the number of clients, got "
            f"{wanted}; use 'all' for every client"
        )
    if federation.min_clients > count:
        raise ConfigError(
            f"federation.min-clients must be at most {count}, the number of clients, got "
            f"{federation.min_clients}"
        )


def columns_misfit(name: str, found: Columns, agreed: Columns) -> str | None:
    """Say how a client's columns of one input differ from the agreed ones, or None."""
    if found == agreed:
        return None
    missing = [column for column in agreed if column not in found]
    extra = [column for column in found if column not in agreed]
    differences = [f"lacks {list_names(missing)}"] if missing else []
    differences += [f"has {list_names(extra)} besides"] if extra else []
    return (
        f"its columns of inputs.{name} differ from those of the other clients: "
        f"{' and '.join(differences) or 'another order'}; add or exclude them"
    )


def input_shapes(agreement: Agreement) -> dict[str, tuple[int, ...]]:
    """Shapes of one encoded row, input by input, as the model takes them."""
    return dict(agreement.shapes)


def collects_categories(settings: Input) -> bool:
    """Whether an input's categories come from the clients' training rows."""
    return settings.kind == "categorical" and not settings.categories


def _sum_input(prepared: PreparedClient, features: Features) -> Sums:
    count, total, squares = column_sums(features.values, prepared.splits["train"])
    return Sums(
        count=tuple(count.tolist()), total=tuple(total.tolist()), squares=tuple(squares.tolist())
    )


def _categories_of(
    prepared: PreparedClient, features: Features, client: str, name: str
) -> Categories:
    seen: list[set[str]] = [set() for _ in features.columns]
    for cells in blocks(features.values, prepared.splits["train"]):
        for i, own in enumerate(seen):
            own.update(set(cells[:, i]) - {None})
    found = {c: tuple(sorted(own)) for c, own in zip(features.columns, seen, strict=True)}
    for column, categories in found.items():
        if len(categories) > MOST_CATEGORIES:
            raise DataError(
                f"{client}, column '{column}' (inputs.{name}) must have at most {MOST_CATEGORIES} "
                f"categories to be collected, got {len(categories)}; list them in "
                f"inputs.{name}.categories, make the column numeric, or leave it out"
            )
    return found


def _unite_categories(
    descriptions: Sequence[Description], name: str, columns: Columns
) -> Categories:
    return {
        column: tuple(
            sorted({c for d in descriptions for c in d.categories.get(name, {}).get(column, ())})
        )
        for column in columns
    }


def _shape(settings: Input, columns: Columns, collected: Categories | None) -> tuple[int, ...]:
    if settings.kind == "image":
        return settings.shape
    if settings.kind == "numeric":
        return (len(columns),)
    if settings.kind == "text":
        return (1, settings.max_length)  # no other input has two dimensions
    own = settings.missing == "own-category"
    return (sum(len((collected or {}).get(c, settings.categories)) + own for c in columns),)


def _add_sums(sums: Sequence[Sums], name: str, width: int) -> AgreedScaling:
    """Add the clients' sums exactly, so that their order cannot show, and scale by them."""
    if not sums or any(len(s.count) != width for s in sums):
        raise DataError(
            f"inputs.{name}: every client must send {width} sums to standardise by, got "
            f"{[len(s.count) for s in sums]}"
        )
    count, total, squares = (
        np.array([math.fsum(column) for column in zip(*rows, strict=True)])
        for rows in zip(*((s.count, s.total, s.squares) for s in sums), strict=True)
    )
    scaling = scaling_from_sums(count, total, squares)
    return AgreedScaling(
        mean=tuple(scaling.mean.tolist()), deviation=tuple(scaling.deviation.tolist())
    )
