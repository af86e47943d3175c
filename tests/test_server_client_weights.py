"""How much a client counts: by its rows, alike, or by its labelled rows task by task."""

import numpy as np
import pytest

from common.agreement import Description
from common.wire import pack_arrays
from server.aggregation.mean import Mean
from server.aggregation.server_optimisers import FedAvgM
from server.bulk import BulkReplies
from server.client_weights import ClientWeights
from server.roster import Roster
from server.strategy import TrunkStrategy
from server.sums import SumTable
from tests.conftest import make_experiment

LABELLED = {"anna": {"kind": 1, "flag": 1}, "bert": {"kind": 5, "flag": 1}, "cleo": {"kind": 8}}
SENT = {
    "trunk.w": np.zeros(1, np.float32),
    "trunk.task-kind.w": np.zeros(1, np.float32),
    "trunk.task-flag.w": np.zeros(1, np.float32),
    "trunk.task-size.w": np.full(1, 0.7, np.float32),
}
ROWS = np.array([[8, 14, 4, 100], [0, 0, 8, 200], [16, 7, 300, 400]], np.float32)


def roster_for(labelled, **federation):
    experiment = make_experiment(federation=federation)
    described = {name: Description(client=name, labelled=held) for name, held in labelled.items()}
    return Roster(experiment, {name: i for i, name in enumerate(labelled)}, described)


def weights_for(weight_by, labelled=LABELLED):
    return ClientWeights(weight_by, roster_for(labelled))


@pytest.mark.parametrize(
    ("weight_by", "common", "flag"),
    [
        ("examples", [10, 20, 30], [10, 20, 0]),
        ("uniform", [1, 1, 1], [1, 1, 0]),
        ("labelled", [2, 6, 8], [1, 1, 0]),
    ],
)
def test_clients_count_as_asked_for(weight_by, common, flag):
    weights, names = weights_for(weight_by), list(LABELLED)
    counts = weights.of(names, np.array([10, 20, 30]))
    assert counts.tolist() == common
    assert weights.of_task("flag", names, counts).tolist() == flag


@pytest.mark.parametrize("claimed", [2**70, -5, 0])
def test_nonsense_that_a_client_claims_does_no_harm(claimed):
    weights = weights_for("labelled", {"anna": {"kind": claimed}, "bert": {"kind": 3}})
    counts = weights.of(["anna", "bert"], np.array([1, 1]))
    assert counts.min() >= 1
    assert counts.sum() > 0


class OtherRule(Mean):
    is_mean = False


@pytest.mark.parametrize("kind", [Mean, OtherRule])
def test_by_labelled_rows_every_task_decides_its_own_parts(kind):
    roster = roster_for(LABELLED, **{"weight-by": "labelled"})
    rule = kind(Mean.Options(), roster.experiment)
    strategy = TrunkStrategy(rule, roster.experiment, roster, pack_arrays(SENT))
    names = list(LABELLED)
    replies = BulkReplies(names, np.array([1, 1, 98]), SumTable(names, {}), ROWS)
    trunk = strategy.combine(1, SENT, replies)
    assert trunk["trunk.w"].tolist() == [(2 * 8 + 6 * 0 + 8 * 16) / 16]
    np.testing.assert_allclose(trunk["trunk.task-kind.w"], [(14 + 5 * 0 + 8 * 7) / 14])
    assert trunk["trunk.task-flag.w"].tolist() == [6]  # anna and bert alike
    assert trunk["trunk.task-size.w"].tobytes() == SENT["trunk.task-size.w"].tobytes()


def test_by_labelled_rows_a_servers_optimiser_follows_the_same_mean():
    roster = roster_for(LABELLED, **{"weight-by": "labelled"})
    rule = FedAvgM(FedAvgM.Options(), roster.experiment)
    strategy = TrunkStrategy(rule, roster.experiment, roster, pack_arrays(SENT))
    names = list(LABELLED)
    replies = BulkReplies(names, np.array([1, 1, 98]), SumTable(names, {}), ROWS)
    trunk = strategy.combine(1, SENT, replies)  # the first step is the mean's
    np.testing.assert_allclose(trunk["trunk.w"], [9], rtol=1e-6)
    np.testing.assert_allclose(trunk["trunk.task-kind.w"], [5], rtol=1e-6)
