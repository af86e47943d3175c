import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from common.agreement import agree, describe
from common.cells import read_names
from common.clients import open_clients
from common.encoding import encode
from common.errors import DataError
from common.experiment_file import known_experiments, load_experiment
from common.sections.rows import Data
from common.sources.registry import SOURCES, open_source
from common.splits import split_rows
from tests.raw_tables import encode_all, plan

needs_public_data = pytest.mark.skipif(
    "FEDMTL_DATA" not in os.environ,
    reason="FEDMTL_DATA names no folder with the public data sets",
)


def open_all(source, **settings):
    opened = open_source(Data(source=source, **settings))
    return {name: opened.read(name) for name in opened.names}


def filled(tables, column):
    return sum(
        sum(name is not None for name in read_names(table.columns[column], column))
        for table in tables.values()
    )


def spread(tables, column):
    """Count the rows of every class."""
    cells = np.concatenate([t.columns[column] for t in tables.values()])
    return dict(zip(*(part.tolist() for part in np.unique(cells, return_counts=True)), strict=True))


# Data of the user's own --------------------------------------------------------------------------

FRAME = pd.DataFrame(
    {
        "who": ["b10", "b2", "b10", "b2"],
        "x": [1.0, 2.0, None, 4.0],
        "town": ["oslo", None, "None", "rome"],
        "ok": [True, False, True, True],
    }
)
WRITERS = {
    "csv": lambda path: FRAME.to_csv(path),  # with pandas' column of row numbers, which has no name
    "parquet": lambda path: FRAME.to_parquet(path),
}


@pytest.fixture(params=WRITERS)
def file(request, tmp_path):
    path = tmp_path / f"rows.{request.param}"
    WRITERS[request.param](path)
    return path


def test_a_table_is_divided_by_its_client_column_in_natural_order(file):
    tables = open_all("table", path=str(file), client_column="who")
    assert list(tables) == ["b2", "b10"]
    assert tables["b2"].columns["x"].tolist() == [2.0, 4.0]


def test_a_table_without_a_client_column_is_one_client(file):
    tables = open_all("table", path=str(file))
    assert {name: len(table) for name, table in tables.items()} == {"rows": 4}


def test_csv_and_parquet_read_alike(file):
    columns = open_all("table", path=str(file))["rows"].columns
    assert list(columns) == ["who", "x", "town", "ok"]
    assert np.isnan(columns["x"][2])
    assert columns["town"].tolist() == ["oslo", None, "None", "rome"]
    assert columns["ok"].dtype == bool


def test_columns_with_gaps_of_every_parquet_type_are_numbers_or_text(tmp_path):
    frame = pd.DataFrame(
        {
            "i": pd.array([1, None], dtype="Int64"),
            "b": pd.array([True, None], dtype="boolean"),
            "d": pd.to_datetime(["2024-05-31", None]),
            "c": pd.Categorical(["u", None]),
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    columns = open_all("folder", path=str(tmp_path))["a"].columns
    assert [columns[key][0] for key in "ib"] == [1.0, 1.0]
    assert [bool(np.isnan(columns[key][1])) for key in "ib"] == [True, True]
    assert columns["d"].tolist() == ["2024-05-31 00:00:00", None]
    assert columns["c"].tolist() == ["u", None]


def test_a_folder_holds_one_client_per_file(tmp_path):
    (tmp_path / "site-10.csv").write_text("x,y\n1,2\n")
    FRAME.to_parquet(tmp_path / "site-2.parquet")
    np.savez(
        tmp_path / "site-3.npz", pixels=np.zeros((5, 4, 4)), y=np.array(["u", "", "v", "", ""])
    )
    (tmp_path / "notes.txt").write_text("not a client")
    tables = open_all("folder", path=str(tmp_path))
    assert {name: len(table) for name, table in tables.items()} == {
        "site-2": 4,
        "site-3": 5,
        "site-10": 1,
    }
    assert tables["site-3"].columns["pixels"].shape == (5, 4, 4)
    assert tables["site-3"].columns["y"].tolist() == ["u", None, "v", None, None]


def test_a_matrix_in_an_npz_file_is_a_column_per_entry(tmp_path):
    np.savez(tmp_path / "a.npz", v=np.array([[1, 2], [3, 4], [5, 6]]), y=np.array([[7], [8], [9]]))
    columns = open_all("folder", path=str(tmp_path))["a"].columns
    assert {name: column.tolist() for name, column in columns.items()} == {
        "v.0": [1, 3, 5],
        "v.1": [2, 4, 6],
        "y": [7, 8, 9],
    }


def test_a_folder_reads_no_file_before_its_client_is_asked_for(tmp_path):
    (tmp_path / "good.csv").write_text("x,y\n1,2\n")
    (tmp_path / "bad.npz").write_text("nonsense")
    opened = open_source(Data(source="folder", path=str(tmp_path)))
    assert len(opened.read("good")) == 1


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("y\n1\n2\n")
    assert len(open_all("table", path=str(path))["rows"]) == 2
    path.write_text("y\n1\n2\n3\n")
    os.utime(path, ns=(1, 1))  # clocks of file systems can be coarse
    assert len(open_all("table", path=str(path))["rows"]) == 3


def test_a_folder_that_nobody_here_wrote_runs_from_its_settings_alone(tmp_path):
    rng = np.random.default_rng(0)
    for name, rows, tasks in (("north", 30, ["ill"]), ("south", 12, ["ill", "cost"])):
        frame = pd.DataFrame(
            {
                "age": rng.integers(20, 80, rows),
                "lab 1": rng.normal(size=rows),
                "ward": rng.choice(["a", "b", "c"], rows),
            }
        )
        frame.loc[0, "lab 1"] = np.nan
        for task in tasks:
            frame[task] = rng.integers(0, 2, rows).astype(float)
            frame.loc[rows - 1, task] = np.nan
        frame[frame.columns[::-1] if name == "north" else frame.columns].to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    experiment = plan(
        source="folder",
        path=str(tmp_path),
        inputs={
            "numbers": {"columns": ["*"], "missing": "mean", "standardise": "federation"},
            "ward": {"kind": "categorical", "columns": ["ward"]},
        },
        tasks={"ill": {"kind": "binary"}, "cost": {"kind": "regression"}},
        unseen_classes="keep",
    )
    source = open_clients(experiment)
    north, south = encode_all([source.read(name) for name in source.names], experiment)
    assert (north.tasks, south.tasks) == (("ill",), ("ill", "cost"))
    assert north.train.inputs["numbers"].shape[1] == 2
    assert north.train.inputs["ward"].shape[1] == 3


# The table of sources ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_its_function_and_a_line(name):
    source = SOURCES[name]
    module = __import__(source.module, fromlist=[source.function])
    assert callable(getattr(module, source.function))
    assert source.summary
    assert source.citation or name in ("table", "folder")


def test_listing_the_sources_imports_none_of_them():
    code = (
        "import sys, common.sources.registry;"
        "assert not {'pandas', 'sklearn', 'scipy', 'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digits_are_as_they_are_known():
    (digits,) = open_all("digits").values()
    assert digits.columns["pixels"].shape == (1797, 8, 8)
    assert digits.columns["pixels"].max() == 16
    assert spread({"digits": digits}, "parity") == {0: 891, 1: 906}
    assert 0 < digits.columns["ink"].min() < digits.columns["ink"].max() < 1


# Public data, counted -----------------------------------------------------------------------------


@needs_public_data
def test_school_has_139_schools_and_scores_from_0_to_1():
    tables = open_all("school")
    scores = np.concatenate([table.columns["score"] for table in tables.values()])
    assert (len(tables), len(scores)) == (139, 15362)
    assert list(tables)[::138] == ["school-001", "school-139"]
    assert (scores.min(), scores.max()) == (0.0, 1.0)
    assert len(tables["school-001"].columns) == 27 + 2
    upper = np.concatenate([table.columns["upper"] for table in tables.values()])
    assert np.array_equal(upper == 1, scores >= 19 / 69)


@needs_public_data
def test_landmine_has_29_fields_with_904_mines():
    tables = open_all("landmine")
    assert spread(tables, "mine") == {0: 14820 - 904, 1: 904}
    assert len(tables) == 29
    assert spread({n: t for n, t in tables.items() if n <= "field-15"}, "soil").keys() == {
        "foliated"
    }


@needs_public_data
def test_parkinsons_has_42_patients_in_the_order_of_time():
    tables = open_all("parkinsons")
    lengths = [len(table) for table in tables.values()]
    assert (len(tables), sum(lengths), min(lengths), max(lengths)) == (42, 5875, 101, 168)
    settings = {"split": "ordered", "split_column": "test_time"}
    parts = split_rows(tables["patient-01"], plan(**settings))
    when = tables["patient-01"].columns["test_time"]
    assert when[parts["train"]].max() <= when[parts["validation"]].min()
    assert when[parts["validation"]].max() <= when[parts["test"]].min()


@needs_public_data
def test_faces_are_those_of_20_persons():
    tables = open_all("cmu_faces")
    assert (len(tables), sum(map(len, tables.values()))) == (20, 624)
    assert spread(tables, "pose") == {"left": 157, "right": 155, "straight": 156, "up": 156}
    assert spread(tables, "eyes") == {"open": 313, "sunglasses": 311}
    assert spread(tables, "expression").keys() == {"angry", "happy", "neutral", "sad"}
    assert tables["an2i"].columns["pixels"].shape[1:] == (30, 32)
    assert tables["an2i"].columns["pixels-medium"].shape[1:] == (60, 64)


@needs_public_data
def test_heart_disease_has_four_hospitals_and_partial_labels():
    tables = open_all("heart_disease")
    sizes = {name: len(table) for name, table in tables.items()}
    assert sizes == {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
    assert filled(tables, "severity") == 920 - 294
    assert filled({"hungarian": tables["hungarian"]}, "severity") == 0


@needs_public_data
def test_heart_disease_keeps_flamby_s_740_rows_in_flamby_s_split():
    experiment = load_experiment("heart-disease-flamby", ["data.validation=0.0"])
    source = open_clients(experiment)
    clients = encode_all([source.read(name) for name in source.names], experiment)
    assert {c.name: (len(c.train), len(c.splits["test"])) for c in clients} == {
        "cleveland": (199, 104),
        "hungarian": (172, 89),
        "switzerland": (30, 16),
        "va": (85, 45),
    }


@needs_public_data
def test_communities_are_those_of_48_states_with_gaps_in_the_labels():
    tables = open_all("communities_crime")
    assert (len(tables), sum(map(len, tables.values()))) == (48, 2215)
    missing = {
        column: 2215 - filled(tables, column)
        for column in ("rapesPerPop", "ViolentCrimesPerPop", "nonViolPerPop", "arsonsPerPop")
    }
    assert list(missing.values()) == [208, 221, 97, 91]
    assert filled({"IL": tables["IL"]}, "rapesPerPop") == 0


@needs_public_data
def test_communities_of_34_states_take_part_and_no_crime_is_a_feature():
    experiment = load_experiment("communities-crime")
    source = open_clients(experiment)
    told = [describe(source.read(name), experiment) for name in source.names]
    taking_part = [d for d in told if not d.left_out]
    assert len(taking_part) == 34
    assert sum(sum(d.examples.values()) for d in taking_part) == 2116
    agreement = agree(told, experiment)
    assert len(agreement.columns["census"]) == 102
    columns = list(source.read("NJ").columns)
    assert not set(columns[columns.index("murders") :]) & set(agreement.columns["census"])
    data = encode(source.read("IL"), experiment, agreement)
    assert "rape" not in data.tasks


@needs_public_data
def test_mnist_is_complete():
    (mnist,) = open_all("mnist").values()
    split = mnist.columns["mnist-split"]
    assert mnist.columns["pixels"].shape == (70000, 28, 28)
    ones = {part: int((mnist.columns["digit"][split == part] == 1).sum()) for part in set(split)}
    assert ones == {"train": 6742, "test": 1135}  # as published
    assert mnist.columns["ink"][split == "train"].mean() == pytest.approx(0.1307, abs=1e-4)


@needs_public_data
def test_no_digit_is_in_two_pairs():
    (pairs,) = open_all("mnist_pairs").values()
    (single,) = open_all("mnist").values()
    assert pairs.columns["pixels"].shape == (35000, 28, 56)
    both = np.concatenate([pairs.columns["left"], pairs.columns["right"]])
    assert (np.bincount(both) == np.bincount(single.columns["digit"])).all()
    ink = pairs.columns["pixels"].astype(np.uint64).sum()
    assert ink == single.columns["pixels"].astype(np.uint64).sum()


@pytest.mark.parametrize(("mark", "word"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_csv_with_another_separator_is_told_so(tmp_path, mark, word):
    rows = [["x", "t"], ["1,5", "2"], ["2,5", "3"]]  # decimal commas, as spreadsheets save them
    (tmp_path / "a.csv").write_text("".join(mark.join(row) + "\n" for row in rows))
    source = open_source(Data(source="folder", path=str(tmp_path)))
    with pytest.raises(
        DataError, match=f"'a.csv': its cells must be separated by commas, got {word}"
    ):
        source.read("a")


@needs_public_data
def test_turned_digits_are_turned():
    tables = open_all("mnist_rotated")
    (single,) = open_all("mnist").values()
    upright = single.columns["pixels"][2]  # the first of the third client
    assert list(tables) == ["turned-000", "turned-090", "turned-180", "turned-270"]
    assert (tables["turned-180"].columns["pixels"][0] == upright[::-1, ::-1]).all()


@needs_public_data
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(known_experiments()))
def test_every_known_experiment_can_be_encoded(name):
    experiment = load_experiment(name)
    source = open_clients(experiment)
    tables = {client: source.read(client) for client in source.names}
    told = [describe(table, experiment) for table in tables.values()]
    agreement = agree(told, experiment)
    for description in told:
        if not description.left_out:
            data = encode(tables[description.client], experiment, agreement)
            assert len(data.train)
            for rows in data.splits.values():
                assert all(x.isfinite().all() for x in rows.inputs.values())
                assert all(y.isfinite().all() for y in rows.targets.values())
