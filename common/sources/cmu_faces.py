"""Faces of 20 persons, 624 images: where they look, whether they wear sunglasses, how they feel.

Source: Mitchell, "Machine Learning", 1997, chapter 4; UCI 124.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.natural_order import natural_sort
from common.sections.rows import Data
from common.sources.images import read_pgm
from common.sources.raw_files import find_file
from common.tables import ClientTable, TableSource

SMALL, MEDIUM = "_4", "_2"  # endings of 30 x 32 and of 60 x 64 pixels


def open_cmu_faces(data: Data) -> TableSource:
    """Open the folder ``faces``: one client per person, under the person's name.

    Columns: ``pixels`` [N, 30, 32] and ``pixels-medium`` [N, 60, 64] from 0 to 255; ``pose`` (left,
    right, straight, up), ``expression`` (angry, happy, neutral, sad), ``eyes`` (open, sunglasses).
    Each combination occurs once per person: under a random split a model that remembers the person
    and the other two has seen every expression but the right one.

    Raises:
        DataError: the folder is missing or holds no person.
    """
    folder = find_file(data, "faces")
    persons = natural_sort(path.name for path in folder.iterdir() if path.is_dir())
    if not persons:
        raise DataError(f"data.path: '{folder}' must hold one folder per person, got none")
    return TableSource(tuple(persons), lambda name: ClientTable(name, _read(folder / name)))


def _read(folder: Path) -> dict[str, NDArray[np.generic]]:
    """Read a person's images; files that the data set marks as bad end in ``.bad``."""
    paths = sorted(folder.glob(f"*{SMALL}.pgm"))
    if not paths:
        raise DataError(f"client '{folder.name}': its folder has no image *{SMALL}.pgm")
    words = [path.stem.removesuffix(SMALL).split("_") for path in paths]
    medium = [path.with_name(f"{path.stem.removesuffix(SMALL)}{MEDIUM}.pgm") for path in paths]
    labels = {
        label: np.array([word[i] for word in words], dtype=object)
        for i, label in enumerate(("pose", "expression", "eyes"), 1)
    }
    return {
        "pixels": np.stack([read_pgm(path) for path in paths]),
        "pixels-medium": np.stack([read_pgm(path) for path in medium]),
        **labels,
    }
