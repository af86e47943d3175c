"""Heart disease in four hospitals, 920 patients: presence, severity, angina, peak heart rate.

Source: Detrano et al., "International application of a new probability algorithm for the diagnosis
of coronary artery disease", American Journal of Cardiology 64, 1989; UCI 45. The split is that of
Fed-Heart-Disease in FLamby (Ogier du Terrail et al., NeurIPS 2022 datasets and benchmarks).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.sections.rows import Data
from common.sources.files import read_csv
from common.sources.raw_files import find_file
from common.tables import ClientTable, Columns, TableSource

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
UNGRADED = "hungarian"  # records whether there is disease, not how severe

RAW = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")
RAW_SPARSE = ("slope", "ca", "thal")  # mostly empty in three hospitals; FLamby drops them
GRADE = "num"

SPLIT_SEED, TRAIN_SHARE = 43, 0.66  # FLamby's
STRATIFIED_FROM = 3  # patients with and without disease; Switzerland has one without


def open_heart_disease(data: Data) -> TableSource:
    """Open ``processed.<hospital>.data``, one client each.

    Columns: the 13 raw features under their UCI names and ``num``; ``disease`` (num > 0);
    ``severity`` 0 to 4, empty in the ungraded hospital; ``angina`` (exang, induced by exercise) and
    ``max-heart-rate`` (thalach), which are features too: an experiment that predicts one excludes
    its raw column. ``flamby-split`` is train or test in the 740 rows that FLamby keeps, those
    without a gap outside slope, ca and thal, and empty in the others.
    """
    files = {name: find_file(data, f"processed.{name}.data") for name in HOSPITALS}
    return TableSource(HOSPITALS, lambda name: ClientTable(name, _read(name, files[name])))


def _read(name: str, path: Path) -> Columns:
    columns = read_csv(path, names=(*RAW, *RAW_SPARSE, GRADE))
    grade = columns[GRADE].astype(np.int64)
    columns["disease"] = (grade > 0).astype(np.int64)
    columns["severity"] = np.full(len(grade), np.nan) if name == UNGRADED else grade
    columns["angina"] = columns["exang"]
    columns["max-heart-rate"] = columns["thalach"]
    columns["flamby-split"] = _flamby_split(columns)
    return columns


def _flamby_split(columns: Columns) -> NDArray[np.object_]:
    """Repeat FLamby's split of the rows without a gap, stratified by disease where it can be."""
    from sklearn.model_selection import train_test_split  # a second to import

    complete = np.flatnonzero(~np.isnan(np.stack([columns[c] for c in RAW])).any(axis=0))
    disease = columns["disease"][complete]
    enough = np.bincount(disease, minlength=2).min() >= STRATIFIED_FROM
    _, test = train_test_split(
        np.arange(len(complete)),
        train_size=TRAIN_SHARE,
        test_size=1 - TRAIN_SHARE,
        random_state=SPLIT_SEED,
        stratify=disease if enough else None,
    )
    split = np.full(len(columns["disease"]), None, dtype=object)
    split[complete] = "train"
    split[complete[test]] = "test"
    return split
