"""Landmine detection from radar images of 29 fields: mine or clutter, 6 % mines.

Source: Xue, Liao, Carin & Krishnapuram, "Multi-task learning for classification with Dirichlet
process priors", JMLR 8, 2007. Reads its ``LandmineData.mat``.
"""

import numpy as np
from numpy.typing import NDArray

from common.sections.rows import Data
from common.sources.raw_files import load_cells
from common.tables import ClientTable, TableSource

LAST_FOLIATED = 15  # fields 16 to 29 are bare earth or desert


def open_landmine(data: Data) -> TableSource:
    """Open ``LandmineData.mat``: clients ``field-01`` to ``field-29``.

    Columns: ``x1`` to ``x9``; ``mine`` 0 or 1; ``soil``, foliated or bare, the same in all rows of
    a field.
    """
    features, labels = load_cells(data, "LandmineData.mat", "feature", "label")
    fields = {f"field-{i:02d}": i - 1 for i in range(1, len(features) + 1)}

    def read(name: str) -> ClientTable:
        values = features[fields[name]].astype(np.float64)
        soil = "foliated" if fields[name] < LAST_FOLIATED else "bare"
        columns: dict[str, NDArray[np.generic]] = {
            f"x{i + 1}": values[:, i] for i in range(values.shape[1])
        }
        columns["mine"] = labels[fields[name]][:, 0].astype(np.int64)
        columns["soil"] = np.full(len(values), soil, dtype=object)
        return ClientTable(name, columns)

    return TableSource(tuple(fields), read)
