"""A task's parts of the trunk are averaged over the clients that hold the task, and no others."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.agreement import Description
from common.wire import pack_arrays, pack_sums, unpack_arrays
from server.aggregation.mean import Mean
from server.bulk import BulkReplies
from server.roster import Roster
from server.strategy import TrunkStrategy
from server.sums import SumTable
from server.task_parts import TaskParts
from tests.conftest import make_experiment

NODES = {"anna": 31, "bert": 7, "cleo": 15}
HELD = {"anna": ["kind"], "bert": ["kind", "flag"], "cleo": ["kind", "flag"]}
SENT = {
    "trunk.w": np.zeros(1, np.float32),
    "trunk.task-flag.w": np.array([0.1, 0.3], np.float32),
    "trunk.task-kind.w": np.zeros(1, np.float32),
    "trunk.task-size.w": np.array([0.7], np.float32),  # nobody holds it
}
# Each client's trunk, flat. What clients say of tasks that they lack is in the hundreds.
ROWS = np.array([[1, 100, 200, 4, 300], [2, 1, 3, 0, 400], [3, 5, 7, 8, 500]], np.float32)
EXAMPLE_COUNTS = [1, 3, 1]
EXPECTED = {  # by hand
    "trunk.w": [(1 * 1 + 3 * 2 + 1 * 3) / 5],
    "trunk.task-flag.w": [(3 * 1 + 1 * 5) / 4, (3 * 3 + 1 * 7) / 4],
    "trunk.task-kind.w": [(1 * 4 + 3 * 0 + 1 * 8) / 5],
    "trunk.task-size.w": [0.7],
}
EXPECTED_ALIKE = {**EXPECTED, "trunk.w": [2.0], "trunk.task-flag.w": [3.0, 5.0]}
EXPECTED_ALIKE["trunk.task-kind.w"] = [4.0]


class OtherRule(Mean):
    """A rule that is not known to be a plain mean."""

    is_mean = False


@pytest.fixture(autouse=True)
def task_identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def strategy_for(kind, **federation):
    experiment = make_experiment(federation=federation)
    described = {
        name: Description(client=name, labelled=dict.fromkeys(held, 9))
        for name, held in HELD.items()
    }
    roster = Roster(experiment, dict(NODES), described)
    roster._by_id = {node_id: name for name, node_id in NODES.items()}
    return TrunkStrategy(kind(Mean.Options(), experiment), experiment, roster, pack_arrays(SENT))


def by_messages(strategy, rows, clients=tuple(NODES)):
    list(strategy.configure_train(1, pack_arrays(SENT), ConfigRecord(), None))
    replies = []
    for name, count, row in zip(NODES, EXAMPLE_COUNTS, rows, strict=True):
        asked = Message(RecordDict(), NODES[name], "train")
        content = {"arrays": pack_arrays(strategy.form.cut(row)), "metrics": pack_sums(count, {})}
        if name in clients:
            replies.append(Message(RecordDict(content), reply_to=asked))
    return unpack_arrays(strategy.aggregate_train(1, reversed(replies))[0])


def in_bulk(strategy, rows):
    names = list(NODES)
    replies = BulkReplies(names, np.array(EXAMPLE_COUNTS), SumTable(names, {}), rows)
    return strategy.combine(1, SENT, replies)


@pytest.mark.parametrize("way", [by_messages, in_bulk])
@pytest.mark.parametrize("kind", [Mean, OtherRule])
@pytest.mark.parametrize(
    ("weight_by", "expected"), [("examples", EXPECTED), ("uniform", EXPECTED_ALIKE)]
)
def test_a_tasks_parts_are_the_mean_of_its_holders(way, kind, weight_by, expected):
    trunk = way(strategy_for(kind, **{"weight-by": weight_by}), ROWS.copy())
    assert list(trunk) == list(SENT)
    for name, values in expected.items():
        np.testing.assert_allclose(trunk[name], values, rtol=1e-6)
    # Not one bit of a part moves that nobody answered for.
    assert trunk["trunk.task-size.w"].tobytes() == SENT["trunk.task-size.w"].tobytes()


@pytest.mark.parametrize("way", [by_messages, in_bulk])
@pytest.mark.parametrize("kind", [Mean, OtherRule])
def test_a_holder_whose_reply_is_left_out_does_not_count(way, kind):
    rows = ROWS.copy()
    rows[1, 0] = np.nan
    trunk = way(strategy_for(kind), rows)
    np.testing.assert_allclose(trunk["trunk.task-flag.w"], [5, 7], rtol=1e-6)
    np.testing.assert_allclose(trunk["trunk.w"], [2], rtol=1e-6)  # (1 + 3)/2


def test_parts_stay_as_they_were_where_only_others_answer():
    trunk = by_messages(strategy_for(Mean), ROWS, clients=["anna"])
    assert trunk["trunk.task-flag.w"].tobytes() == SENT["trunk.task-flag.w"].tobytes()
    assert trunk["trunk.task-kind.w"] == [4]


def test_heads_that_travel_are_parts_of_their_task():
    columns = {"trunk.w": slice(0, 1), "trunk.task-size.w": slice(1, 3)}
    columns |= {"heads.task-size.w": slice(3, 5), "heads.task-flag.w": slice(5, 6)}
    places = {task: places.tolist() for task, places in TaskParts(columns).columns.items()}
    assert places == {"size": [1, 2, 3, 4], "flag": [5]}
