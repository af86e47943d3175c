"""Laws that a rule keeps on arrival in the table, unless it is meant to break one, and says why."""

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file, save_file

from common.agreement import Description
from common.errors import CheckpointError
from common.strategies import STRATEGIES
from common.wire import pack_arrays, pack_sums, unpack_arrays
from server.bulk import BulkReplies
from server.roster import Roster
from server.strategy import make_strategy
from server.sums import SumTable
from tests.updates import experiment_for, rule_for, updates_of

CLIENTS = [f"client-{k}" for k in range(9)]
TASKS = ["digit", "parity", "ink"]
# What a rule needs beside its name to be itself, and for what it does to be seen in the numbers.
ADAPTIVE = {"eta": 1.0, "tau": 1.0}
OPTIONS = {
    "fedadam": {**ADAPTIVE, "beta_2": 0.5},
    "fedyogi": {**ADAPTIVE, "beta_2": 0.5},
    "fedadagrad": ADAPTIVE,
    "qfedavg": {"q": 1.0, "client_learning_rate": 1.0},
    "krum": {"num_malicious_nodes": 1},
    "multikrum": {"num_malicious_nodes": 1},
    "bulyan": {"num_malicious_nodes": 1},
    "clustered": {"every": 2},
}

MOMENTUM = "it goes on in the direction of earlier rounds"
ADAPTS = "it divides the mean update by the size that updates have had"
IDENTICAL = {  # these do not give back one update that all clients send, two rounds running
    "fedavgm": MOMENTUM,
    "fedadam": ADAPTS,
    "fedyogi": ADAPTS,
    "fedadagrad": ADAPTS,
    "qfedavg": "it shortens long updates, the more the larger q is, lest a step overshoot",
}
ZERO = {"fedavgm": MOMENTUM, "fedadam": MOMENTUM, "fedyogi": MOMENTUM}
BY_RANK = "it goes by the order of values or distances, which is not linear in them"
UNBIASED = {  # with these, the mean over all who might drop out is not what all together give
    "fedadam": ADAPTS,
    "fedyogi": ADAPTS,
    "fedadagrad": ADAPTS,
    "qfedavg": "losses and lengths of those who are there are in the denominator",
    "median": BY_RANK,
    "trimmed-mean": BY_RANK,
    "krum": BY_RANK,
    "multikrum": BY_RANK,
    "bulyan": BY_RANK,
    "conflict-averse": "it weighs updates by the conflicts among those who are there",
}


def kept_by(broken):
    return [name for name in STRATEGIES if name not in broken]


def fresh(strategy):
    return rule_for(strategy, **OPTIONS.get(strategy, {}))


def drawn(seed, order=None, size=5, **more):
    """A round of nine clients that agree by and large; rows in any order of the clients."""
    rng = np.random.default_rng(seed)
    order = list(range(len(CLIENTS))) if order is None else list(order)
    steps = rng.normal(size=(len(CLIENTS), size)) + 2
    given = {
        "weights": rng.integers(1, 9, len(CLIENTS)).astype(float),
        "labelled": rng.integers(1, 9, (len(CLIENTS), len(TASKS))),
        "losses": rng.uniform(0.5, 2, len(CLIENTS)),
    }
    chosen = {name: values[order].tolist() for name, values in given.items()}
    names = [CLIENTS[k] for k in order]
    given = {"before": 7, **chosen, **more}
    return updates_of(steps[order].tolist(), clients=names, **given)


def alike(step, number, before):
    """A round in which all clients send one update."""
    count = len(CLIENTS)
    return updates_of(
        [step] * count, clients=CLIENTS, round=number, before=before, losses=[1.0] * count
    )


def after_twice(strategy, step):
    """What comes back when all send one update in two rounds, each minus the trunk sent."""
    rule, before, moved = fresh(strategy), np.full(3, 7, np.float32), []
    for number in (1, 2):
        following = rule.combine(alike(step, number, before))
        moved.append(following - before)
        before = following
    return np.array(moved)


STEP = [0.5, -1.0, 2.0]


@pytest.mark.parametrize("strategy", kept_by(IDENTICAL))
def test_identical_updates_come_back_unchanged(strategy):
    np.testing.assert_allclose(after_twice(strategy, STEP), [STEP, STEP], rtol=1e-5)


@pytest.mark.parametrize("strategy", IDENTICAL)
def test_identical_updates_do_not_come_back_where_that_is_meant(strategy):
    assert not np.allclose(after_twice(strategy, STEP), [STEP, STEP], rtol=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_clients_is_irrelevant(strategy):
    order = [4, 8, 0, 2, 7, 1, 6, 3, 5]
    one, other = fresh(strategy), fresh(strategy)
    for seed in (1, 2):
        there = one.combine(drawn(seed, round=seed))
        back = other.combine(drawn(seed, order, round=seed))
        np.testing.assert_allclose(there, back, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_columns_in_another_order_give_the_same_in_that_order(strategy):
    """No rule of the table goes by layers; one that does is to be listed, with the reason."""
    order = np.array([3, 0, 4, 2, 1])
    one, other = fresh(strategy), fresh(strategy)
    for seed in (1, 2):
        updates = drawn(seed, round=seed)
        moved = replace(updates, rows=updates.rows[:, order], before=updates.before[order])
        there, back = one.combine(updates), other.combine(moved)
        np.testing.assert_allclose(there[order], back, rtol=1e-5)


def after_rest(strategy):
    """How far the trunk moves in a round of zero updates, after one in which it moved."""
    rule = fresh(strategy)
    moved = rule.combine(drawn(3, size=3))
    return rule.combine(alike([0.0] * 3, 2, moved)) - moved


@pytest.mark.parametrize("strategy", kept_by(ZERO))
def test_zero_updates_leave_the_trunk(strategy):
    np.testing.assert_allclose(after_rest(strategy), 0, atol=1e-6)


@pytest.mark.parametrize("strategy", ZERO)
def test_zero_updates_do_not_stop_what_is_meant_to_go_on(strategy):
    assert np.abs(after_rest(strategy)).min() > 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_round_changes_nothing_of_what_it_is_given(strategy):
    updates = drawn(4)
    before, rows = updates.before.copy(), updates.rows.copy()
    fresh(strategy).combine(updates)
    np.testing.assert_array_equal(updates.before, before)
    np.testing.assert_array_equal(updates.rows, rows)


def keep(rule, path):
    """Write and read a rule's state, as the checkpoint does."""
    state = rule.state()
    if state:
        save_file(dict(state), path)
    return load_file(path) if state else {}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rule_that_was_resumed_goes_on_as_one_that_never_stopped(strategy, tmp_path):
    whole, resumed = fresh(strategy), fresh(strategy)
    whole.combine(drawn(5, round=1))
    resumed.restore(keep(whole, tmp_path / "state"))
    for number in (2, 3, 4):
        there = whole.combine(drawn(number, round=number))
        back = resumed.combine(drawn(number, round=number))
        np.testing.assert_array_equal(there, back)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "clustered"])
def test_what_is_remembered_matters(strategy):
    whole, forgetful = fresh(strategy), fresh(strategy)
    whole.combine(drawn(5, round=1))
    there = whole.combine(drawn(2, round=2, before=0))
    assert not np.allclose(there, forgetful.combine(drawn(2, round=2, before=0)), rtol=1e-3)


def bias(strategy):
    """Let every two of nine clients drop out in turn: the mean outcome less that of all.

    The clients count alike, so that a mean of those who are left is the mean of all, on average
    over who drops out. Where they count by rows it is a ratio of two random sums, and is not.
    """
    rng = np.random.default_rng(6)
    steps, losses = rng.exponential(size=(len(CLIENTS), 4)), rng.uniform(0.5, 2, len(CLIENTS))

    def outcome(there):
        there = list(there)
        names = [CLIENTS[k] for k in there]
        given = {"losses": losses[there].tolist(), "before": 1}
        return fresh(strategy).combine(updates_of(steps[there].tolist(), clients=names, **given))

    everybody = range(len(CLIENTS))
    some = [outcome(there) for there in combinations(everybody, len(CLIENTS) - 2)]
    return np.mean(some, axis=0) - outcome(everybody)


@pytest.mark.parametrize("strategy", kept_by(UNBIASED))
def test_dropouts_do_not_bias_the_mean(strategy):
    np.testing.assert_allclose(bias(strategy), 0, atol=1e-5)


@pytest.mark.parametrize("strategy", UNBIASED)
def test_dropouts_bias_what_is_no_mean(strategy):
    assert np.abs(bias(strategy)).max() > 1e-4


# Whole rounds, by messages and in bulk.

SENT = {
    "trunk.w": np.full(3, 7, np.float32),
    "trunk.task-ink.w": np.array([0.1, 0.7], np.float32),  # nobody holds it
    "trunk.task-parity.w": np.ones(2, np.float32),
}
WIDTH = sum(array.size for array in SENT.values())
COUNTS = np.arange(1, len(CLIENTS) + 1)


@pytest.fixture(autouse=True)
def task_identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def strategy_for(name, holders=9):
    """A strategy over nine clients, of which the first so many hold the task of parity."""
    experiment = experiment_for(name, options=OPTIONS.get(name, {}))
    described = {
        client: Description(client=client, labelled={"digit": 5, "parity": 4 * (place < holders)})
        for place, client in enumerate(CLIENTS)
    }
    nodes = {client: 10 + k for k, client in enumerate(CLIENTS)}
    roster = Roster(experiment, nodes, described)
    roster._by_id = {node: client for client, node in nodes.items()}
    return make_strategy(experiment, roster, pack_arrays(SENT))


def rows_of(seed):
    return (np.random.default_rng(seed).normal(size=(len(CLIENTS), WIDTH)) + 8).astype(np.float32)


def sums_of(place):
    return {"train": {"digit": {"loss": [4.0 + place, 4.0]}}}


def by_messages(strategy, number, trunk, rows, clients):
    list(strategy.configure_train(number, pack_arrays(trunk), ConfigRecord(), None))
    replies = []
    for place, (name, row) in enumerate(zip(CLIENTS, rows, strict=True)):
        if name not in clients:
            continue
        asked = Message(RecordDict(), strategy.roster.node_ids[name], "train")
        arrays, start = {}, 0
        for key, array in SENT.items():
            arrays[key] = row[start : start + array.size].reshape(array.shape)
            start += array.size
        metrics = pack_sums(int(COUNTS[place]), sums_of(place))
        content = {"arrays": pack_arrays(arrays), "metrics": metrics}
        replies.append(Message(RecordDict(content), reply_to=asked))
    combined, _ = strategy.aggregate_train(number, replies)
    return None if combined is None else unpack_arrays(combined)


def in_bulk(strategy, number, trunk, rows, clients):
    there = [place for place, name in enumerate(CLIENTS) if name in clients]
    names = [CLIENTS[place] for place in there]
    strategy.address_train(names, trunk)
    sums = SumTable.of({CLIENTS[place]: sums_of(place) for place in there})
    return strategy.combine(number, trunk, BulkReplies(names, COUNTS[there], sums, rows[there]))


WAYS = pytest.mark.parametrize("way", [by_messages, in_bulk])


@WAYS
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_reply_that_is_no_number_does_not_change_the_rest(strategy, way):
    poisoned = rows_of(1)
    poisoned[4, 2] = np.nan
    faulty, without = strategy_for(strategy), strategy_for(strategy)
    others = [name for name in CLIENTS if name != "client-4"]
    there = way(faulty, 1, SENT, poisoned, CLIENTS)
    back = way(without, 1, SENT, rows_of(1), others)
    assert list(faulty.last.left_out) == ["client-4"]
    for name in SENT:
        np.testing.assert_array_equal(there[name], back[name])


@WAYS
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_parts_of_a_task_that_nobody_holds_stay(strategy, way):
    found, trunk = strategy_for(strategy), SENT
    for number in (1, 2):
        trunk = way(found, number, trunk, rows_of(number), CLIENTS)
        assert trunk["trunk.task-ink.w"].tobytes() == SENT["trunk.task-ink.w"].tobytes()
        assert not np.array_equal(trunk["trunk.w"], SENT["trunk.w"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_messages_and_rows_come_to_the_same(strategy):
    one, other = strategy_for(strategy), strategy_for(strategy)
    there = by_messages(one, 1, SENT, rows_of(1), CLIENTS)
    back = in_bulk(other, 1, SENT, rows_of(1), CLIENTS)
    for name in SENT:
        np.testing.assert_array_equal(there[name], back[name])


ROBUST = [name for name, method in STRATEGIES.items() if method.load().is_robust]


def parity_after_an_attack(strategy, way):
    """A task's part where one of three holders is hostile, and the bounds of the honest ones."""
    rows = rows_of(1)
    rows[1] = 1000
    found = way(strategy_for(strategy, holders=3), 1, SENT, rows, CLIENTS)["trunk.task-parity.w"]
    honest = rows[[0, 2], 5:]
    return found, honest.min(axis=0), honest.max(axis=0)


@WAYS
@pytest.mark.parametrize("strategy", ROBUST)
def test_one_of_three_holders_cannot_drag_their_tasks_part_away(strategy, way):
    found, lowest, highest = parity_after_an_attack(strategy, way)
    assert (lowest - 1e-5 <= found).all()
    assert (found <= highest + 1e-5).all()


@WAYS
def test_one_of_three_holders_drags_the_mean_away(way):
    found, _, highest = parity_after_an_attack("fedavg", way)
    assert (found > highest + 100).all()


@WAYS
def test_as_many_replies_without_numbers_as_may_be_hostile_do_not_stop_a_robust_rule(way):
    """Seven clients, f = 1: six usable replies are fewer than 4 f + 3, and none of them hostile."""
    rows, seven = rows_of(1), CLIENTS[:7]
    rows[4] = np.nan
    strategy = strategy_for("bulyan")
    found = way(strategy, 1, SENT, rows, seven)["trunk.w"]
    np.testing.assert_allclose(found, rows[[0, 1, 2, 3, 5, 6], :3].mean(axis=0), rtol=1e-5)


@WAYS
def test_more_replies_without_numbers_than_may_be_hostile_stop_it(way):
    rows, seven = rows_of(1), CLIENTS[:7]
    rows[4:6] = np.nan
    strategy = strategy_for("bulyan")
    assert way(strategy, 1, SENT, rows, seven) is None
    assert strategy.last.loss == "strategy 'bulyan' needs 7 replies, 5 are usable"


def test_a_client_that_does_not_answer_is_none_of_the_hostile():
    strategy = strategy_for("bulyan")
    assert by_messages(strategy, 1, SENT, rows_of(1), CLIENTS[:6]) is None


def test_neither_a_refusal_nor_a_stranger_is_a_faulty_reply():
    strategy = strategy_for("bulyan")
    refusal = Message(Error(code=100, reason="no"), reply_to=Message(RecordDict(), 10, "train"))
    stranger = Message(RecordDict(), reply_to=Message(RecordDict(), 99, "train"))
    strategy.aggregate_train(1, [refusal, stranger])
    assert len(strategy.last.left_out) == 2
    assert not strategy.last.faulty


REMEMBER = ["fedavg", "fedavgm", "fedadam", "clustered"]


OTHERS = [pair for pair in permutations(REMEMBER, 2) if pair[1] != "fedavg"]


@pytest.mark.parametrize(("strategy", "other"), OTHERS)
def test_another_strategys_memory_is_refused_in_a_line(strategy, other):
    rule = strategy_for(other)
    by_messages(rule, 1, SENT, rows_of(1), CLIENTS)
    rule.next.affinity.rounds = 0  # the rule's own memory alone
    with pytest.raises(CheckpointError, match=f"strategy '{strategy}' cannot go on from"):
        strategy_for(strategy).restore(rule.state())
