"""Parkinson's telemonitoring: 5,875 voice recordings of 42 patients over six months.

Source: Tsanas, Little, McSharry & Ramig, "Accurate telemonitoring of Parkinson's disease
progression by noninvasive speech tests", IEEE Transactions on Biomedical Engineering 57, 2010;
UCI 189.
"""

import numpy as np

from common.partition import rows_by_name
from common.sections.rows import Data
from common.sources.files import read_csv
from common.sources.raw_files import find_file
from common.tables import ClientTable, TableSource

PATIENT = "subject#"


def open_parkinsons(data: Data) -> TableSource:
    """Open ``parkinsons_updrs.data``: clients ``patient-01`` to ``patient-42``.

    Columns as in the file: ``age``, ``sex``, ``test_time`` (days since recruitment), 16 measures of
    the voice, and ``motor_UPDRS`` and ``total_UPDRS``, both interpolated in time between three
    clinical visits, so that a random split leaks: see also ``split = "ordered"`` by ``test_time``.
    """
    columns = read_csv(find_file(data, "parkinsons_updrs.data"), (PATIENT,))
    numbers = columns.pop(PATIENT).astype(np.int64)
    names = np.array([f"patient-{number:02d}" for number in numbers], dtype=object)
    rows = rows_by_name(names, f"column '{PATIENT}'")

    def read(name: str) -> ClientTable:
        return ClientTable(name, {key: column[rows[name]] for key, column in columns.items()})

    return TableSource(tuple(rows), read)
