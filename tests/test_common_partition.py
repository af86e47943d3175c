import subprocess
import sys

import numpy as np
import pytest

from common.clients import open_clients
from common.errors import ConfigError, DataError
from common.experiment_file import load_experiment
from common.partition import partition_rows, pool_tables, tasks_held
from common.sections.rows import Partition
from common.seeding import numpy_generator
from common.tables import TableSource
from tests.raw_tables import plan, table, text

LABELS = np.arange(200) % 5
KINDS = {
    "iid": Partition(kind="iid", clients=7),
    "natural": Partition(kind="natural", by="y"),
    "dirichlet": Partition(kind="dirichlet", by="y", clients=4, alpha=1.0),
    "pathological": Partition(kind="pathological", by="y", clients=5, classes_per_client=2),
}


@pytest.fixture(params=KINDS)
def partition(request):
    return KINDS[request.param]


def dealt(partition, seed=0, labels=LABELS):
    return partition_rows(table(y=labels), partition, seed)


def test_every_row_goes_to_exactly_one_client(partition):
    rows = np.concatenate(list(dealt(partition).values()))
    assert sorted(rows) == list(range(200))


def test_one_seed_deals_the_same_rows_again(partition):
    first, second = dealt(partition, seed=3), dealt(partition, seed=3)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological"])
def test_another_seed_deals_other_rows(kind):
    first, second = dealt(KINDS[kind], seed=0), dealt(KINDS[kind], seed=1)
    assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_names_are_padded_so_that_they_sort():
    assert list(dealt(KINDS["iid"]))[:2] == ["client-000", "client-001"]


def test_natural_clients_bear_the_names_in_their_column_in_natural_order():
    assert list(dealt(KINDS["natural"], labels=np.array([10, 2, 10, 1]))) == ["1", "2", "10"]


def test_pathological_clients_hold_so_many_classes():
    parts = dealt(KINDS["pathological"])
    assert {len(set(LABELS[rows])) for rows in parts.values()} == {2}


def test_dirichlet_clients_get_the_rows_that_they_need():
    parts = partition_rows(table(y=LABELS), KINDS["dirichlet"], 0, min_rows=20)
    assert min(map(len, parts.values())) >= 20


def test_iid_and_natural_are_those_of_flwr_datasets():
    from datasets import Dataset
    from flwr_datasets.partitioner import IidPartitioner, NaturalIdPartitioner

    rows = Dataset.from_dict({"row": np.arange(200), "y": [str(y) for y in LABELS]})
    order = numpy_generator(0, "partition").permutation(200)
    for theirs, ours, data in (
        (IidPartitioner(7), KINDS["iid"], rows.select(order)),
        (NaturalIdPartitioner("y"), KINDS["natural"], rows),
    ):
        theirs.dataset = data
        for i, part in enumerate(dealt(ours).values()):
            assert sorted(theirs.load_partition(i)["row"]) == part.tolist()


@pytest.mark.slow
def test_another_process_deals_the_same_rows():
    code = (
        "from tests.test_common_partition import *;"
        "print([rows.tolist() for rows in dealt(KINDS['dirichlet']).values()])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [rows.tolist() for rows in dealt(KINDS["dirichlet"]).values()]
    assert other.stdout.strip() == str(ours)


def test_rotating_skew_gives_every_client_the_next_task():
    tasks = {name: {"kind": "regression"} for name in "abc"}
    experiment = plan(tasks=tasks, partition={"task-skew": "rotate", "tasks-per-client": 2})
    held = [sorted(tasks_held(experiment, "any", i)) for i in range(3)]
    assert held == [["a", "b"], ["b", "c"], ["a", "c"]]


def test_random_skew_depends_on_the_client_name_not_on_its_position():
    tasks = {name: {"kind": "regression"} for name in "abcdef"}
    experiment = plan(tasks=tasks, partition={"task-skew": "random", "tasks-per-client": 3})
    assert tasks_held(experiment, "k", 0) == tasks_held(experiment, "k", 5)
    assert len({tasks_held(experiment, str(i), 0) for i in range(10)}) > 1


def test_a_client_lacks_the_columns_of_tasks_that_it_does_not_hold():
    experiment = load_experiment("digits", ["partition.task-skew=rotate"])
    source = open_clients(experiment)
    held = [set(source.read(name).columns) - {"pixels"} for name in source.names[:4]]
    assert held == [{"digit"}, {"parity"}, {"ink"}, {"digit"}]


def test_only_the_chosen_clients_take_part_with_the_rows_they_would_have():
    everyone = open_clients(load_experiment("digits"))
    chosen = open_clients(load_experiment("digits", ['data.clients=["client-007"]']))
    assert chosen.names == ("client-007",)
    ours, theirs = chosen.read("client-007"), everyone.read("client-007")
    assert np.array_equal(ours.columns["pixels"], theirs.columns["pixels"])


def test_pooling_leaves_cells_empty_where_a_client_lacks_a_column():
    tables = {"a": table("a", rows=2, z=text("u", "v")), "b": table("b", rows=1)}
    pooled = pool_tables(TableSource(("a", "b"), tables.__getitem__))
    assert pooled.columns["x1"].tolist() == [0.0, 1.0, 0.0]
    assert pooled.columns["z"].tolist() == ["u", "v", None]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"kind": "iid", "clients": 201}, ConfigError, "at most 200, the number of rows, got 201"),
        (
            {"kind": "dirichlet", "by": "y", "clients": 90, "alpha": 0.01},
            ConfigError,
            "no Dirichlet draw with alpha 0.01",
        ),
        (
            {"kind": "pathological", "by": "y", "classes_per_client": 6},
            ConfigError,
            "6 classes each cannot be dealt from 5 classes",
        ),
        ({"kind": "natural", "by": "town"}, DataError, "names column 'town', which the data lacks"),
        ({"kind": "natural", "by": "gap"}, DataError, "filled in every row, got 1 empty cells"),
    ],
)
def test_what_cannot_be_dealt_is_said_in_a_line(settings, error, words):
    raw = table(y=LABELS, gap=text(None, *["a"] * 199))
    with pytest.raises(error, match=words):
        partition_rows(raw, Partition(**settings), 0)


def test_a_client_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"data\.clients.*'nobody'; there are 10: 'client-000'"):
        open_clients(load_experiment("digits", ['data.clients=["nobody"]']))


@pytest.mark.slow
def test_the_default_experiment_opens_without_the_slow_imports():
    code = (
        "import sys; from common.clients import open_clients;"
        "from common.experiment_file import load_experiment;"
        "open_clients(load_experiment('digits'));"
        "assert not {'datasets', 'flwr_datasets'} & set(sys.modules), 'slow'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
