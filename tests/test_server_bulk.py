"""Trunks that come as rows of one matrix are combined as messages would be."""

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from common.wire import pack_arrays
from server.aggregation.mean import Mean
from server.bulk import BulkReplies
from server.roster import Roster
from server.strategy import TrunkStrategy
from server.sums import SumTable
from tests.conftest import make_experiment

NODES = {"anna": 31, "bert": 7, "cleo": 15}
TRUNK = {"trunk.w": np.zeros((1, 2), np.float32), "trunk.b": np.zeros(1, np.float32)}
ROWS = np.array([[0, 4, 1], [4, 0, 1], [4, 4, 1]], np.float32)


class OtherRule(Mean):
    """A rule that is not known to be a plain mean."""

    is_mean = False


@pytest.fixture(autouse=True)
def task_identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def strategy_for(kind, **federation):
    experiment = make_experiment(federation=federation)
    roster = Roster(experiment, node_ids=dict(NODES))
    roster._by_id = {node_id: name for name, node_id in NODES.items()}
    return TrunkStrategy(kind(Mean.Options(), experiment), experiment, roster, pack_arrays(TRUNK))


def replies(rows, examples):
    clients = list(NODES)
    return BulkReplies(clients, np.array(examples), SumTable(clients, {}), rows)


@pytest.mark.parametrize("kind", [Mean, OtherRule])
def test_rows_are_averaged_by_examples_and_cut_into_the_trunk(kind):
    trunk = strategy_for(kind).combine(1, TRUNK, replies(ROWS, [1, 1, 2]))
    assert trunk["trunk.w"].tolist() == [[3.0, 3.0]]  # (0+4+8)/4, (4+0+8)/4
    assert trunk["trunk.b"].tolist() == [1.0]


@pytest.mark.parametrize("kind", [Mean, OtherRule])
def test_rows_count_alike_where_asked_for(kind):
    strategy = strategy_for(kind, **{"weight-by": "uniform"})
    trunk = strategy.combine(1, TRUNK, replies(ROWS, [1, 1, 100]))
    np.testing.assert_allclose(trunk["trunk.w"], [[8 / 3, 8 / 3]], rtol=1e-6)


@pytest.mark.parametrize("kind", [Mean, OtherRule])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_left_out_and_named(kind, poison, caplog):
    rows = ROWS.copy()
    rows[2, 1] = poison
    strategy = strategy_for(kind)
    trunk = strategy.combine(1, TRUNK, replies(rows, [1, 3, 50]))
    assert trunk["trunk.w"].tolist() == [[3.0, 1.0]]  # (0+12)/4, (4+0)/4
    assert list(strategy.last.left_out) == ["cleo"]
    assert "cleo" in caplog.text


def test_without_a_usable_row_there_is_no_trunk():
    assert strategy_for(Mean).combine(1, TRUNK, replies(np.full((3, 3), np.nan), [1, 1, 1])) is None
