"""What travels beside the model, and a trunk of nothing: no rule sees them, and both ways agree."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.errors import ShapeError
from common.strategies import STRATEGIES
from common.wire import Instruction, pack_arrays, pack_sums, unpack_arrays
from server.aggregation.mean import Mean
from server.aggregation.rule import Rule
from server.bulk import BulkReplies
from server.exchange import BulkExchange
from server.flat_trunk import FlatTrunk
from server.roster import Roster
from server.strategy import TrunkStrategy
from server.sums import SumTable
from tests.conftest import make_experiment

NODES = {"anna": 31, "bert": 7, "cleo": 15, "dora": 4}
SENT = {
    "trunk.w": np.array([1, 1], np.float32),
    "trunk.b": np.array([1], np.float32),
    "control.trunk.w": np.array([10, 20], np.float32),
    "control.trunk.b": np.array([30], np.float32),
}
ROWS = np.array([[0, 4, 1, 10, 24, 30], [4, 0, 1, 14, 20, 30]], np.float32)


class Highest(Rule):
    """A rule that is no mean."""

    def combine(self, updates):
        self.seen = updates
        return updates.rows.max(axis=0)


@pytest.fixture(autouse=True)
def task_identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def strategy_for(sent, kind=Highest, **tables):
    experiment = make_experiment(**tables)
    roster = Roster(experiment, dict(NODES))
    roster._by_id = {node_id: name for name, node_id in NODES.items()}
    return TrunkStrategy(kind(Rule.Options(), experiment), experiment, roster, pack_arrays(sent))


def by_messages(strategy, sent, rows, sums=None):
    list(strategy.configure_train(1, pack_arrays(sent), ConfigRecord(), None))
    replies = []
    for name, row in zip(NODES, rows, strict=False):
        asked = Message(RecordDict(), NODES[name], "train")
        arrays = pack_arrays(strategy.form.cut(row))
        content = {"arrays": arrays, "metrics": pack_sums(5, (sums or {}).get(name, {}))}
        replies.append(Message(RecordDict(content), reply_to=asked))
    found, _ = strategy.aggregate_train(1, replies)
    return None if found is None else unpack_arrays(found)


def in_bulk(strategy, sent, rows, sums=None):
    names = list(NODES)[: len(rows)]
    strategy.address_train(names, sent)
    table = SumTable.of({name: (sums or {}).get(name, {}) for name in names})
    return strategy.combine(1, sent, BulkReplies(names, np.full(len(rows), 5), table, rows))


WAYS = pytest.mark.parametrize("way", [by_messages, in_bulk])


@WAYS
def test_control_variates_move_by_the_share_of_clients_that_answered(way):
    strategy = strategy_for(SENT)
    found = way(strategy, SENT, ROWS)
    assert list(found) == list(SENT)
    assert found["trunk.w"].tolist() == [4, 4]
    # Two of four answered: c + 2/4 * mean of (0, 4) and (4, 0) and nothing.
    assert found["control.trunk.w"].tolist() == [11, 21]
    assert found["control.trunk.b"].tolist() == [30]
    assert strategy.rule.seen.rows.shape == (2, 3)
    assert list(strategy.rule.seen.columns) == ["trunk.w", "trunk.b"]


@WAYS
def test_control_variates_count_all_clients_alike(way):
    strategy = strategy_for(SENT, Mean)
    assert way(strategy, SENT, ROWS)["control.trunk.w"].tolist() == [11, 21]


def test_control_variates_stand_behind_the_model():
    with pytest.raises(ShapeError, match=r"trunk\.w must stand before"):
        FlatTrunk(pack_arrays({"control.trunk.w": np.zeros(1), "trunk.w": np.zeros(1)}))


# Clients that train before they evaluate need what they train with.
EVALUATED = pytest.mark.parametrize(
    ("model", "names"), [("shared", ["trunk.w", "trunk.b"]), ("personal", list(SENT))]
)


@EVALUATED
def test_an_evaluation_sends_no_more_than_it_needs(model, names):
    strategy = strategy_for(SENT, evaluation={"model": model})
    messages = strategy.configure_evaluate(1, pack_arrays(SENT), ConfigRecord(), None)
    assert [list(message.content["arrays"]) for message in messages] == [names] * 4


@EVALUATED
def test_an_engine_evaluates_no_more_than_it_needs(model, names):
    class Engine:
        def evaluate_all(self, clients, trunk, instruction):
            self.sent = trunk
            return BulkReplies(clients, np.full(len(clients), 5), SumTable(clients, {}))

    strategy, engine = strategy_for(SENT, evaluation={"model": model}), Engine()
    outcome = BulkExchange(engine, strategy, strategy.roster).evaluate(SENT, Instruction("{}"))
    assert list(engine.sent) == names
    numbers = sum(SENT[name].size for name in names)
    assert outcome.sent_bytes == 4 * (4 * numbers + Instruction("{}").size_bytes())


@WAYS
@pytest.mark.parametrize("strategy", ["highest", "fedavg", "median", "fedadam", "krum"])
def test_where_nothing_travels_the_next_trunk_is_nothing(way, strategy):
    kind = Highest if strategy == "highest" else STRATEGIES[strategy].load()
    experiment = make_experiment()
    roster = Roster(experiment, dict(NODES), _by_id={i: n for n, i in NODES.items()})
    options = kind.Options()
    empty = TrunkStrategy(kind(options, experiment), experiment, roster, pack_arrays({}))
    assert way(empty, {}, np.empty((3, 0), np.float32)) == {}


@WAYS
def test_a_rule_is_told_the_clients_losses_weighed_over_tasks(way):
    sums = {
        "anna": {"train": {"flag": {"loss": [6.0, 3.0]}, "size": {"loss": [5.0, 1.0]}}},
        "bert": {"train": {"flag": {"loss": [3.0, 3.0]}}},
    }
    strategy = strategy_for(SENT)
    way(strategy, SENT, np.concatenate([ROWS, ROWS[:1]]), sums)
    np.testing.assert_array_equal(strategy.rule.seen.losses, [7.0, 1.0, np.nan])


@WAYS
def test_too_few_replies_for_a_rule_leave_the_trunk_and_are_told(way):
    strategy = strategy_for(SENT)
    strategy.rule.fewest = 3
    assert way(strategy, SENT, ROWS) is None
    assert strategy.last.loss == "strategy 'fedavg' needs 3 replies, 2 are usable"


@WAYS
def test_a_trunk_that_is_no_number_is_not_taken(way):
    class Broken(Rule):
        def combine(self, updates):
            return np.full_like(updates.rows[0], np.inf)

    strategy = strategy_for(SENT, Broken)
    assert way(strategy, SENT, ROWS) is None
    assert "strategy 'fedavg' made NaN or infinity" in strategy.last.loss


LARGEST = np.finfo(np.float32).max


@WAYS
def test_a_mean_that_overflows_is_not_taken(way):
    plain = {name: SENT[name] for name in ("trunk.w", "trunk.b")}
    strategy = strategy_for(plain, Mean)
    strategy.next.affinity.every = 0
    # As shares in single precision these sum to a little more than 1.
    strategy.next.weights.of = lambda clients, examples: np.array([1, 4, 1])
    assert way(strategy, plain, np.full((3, 3), LARGEST, np.float32)) is None
    assert "strategy 'fedavg' made NaN or infinity" in strategy.last.loss


@WAYS
def test_control_variates_that_overflow_stay_and_are_told(way, caplog):
    rows = np.where(np.arange(6) < 3, ROWS, LARGEST).astype(np.float32)
    found = way(strategy_for(SENT), SENT, rows)
    assert found["trunk.w"].tolist() == [4, 4]
    assert found["control.trunk.w"].tolist() == [10, 20]
    assert "the clients' control variates add up to infinity" in caplog.text


@WAYS
def test_what_a_rule_notes_is_told_once(way):
    class Noting(Highest):
        def combine(self, updates):
            self.notes.append("something")
            return super().combine(updates)

    strategy = strategy_for(SENT, Noting)
    for _ in range(2):
        way(strategy, SENT, ROWS)
        assert strategy.last.notes == ["something"]
