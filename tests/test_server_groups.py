"""A rule that keeps one trunk per group: every client is sent its own, whatever the way."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.wire import Instruction, pack_arrays, pack_sums, unpack_arrays
from server.aggregation.rule import Rule
from server.bulk import BulkReplies, ask_groups
from server.exchange import BulkExchange
from server.roster import Roster
from server.strategy import TrunkStrategy
from server.sums import SumTable
from tests.conftest import make_experiment

NODES = {"anna": 31, "bert": 7, "cleo": 15, "dora": 4}
SENT = {"trunk.w": np.zeros(2, np.float32), "control.trunk.w": np.full(2, 9, np.float32)}
OWN = {"anna": [1.0, 1.0], "cleo": [1.0, 1.0], "dora": [5.0, 5.0]}  # bert is new


class TwoTrunks(Rule):
    """Sends anna and cleo one trunk, dora another, and a client that it does not know none."""

    def __init__(self, experiment):
        super().__init__(Rule.Options(), experiment)
        self.trunks = np.array([[1, 1], [5, 5]], np.float32)

    def trunk_of(self, client):
        place = {"anna": 0, "cleo": 0, "dora": 1}.get(client)
        return None if place is None else self.trunks[place]  # a view, new at each call

    def combine(self, updates):
        self.seen = updates
        return updates.rows.mean(axis=0)


class Engine:
    """Adds to every number of a client's trunk its place in the names; one memory for all calls."""

    def __init__(self):
        self.memory, self.calls = np.empty((4, 4), np.float32), []

    def train_all(self, clients, trunk, instruction):
        self.calls.append((list(clients), trunk["trunk.w"].tolist()))
        rows = self.memory[: len(clients)]
        for row, name in zip(rows, clients, strict=True):
            row[:] = np.concatenate(list(trunk.values())) + list(NODES).index(name)
        return self._reply(clients, rows)

    def evaluate_all(self, clients, trunk, instruction):
        self.calls.append((list(clients), trunk["trunk.w"].tolist()))
        assert list(trunk) == ["trunk.w"]
        return self._reply(clients, None)

    def _reply(self, clients, rows):
        # Only anna's group knows of a metric, and each client's sums are its own.
        places = [list(NODES).index(name) for name in clients]
        numbers = {"loss": np.array([[place, 1.0] for place in places])}
        if "anna" in clients:
            numbers["accuracy"] = np.array([[place, 1.0] for place in places])
        return BulkReplies(
            clients, np.array(places) + 1, SumTable(clients, {"train": {"flag": numbers}}), rows
        )


@pytest.fixture(autouse=True)
def task_identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def strategy():
    experiment = make_experiment()
    roster = Roster(experiment, dict(NODES), _by_id={i: n for n, i in NODES.items()})
    return TrunkStrategy(TwoTrunks(experiment), experiment, roster, pack_arrays(SENT))


def sent_by(messages):
    names = {node_id: name for name, node_id in NODES.items()}
    return {
        names[message.metadata.dst_node_id]: unpack_arrays(message.content["arrays"])
        for message in messages
    }


def test_training_messages_carry_the_groups_trunk_and_what_travels_beside_it(strategy):
    messages = list(strategy.configure_train(1, pack_arrays(SENT), ConfigRecord(), None))
    sent = sent_by(messages)
    assert list(sent) == sorted(NODES)
    assert {n: arrays["trunk.w"].tolist() for n, arrays in sent.items()} == {
        **OWN,
        "bert": [0.0, 0.0],
    }
    assert all(arrays["control.trunk.w"].tolist() == [9, 9] for arrays in sent.values())
    assert len({id(message.content["arrays"]) for message in messages}) >= 3


def test_evaluation_messages_carry_the_groups_model(strategy):
    sent = sent_by(strategy.configure_evaluate(1, pack_arrays(SENT), ConfigRecord(), None))
    assert sent["dora"]["trunk.w"].tolist() == [5, 5]
    assert all(list(arrays) == ["trunk.w"] for arrays in sent.values())


def test_a_rule_sees_each_clients_own_start(strategy):
    list(strategy.configure_train(1, pack_arrays(SENT), ConfigRecord(), None))
    replies = []
    for name in ("dora", "anna", "bert"):
        asked = Message(RecordDict(), NODES[name], "train")
        arrays = pack_arrays(strategy.form.cut(np.array([7, 7, 9, 9], np.float32)))
        content = {"arrays": arrays, "metrics": pack_sums(5, {})}
        replies.append(Message(RecordDict(content), reply_to=asked))
    strategy.aggregate_train(1, replies)
    seen = strategy.rule.seen
    assert seen.clients == ["anna", "bert", "dora"]
    assert seen.before.tolist() == [[1, 1], [0, 0], [5, 5]]
    assert seen.steps.tolist() == [[6, 6], [7, 7], [2, 2]]


def test_an_engine_is_asked_once_per_group_and_replies_are_in_the_order_of_names(strategy):
    engine = Engine()
    outcome = BulkExchange(engine, strategy, strategy.roster).train(SENT, Instruction("{}"))
    assert engine.calls == [
        (["anna", "cleo"], [1, 1]),
        (["bert"], [0, 0]),
        (["dora"], [5, 5]),
    ]
    seen = strategy.rule.seen
    assert seen.clients == ["anna", "bert", "cleo", "dora"]
    assert seen.before[:, 0].tolist() == [1, 0, 1, 5]
    assert seen.steps.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert (seen.weights * 10).tolist() == [1, 2, 3, 4]
    assert seen.losses.tolist() == [0, 1, 2, 3]
    assert outcome.sums.numbers["train"]["flag"]["accuracy"].tolist() == [
        [0, 1], [0, 0], [2, 1], [0, 0],
    ]  # fmt: skip
    # Four trunks of four numbers there and back.
    assert outcome.sent_bytes == 4 * (16 + Instruction("{}", clients=4).size_bytes())


def test_an_engine_evaluates_each_groups_model(strategy):
    engine = Engine()
    outcome = BulkExchange(engine, strategy, strategy.roster).evaluate(SENT, Instruction("{}"))
    assert [trunk for _, trunk in engine.calls] == [[1, 1], [0, 0], [5, 5]]
    assert outcome.sums.clients == list(NODES)


def test_no_group_is_early_as_a_whole(strategy):
    class Slow(Engine):
        def train_all(self, clients, trunk, instruction):
            replies = super().train_all(clients, trunk, instruction)
            return BulkReplies(
                clients, replies.examples, replies.sums, replies.rows, list(clients)[::-1]
            )

    groups = strategy.address_train(["anna", "cleo", "dora"], SENT)
    engine = Slow()
    joined = ask_groups(
        lambda names, sent: engine.train_all(names, sent, None), groups, ["anna", "cleo", "dora"]
    )
    assert joined.arrived == ["cleo", "anna", "dora"]
    assert joined.rows[:, 0].tolist() == [1, 3, 8]
