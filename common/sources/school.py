"""Examination scores of 15,362 students in 139 London secondary schools (ILEA).

Source: Goldstein, "Multilevel modelling of survey data", The Statistician 40, 1991; as a multi-task
benchmark in Bakker & Heskes, "Task clustering and gating", JMLR 4, 2003, and in MALSAR, whose
``school.mat`` this reads.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.sections.rows import Data
from common.sources.raw_files import load_cells
from common.tables import ClientTable, TableSource

FEATURES = 27
LOWEST, HIGHEST = 1, 70  # score
UPPER = 20  # nearly half of all students score as much


def open_school(data: Data) -> TableSource:
    """Open ``school.mat``: clients ``school-001`` to ``school-139``.

    Columns: ``x1`` to ``x27`` (year, sex, ethnic group, verbal reasoning band, school type, ...);
    ``score`` as ``(score - 1) / 69``, from 0 to 1; ``upper``, 1 for a score of 20 or more, which
    nearly half of all students reach. The file's column of ones is left out.
    """
    features, scores = load_cells(data, "school.mat", "X", "Y")
    tables = {
        f"school-{i:03d}": _columns(x, y)
        for i, (x, y) in enumerate(zip(features, scores, strict=True), 1)
    }
    return TableSource(tuple(tables), lambda name: ClientTable(name, tables[name]))


def _columns(features: NDArray[Any], scores: NDArray[Any]) -> dict[str, NDArray[Any]]:
    values = features.astype(np.float64)  # stored as uint8, in which 200 + 100 is 44
    columns: dict[str, NDArray[Any]] = {f"x{i + 1}": values[:, i] for i in range(FEATURES)}
    columns["score"] = (scores[:, 0].astype(np.float64) - LOWEST) / (HIGHEST - LOWEST)
    columns["upper"] = (scores[:, 0] >= UPPER).astype(np.float64)
    return columns
