"""One input's columns, read by its kind and its rule for empty cells, before anything is scaled."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.blocks import RowArray
from common.cells import NUMBER_KINDS, list_names, read_names, read_numbers
from common.columns import expand_columns
from common.errors import DataError
from common.experiment import Experiment
from common.sections.rows import Input
from common.tables import ClientTable


@dataclass(frozen=True)
class Features:
    """The raw values of one input.

    Attributes:
        columns: names of its columns, patterns expanded.
        values: float64 [N, columns] (numeric), objects of str or None [N, columns] (categorical;
            text, of one column, or float32 [N, 1, tokens] once numbered), or float32
            [N, channels, height, width] (image); numbers are divided by `input.scale`. NaN or None
            only where a rule of `encode` fills it, and in rows that are not usable.
        usable: bool [N], False for the rows that `missing = "drop-row"` drops.
    """

    columns: tuple[str, ...]
    values: RowArray
    usable: NDArray[np.bool_]


def read_features(table: ClientTable, experiment: Experiment, name: str) -> Features:
    """Read one input of a client.

    Raises:
        DataError: a column is missing, of the wrong kind or shape, infinite, or has empty cells
            under ``missing = "refuse"``.
    """
    columns = expand_columns(table, experiment, name)
    return read_named(table, experiment.inputs[name], name, columns)


def read_named(
    table: ClientTable, settings: Input, name: str, columns: tuple[str, ...]
) -> Features:
    """Read one input from these columns; see `read_features`."""
    if missing := [column for column in columns if column not in table.columns]:
        image = "; images are an array [rows, (channels,) height, width] of an NPZ file"
        way_out = image if settings.kind == "image" else ""
        raise DataError(
            f"client '{table.name}' lacks {len(missing)} of the columns of inputs.{name}: "
            f"{list_names(missing)}; its columns are {list_names(list(table.columns))}{way_out}"
        )
    values = READERS[settings.kind](table, settings, name, columns)
    empty = values == None if values.dtype == object else np.isnan(values)  # noqa: E711 (per cell)
    if settings.missing == "zero":
        fill = "" if settings.kind == "text" else 0.0
        return Features(columns, np.where(empty, fill, values), np.ones(len(table), dtype=bool))
    if settings.missing == "refuse" and empty.any():
        raise DataError(_refuse_empty(table, name, columns, empty))
    drops = settings.missing == "drop-row"
    usable = ~empty.reshape(len(table), -1).any(axis=1) | (not drops)
    return Features(columns, values, usable)


def _read_numeric(
    table: ClientTable, settings: Input, name: str, columns: tuple[str, ...]
) -> NDArray[Any]:
    parts = [read_numbers(table.columns[c], _where(table, name, c)) for c in columns]
    return np.stack(parts, axis=1) / settings.scale


def _read_categorical(
    table: ClientTable, settings: Input, name: str, columns: tuple[str, ...]
) -> NDArray[Any]:
    parts = [read_names(table.columns[c], _where(table, name, c)) for c in columns]
    return np.stack(parts, axis=1)


def _read_text(
    table: ClientTable, settings: Input, name: str, columns: tuple[str, ...]
) -> NDArray[Any]:
    if len(columns) > 1:
        raise DataError(
            f"client '{table.name}', inputs.{name}: a text is one column, got {len(columns)}: "
            f"{list_names(columns)}; name the one that holds it"
        )
    return _read_categorical(table, settings, name, columns)


def _read_image(
    table: ClientTable, settings: Input, name: str, columns: tuple[str, ...]
) -> NDArray[Any]:
    where = _where(table, name, columns[0])
    if len(columns) > 1:
        raise DataError(
            f"client '{table.name}', inputs.{name}: an image is one column, got {len(columns)}: "
            f"{list_names(columns)}; give each image an input of its own"
        )
    pixels = table.columns[columns[0]]
    if pixels.dtype == object or pixels.dtype.kind not in NUMBER_KINDS:
        raise DataError(f"{where} must hold images as arrays of numbers, got {pixels.dtype}")
    if pixels.ndim == 3:
        pixels = pixels[:, None]  # a channel of its own
    if pixels.shape[1:] != settings.shape:
        raise DataError(
            f"{where} must hold images of shape {list(settings.shape)} (channels, height, width), "
            f"got {list(pixels.shape[1:])}; correct inputs.{name}.shape, or the file"
        )
    values = pixels.astype(np.float32) / np.float32(settings.scale)
    if infinite := int(np.isinf(values).any(axis=(1, 2, 3)).sum()):
        raise DataError(f"{where} must be finite, got infinity in {infinite} images")
    return values


READERS = {
    "numeric": _read_numeric,
    "categorical": _read_categorical,
    "image": _read_image,
    "text": _read_text,
}


def _where(table: ClientTable, name: str, column: str) -> str:
    return f"client '{table.name}', column '{column}' (inputs.{name})"


def _refuse_empty(
    table: ClientTable, name: str, columns: tuple[str, ...], empty: NDArray[np.bool_]
) -> str:
    per_column = np.asarray(empty.reshape(len(table), len(columns), -1).any(axis=2))
    gaps = [columns[i] for i in np.flatnonzero(per_column.any(axis=0))]
    return (
        f"client '{table.name}', column {list_names(gaps)} (inputs.{name}) must be filled, got "
        f"empty cells in {int(per_column.any(axis=1).sum())} of {len(table)} rows; choose what "
        f"they mean with inputs.{name}.missing"
    )
