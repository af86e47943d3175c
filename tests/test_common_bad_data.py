"""Bad data: each is one line that says where, what it must be, what it was, and a way out."""

from pathlib import Path

import numpy as np
import pytest

from common.agreement import describe
from common.clients import open_clients
from common.errors import ConfigError, DataError, FedMTLError
from common.experiment import Experiment
from tests.raw_tables import plan, table, text

CLASSES = {"y": {"kind": "multiclass", "classes": 3}}
NAMED = {"y": {"kind": "multiclass", "classes": ["cat", "dog"]}}
LOG = {"y": {"kind": "regression", "transform": "log1p"}}
PAIR = {"y": {"kind": "regression", "target": ["u", "v"]}}
TOWN = {"t": {"kind": "categorical", "columns": ["town"]}}
IMAGE = {"i": {"kind": "image", "columns": ["p"], "shape": [1, 2, 2]}}
SECRET = "12345.678"  # a cell that no message may quote
COUNTED = np.arange(4.0)

BAD_TABLES = {
    "missing column": (
        table(),
        {"inputs": {"x": {"columns": ["x1", "age"]}}},
        r"lacks 1 of the columns of inputs\.x: 'age'; its columns are 'x1', 'y'",
    ),
    "text in a numeric column": (
        table(x1=text("1", "old", SECRET)),
        {},
        r"column 'x1' \(inputs\.x\) must hold numbers, got text in 1 of 3 rows",
    ),
    "arrays in a numeric column": (
        table(x1=np.zeros((4, 2)), y=COUNTED),
        {},
        r"column 'x1'.*one number a row, got arrays of \(2,\)",
    ),
    "dates in a numeric column": (
        table(x1=np.array(["2024-01-01"] * 4, dtype="datetime64[D]"), y=COUNTED),
        {},
        r"column 'x1'.*must hold numbers, got datetime64",
    ),
    "infinite feature": (
        table(x1=[1.0, np.inf, -np.inf]),
        {},
        r"column 'x1'.*finite.*in 2 of 3 rows",
    ),
    "feature too large for float32": (
        table(x1=[1.0, 1e39]),
        {},
        r"column 'x1'.*below 3\.4e\+38.*in 1 of 2 rows",
    ),
    "infinite target": (table(y=[1.0, np.inf]), {}, r"column 'y' \(task 'y'\).*in 1 of 2 rows"),
    "gap under refuse": (
        table(x1=[1.0, np.nan]),
        {},
        r"column 'x1'.*must be filled, got empty cells in 1 of 2 rows.*inputs\.x\.missing",
    ),
    "gap in a categorical column": (
        table(town=text("u", None)),
        {"inputs": TOWN},
        r"column 'town'.*empty cells in 1 of 2 rows",
    ),
    "no image": (
        table(x1=COUNTED, y=COUNTED),
        {"inputs": IMAGE},
        r"lacks 1 of the columns.*; images are an array .* of an NPZ file",
    ),
    "text for an image": (
        table(p=text(*"abcd"), y=COUNTED),
        {"inputs": IMAGE},
        r"column 'p'.*must hold images as arrays of numbers",
    ),
    "infinite image": (
        table(p=np.full((4, 2, 2), np.inf), y=COUNTED),
        {"inputs": IMAGE},
        r"column 'p'.*must be finite, got infinity in 4 images",
    ),
    "empty image": (
        table(p=np.full((4, 2, 2), np.nan), y=COUNTED),
        {"inputs": IMAGE},
        r"column 'p'.*must be filled, got empty cells in 4 of 4 rows",
    ),
    "class out of range": (
        table(y=[0, 3, -1]),
        {"tasks": CLASSES},
        r"classes from 0 to 2, got others in 2 rows",
    ),
    "class that is not whole": (
        table(y=[0, 1.5]),
        {"tasks": CLASSES},
        r"whole numbers from 0, got others in 1 row",
    ),
    "class beyond every integer": (table(y=[0, 1e30]), {"tasks": CLASSES}, r"from 0 to 2"),
    "unknown class name": (
        table(y=text("cat", SECRET)),
        {"tasks": NAMED},
        r"one of 'cat', 'dog', got others in 1 row",
    ),
    "text for a class code": (
        table(y=text("0", "many")),
        {"tasks": CLASSES},
        r"must hold numbers, got text in 1 of 2 rows; .*name the classes in `classes`",
    ),
    "text for a regression": (
        table(y=text("0", "many")),
        {},
        r"must hold numbers, got text in 1 of 2 rows; .*another column in tasks\.y\.target",
    ),
    "word that is no split": (
        table(part=text("train", SECRET)),
        {"split": "column", "split_column": "part"},
        r"train, validation or test, got others in 1 of 2 rows",
    ),
    "third class in a binary task": (
        table(y=[0, 1, 2]),
        {"tasks": {"y": {"kind": "binary"}}},
        r"classes from 0 to 1, got others in 1 row",
    ),
    "other word in a binary task": (
        table(y=text("true", SECRET)),
        {"tasks": {"y": {"kind": "binary"}}},
        r"0, 1, true or false, got others in 1 row",
    ),
    "multilabel beyond 0 and 1": (
        table(u=[0, 2], v=[0, 1]),
        {"tasks": {"y": {"kind": "multilabel", "target": ["u", "v"]}}},
        r"task 'y': labels must be 0 or 1, got others in 1 row",
    ),
    "row with some of several labels": (
        table(u=[1.0, 2.0], v=[1.0, np.nan]),
        {"tasks": PAIR},
        r"task 'y' has 2 target columns, and 1 row with some of them empty",
    ),
    "file with some of several target columns": (
        table(u=[1.0, 2.0]),
        {"tasks": PAIR},
        r"task 'y' needs 2 target columns, lacks 'v'",
    ),
    "log1p of -1": (table(y=[-1.0, 0.0]), {"tasks": LOG}, r"'log1p' takes values above -1.*1 row"),
    "one row": (table(rows=1), {}, r"at least 2 rows \(data\.min-rows\), got 1"),
    "no label at all": (table(y=[np.nan] * 4), {}, r"label for some task, got none in columns 'y'"),
    "no target column": (
        table(),
        {"tasks": {"z": {"kind": "regression"}}},
        r"label for some task, got none in columns 'z'",
    ),
    "no label in training": (
        table(y=[np.nan, np.nan, 1.0, 1.0], when=COUNTED),
        {"split": "ordered", "split_column": "when", "test": 0.5, "validation": 0.0},
        r"a label among its 2 training rows, got none",
    ),
}


@pytest.mark.parametrize(("raw", "settings", "words"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_rows_are_told_in_one_line_without_a_cell(raw, settings, words):
    with pytest.raises(DataError, match=words) as caught:
        describe(raw, plan(**settings))
    line = str(caught.value)
    assert line.startswith("client 'a'")
    assert "\n" not in line
    assert SECRET not in line


def folder_plan(path, source="folder", **data) -> Experiment:
    return plan(source=source, path=str(path), **data)


def read_all(experiment):
    source = open_clients(experiment)
    return [source.read(name) for name in source.names]


def write(path, content="x1,y\n1,2\n3,4\n"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


BAD_FOLDERS = {
    "empty": ({}, r"must hold one \.csv, \.parquet, \.npz file per client, got none"),
    "other files": ({"a.txt": "", ".b.csv": ""}, r"got 1 others: 'a\.txt'"),
    "same name": ({"a.csv": "x1,y\n1,2\n", "a.npz": b""}, r"'a\.csv' and 'a\.npz' name the same"),
    "empty file": ({"a.csv": ""}, r"'a\.csv' cannot be read as CSV \(EmptyDataError\)"),
    "no rows": ({"a.csv": "x1,y\n"}, r"'a\.csv' has no rows"),
    "ragged rows": ({"a.csv": "x1,y\n1,2\n1,2,3,4\n"}, r"'a\.csv' cannot be read as CSV"),
    "rows longer than the header": (
        {"a.csv": "x1,y\n1,2,3\n3,4,5\n"},
        r"'a\.csv': its rows must have as many cells as its header",
    ),
    "not text": ({"a.csv": b"x1,y\n\xff\xfe\x00,1\n"}, r"'a\.csv' cannot be read as CSV"),
    "corrupt parquet": ({"a.parquet": "x1,y"}, r"'a\.parquet' cannot be read as PARQUET"),
    "corrupt npz": ({"a.npz": b"PK\x03\x04nothing"}, r"'a\.npz' cannot be read as NPZ"),
    "npz of pickles": ({"a.npz": b"\x80\x04N."}, r"'a\.npz' cannot be read as NPZ"),
}


@pytest.mark.parametrize(("files", "words"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_files_are_named(tmp_path, files, words):
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(DataError, match=words) as caught:
        read_all(folder_plan(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_comma_at_the_end_of_every_row_moves_no_column(tmp_path):
    write(tmp_path / "a.csv", "x1,y\n1,2,\n3,4,\n")
    (raw,) = read_all(folder_plan(tmp_path))
    assert raw.columns["y"].tolist() == [2, 4]


def test_arrays_of_different_lengths_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x1=np.zeros(3), y=np.zeros(2))
    with pytest.raises(DataError, match="got 2 in 'y' and 3 in 'x1'"):
        read_all(folder_plan(tmp_path))


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path: '.*nowhere' does not exist"):
        open_clients(folder_plan(tmp_path / "nowhere"))


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"data\.path: .*cannot be opened \(Permission denied\)"):
        open_clients(folder_plan(tmp_path))


def test_embedded_data_takes_no_path(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path must be empty for source 'digits'"):
        open_clients(folder_plan(tmp_path, source="digits"))


def test_a_folder_is_no_table_and_a_table_no_folder(tmp_path):
    write(tmp_path / "a.csv")
    with pytest.raises(
        ConfigError, match=r"\.csv, \.parquet, \.npz file.*set data\.source to 'fol"
    ):
        open_clients(folder_plan(tmp_path, source="table"))
    with pytest.raises(ConfigError, match=r"must be a folder.*set data\.source to 'table'"):
        open_clients(folder_plan(tmp_path / "a.csv"))


def test_a_missing_client_column_is_named(tmp_path):
    write(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"'a\.csv' has no column 'who'.*its columns are 'x1', 'y'"):
        open_clients(folder_plan(tmp_path / "a.csv", source="table", client_column="who"))


def test_a_gap_in_the_client_column_is_counted(tmp_path):
    write(tmp_path / "a.csv", "who,y\na,1\n,2\n")
    with pytest.raises(DataError, match="must be filled in every row, got 1 empty cells of 2"):
        open_clients(folder_plan(tmp_path / "a.csv", source="table", client_column="who"))


def test_a_source_that_does_not_exist_lists_those_that_do():
    with pytest.raises(ConfigError, match=r"data\.source must be one of digits, table.*got 'moon'"):
        open_clients(plan(source="moon"))


@pytest.mark.parametrize("source", ["table", "folder"])
def test_a_path_is_asked_for(source):
    with pytest.raises(ConfigError, match=r"data\.path must name the data"):
        open_clients(plan(source=source))


def test_public_data_says_both_ways_to_name_its_folder(monkeypatch):
    monkeypatch.delenv("FEDMTL_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"data\.path.*got nothing; set it, or set FEDMTL_DATA"):
        open_clients(plan(source="school"))


def test_raw_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match=r"source 'school' needs 'school\.mat'"):
        open_clients(folder_plan(tmp_path, source="school"))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("school", "school.mat"),
        ("landmine", "LandmineData.mat"),
        ("parkinsons", "parkinsons_updrs.data"),
        ("communities_crime", "CommViolPredUnnormalizedData.txt"),
        ("mnist", "train-images-idx3-ubyte.gz"),
    ],
)
def test_raw_files_with_other_content_are_named(tmp_path, source, name):
    write(tmp_path / name, "nothing,of,the,kind\n1,2,3,4\n")
    with pytest.raises(FedMTLError, match=name.replace(".", r"\.")) as caught:
        read_all(folder_plan(tmp_path, source=source))
    assert "\n" not in str(caught.value)
