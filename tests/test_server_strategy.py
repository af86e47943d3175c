"""The strategy: a weighted mean of well-formed trunks, whoever answers first; the rest left out."""

from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.errors import ConfigError
from common.wire import pack_arrays, pack_sums, size_bytes, unpack_arrays
from server.roster import Roster
from server.strategy import make_strategy
from tests.conftest import make_experiment

TRUNK = {"trunk.w": np.zeros(2, np.float32)}
NODES = {"anna": 31, "bert": 7, "cleo": 15}


@pytest.fixture(autouse=True)
def task_identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def strategy_for(**federation):
    experiment = make_experiment(federation=federation)
    roster = Roster(experiment, node_ids=dict(NODES))
    roster._by_id = {node_id: name for name, node_id in NODES.items()}
    return make_strategy(experiment, roster, pack_arrays(TRUNK))


def reply(name, values, examples=1, sums=None, arrays=None, metrics=None):
    asked = Message(RecordDict(), NODES.get(name, 99), "train")
    if arrays is None:
        arrays = pack_arrays({"trunk.w": np.array(values, np.float32)})
    if metrics is None:
        metrics = pack_sums(examples, sums or {})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked)


def aggregate(strategy, replies):
    arrays, _ = strategy.aggregate_train(1, replies)
    return None if arrays is None else unpack_arrays(arrays)["trunk.w"].tolist()


def test_clients_count_in_proportion_to_their_examples():
    replies = [reply("anna", [0, 4], examples=1), reply("bert", [4, 0], examples=3)]
    assert aggregate(strategy_for(), replies) == [3.0, 1.0]  # (0+12)/4, (4+0)/4


def test_clients_count_alike_where_asked_for():
    replies = [reply("anna", [0, 4], examples=1), reply("bert", [4, 0], examples=3)]
    assert aggregate(strategy_for(**{"weight-by": "uniform"}), replies) == [2.0, 2.0]


def test_the_order_of_answers_does_not_change_a_bit():
    rng = np.random.default_rng(0)
    replies = [reply(n, rng.normal(size=2), examples=int(rng.integers(1, 9))) for n in NODES]
    assert aggregate(strategy_for(), replies) == aggregate(strategy_for(), replies[::-1])


def test_clients_may_report_different_tasks():
    strategy = strategy_for()
    sums = {"train": {"flag": {"loss": [1.0, 2.0]}}}
    other = {"train": {"size": {"loss": [3.0, 4.0]}}, "test": {"size": {"loss": [1.0, 1.0]}}}
    aggregate(strategy, [reply("anna", [1, 1], sums=sums), reply("bert", [1, 1], sums=other)])
    assert strategy.last.sums == {"anna": sums, "bert": other}


def bad_array(dtype="float32", shape=(2,), data=b"not an array"):
    return ArrayRecord({"trunk.w": Array(dtype, shape, "numpy.ndarray", data)})


def npy(shape):
    """The bytes of an array that claims a shape, and holds one number."""
    buffer = BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(4)


def archive():
    buffer = BytesIO()
    np.savez(buffer, x=np.ones(2, np.float32))
    return buffer.getvalue()


NO_HEADER = b"\x93NUMPY\x01\x00\xc8\x00" + b"(" * 200
HEAD = pack_arrays({**TRUNK, "heads.task-flag.0.weight": np.zeros(3, np.float32)})
MALFORMED = {
    "extra": ({"arrays": HEAD}, "not the trunk: extra"),
    "missing": ({"arrays": ArrayRecord()}, "not the trunk"),
    "shape": ({"values": [1, 2, 3]}, "has shape"),
    "nan": ({"values": [1, float("nan")]}, "NaN or infinity"),
    "infinite": ({"values": [1, float("inf")]}, "NaN or infinity"),
    "dtype": ({"arrays": pack_arrays({"trunk.w": np.zeros(2)})}, "is float64"),
    "garbage": ({"arrays": bad_array()}, "cannot be read"),
    "archive": ({"arrays": bad_array(data=archive())}, "cannot be read"),
    "larger than memory": ({"arrays": bad_array(data=npy((10**15,)))}, "cannot be read"),
    "larger than numbers": ({"arrays": bad_array(data=npy((10**30,)))}, "cannot be read"),
    "no header": ({"arrays": bad_array(data=NO_HEADER)}, "cannot be read"),
    "no examples": ({"metrics": MetricRecord()}, "num-examples must be"),
    "zero examples": ({"examples": 0}, "num-examples must be"),
    "negative examples": ({"examples": -3}, "num-examples must be"),
    "examples that overflow": ({"examples": 2**63 - 1}, "num-examples must be"),
    "unknown task": ({"sums": {"train": {"x": {"loss": [1.0, 1.0]}}}}, "no such task"),
    "short sums": ({"sums": {"train": {"flag": {"loss": [1.0]}}}}, "1 numbers, expected 2"),
    "no loss": ({"sums": {"train": {"flag": {"accuracy": [1.0, 1.0]}}}}, "loss is missing"),
    "huge sums": ({"sums": {"train": {"flag": {"loss": [1.0, 1.7e308]}}}}, "beyond 1e+100"),
    "negative rows": (
        {"sums": {"train": {"flag": {"loss": [1.0, -1.0]}}}},
        "loss holds a negative",
    ),
    "negative error": (
        {"sums": {"test": {"size": {"loss": [1.0, 1.0], "rmse": [-1.0, 1.0]}}}},
        "rmse holds a negative",
    ),
    "nan sums": ({"sums": {"train": {"flag": {"loss": [float("nan"), 1.0]}}}}, "not finite"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_reply_is_left_out_and_named(case, caplog):
    options, reason = MALFORMED[case]
    strategy = strategy_for()
    bad = reply("bert", **{"values": [9, 9], **options})
    assert aggregate(strategy, [reply("anna", [1, 2]), bad]) == [1.0, 2.0]
    assert reason in strategy.last.left_out["bert"]
    assert "bert" in caplog.text


@pytest.mark.parametrize(("dtype", "shape"), [("evil", (2,)), ("float32", (-2,))])
def test_an_array_that_lies_of_itself_counts_by_its_bytes(dtype, shape):
    assert size_bytes(RecordDict({"arrays": bad_array(dtype, shape)})) == len(b"not an array")


def test_a_refusal_is_told_in_one_printable_line():
    strategy = strategy_for()
    asked = Message(RecordDict(), NODES["bert"], "train")
    words = "full\n2026-01-01 INFO all is well\x1b[2J" + "x" * 5000
    aggregate(strategy, [Message(Error(code=100, reason=words), reply_to=asked)])
    told = strategy.last.left_out["bert"]
    assert told.startswith("full 2026-01-01 INFO all is well?[2Jxx")
    assert len(told) == 1000


def test_a_failing_client_does_not_end_the_round():
    strategy = strategy_for()
    asked = Message(RecordDict(), NODES["bert"], "train")
    failed = Message(Error(code=100, reason="disk full"), reply_to=asked)
    assert aggregate(strategy, [failed, reply("anna", [1, 2])]) == [1.0, 2.0]
    assert strategy.last.left_out == {"bert": "disk full"}


def test_a_second_answer_and_a_stranger_are_left_out():
    strategy = strategy_for()
    replies = [reply("anna", [1, 1]), reply("anna", [5, 5]), reply("zoe", [7, 7])]
    assert aggregate(strategy, replies) == [1.0, 1.0]
    assert "node 99" in strategy.last.left_out


def test_without_a_usable_reply_there_is_no_trunk():
    assert aggregate(strategy_for(), [reply("anna", [np.nan, 0])]) is None


def test_sampling_goes_by_name_whatever_the_node_ids():
    def chosen(nodes, round_number):
        strategy = strategy_for(**{"clients-per-round": 2})
        strategy.roster.node_ids = nodes
        messages = strategy.configure_train(round_number, pack_arrays(TRUNK), ConfigRecord(), None)
        names = {node_id: name for name, node_id in nodes.items()}
        return [names[m.metadata.dst_node_id] for m in messages]

    renumbered = {"cleo": 1, "bert": 2, "anna": 3}
    picks = [chosen(dict(NODES), r) for r in range(1, 9)]
    assert picks == [chosen(renumbered, r) for r in range(1, 9)]
    assert len({tuple(p) for p in picks}) > 1


def test_integer_arrays_keep_their_type():
    experiment = make_experiment()
    roster = Roster(experiment, node_ids={"anna": 31}, _by_id={31: "anna"})
    strategy = make_strategy(experiment, roster, pack_arrays({"trunk.n": np.array([1])}))
    arrays = pack_arrays({"trunk.n": np.array([3])})
    result, _ = strategy.aggregate_train(1, [reply("anna", [], arrays=arrays)])
    assert result["trunk.n"].numpy().dtype == np.int64


def test_fewer_clients_than_a_rule_needs_are_told_before_the_first_round():
    with pytest.raises(ConfigError, match=r"'bulyan'.*needs 7 clients per round, 3 would be asked"):
        strategy_for(strategy="bulyan")
    assert strategy_for(strategy="krum").rule.fewest == 3
