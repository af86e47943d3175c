"""Communities and crime: 2,215 US communities in 48 states, census figures and crime rates.

Source: Redmond & Baveja, "A data-driven software tool for enabling cooperative information sharing
among police departments", European Journal of Operational Research 141, 2002; UCI 211 (not
normalised).
"""

from common.partition import rows_by_name
from common.sections.rows import Data
from common.sources.files import read_csv
from common.sources.raw_files import find_file
from common.tables import ClientTable, TableSource

STATE = "state"


def open_communities_crime(data: Data) -> TableSource:
    """Open ``CommViolPredUnnormalizedData.txt``: one client per state, named by its two letters.

    Columns as in the file. The last 18 are crimes, counted and per 100,000 people; where a state
    did not report one, its cells are empty. Counts of a crime are no feature of its rate: an
    experiment excludes them.
    """
    columns = read_csv(find_file(data, "CommViolPredUnnormalizedData.txt"), (STATE,))
    rows = rows_by_name(columns[STATE], f"column '{STATE}'")

    def read(name: str) -> ClientTable:
        return ClientTable(name, {key: column[rows[name]] for key, column in columns.items()})

    return TableSource(tuple(rows), read)
