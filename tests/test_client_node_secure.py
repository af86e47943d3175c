"""Secure aggregation on an owner's node: what may leave, and what must not."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.node.dry_run import dry_run
from client.node.guard import guard_reply
from client.node.policy import Policy
from client.node.run import Node
from client.session import close_sessions
from common.errors import PolicyError
from common.experiment_file import load_experiment
from common.secure_aggregation.client import ClientMachine
from common.secure_aggregation.contribution import adds_sums
from common.secure_aggregation.layout import SumsLayout
from common.secure_aggregation.records import (
    KEYS,
    MASKED,
    SECURE,
    SHARES,
    UNMASK,
    pack_dealt,
    pack_keys,
    pack_masked,
    pack_uncovered,
)
from common.wire import CONFIG, Instruction, pack_arrays, pack_sums
from server.federation import federate
from server.run_folder import RunFolder
from simulations.loopback import LoopbackGrid
from simulations.simulate import simulate
from tests.conftest import make_experiment
from tests.secure_rounds import Exchange
from tests.test_client_node_run import FakeTask, HereWorker
from tests.test_simulations_engines import assert_same_trunk

SECRET = b"patient 4711 is ill"
TRUNK = {"trunk.w": np.zeros((2, 3), np.float32)}


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def secure(**privacy):
    return make_experiment(privacy={"secure-aggregation": {"max-norm": 1.0}, **privacy})


def guard(kind, content, experiment=None, **policy):
    experiment = experiment or secure()
    config = Instruction(experiment.model_dump_json(by_alias=True), round=1, clients=3).to_record()
    asked = Message(RecordDict({CONFIG: config, "arrays": pack_arrays(TRUNK)}), 1, kind)
    reply = Message(RecordDict(content), reply_to=asked)
    return guard_reply(asked, reply, Policy.model_validate(policy), experiment).content


def stages():
    """One client's replies, stage by stage."""
    exchange = Exchange(3)
    keys = pack_keys(ClientMachine("x").advertise())
    exchange.meet()
    exchange.deal()
    exchange.cover()
    staying = exchange.server.staying
    uncovered = exchange.clients[1].uncover(staying, exchange.server.sealed_for(1))
    return {
        KEYS: keys,
        SHARES: pack_dealt(exchange.server.dealt[1]),
        UNMASK: pack_uncovered(uncovered),
    }


def masked(experiment, **changes):
    width = 2 * SumsLayout(experiment, trained=True, evaluated=False).width
    update = np.arange(7, dtype=np.uint32)  # six coordinates and a weight
    return pack_masked(**{"update": update, "sums": np.ones(width, np.uint64), **changes})


@pytest.mark.parametrize("kind", [KEYS, SHARES, UNMASK])
def test_stages_pass_as_they_are_and_with_nothing_else(kind):
    record = stages()[kind]
    assert dict(guard(kind, {SECURE: record})[SECURE]) == dict(record)
    for content in (
        {SECURE: ConfigRecord({**record, "rows": SECRET})},
        {SECURE: record, "rows": ConfigRecord({"rows": SECRET})},
        {CONFIG: record},
        {},
    ):
        with pytest.raises(PolicyError) as told:
            guard(kind, content)
        assert SECRET.decode() not in str(told.value)


@pytest.mark.parametrize("kind", [KEYS, SHARES, UNMASK])
def test_values_of_a_stage_have_their_size(kind):
    record = dict(stages()[kind])
    for name, value in record.items():
        if isinstance(value, bytes):
            longer = value + SECRET
        elif value and isinstance(value[0], bytes):
            longer = [*value[1:], value[0] + SECRET]
        elif value:
            longer = [*value, 4711]
        else:
            longer = [SECRET]
        with pytest.raises(PolicyError):
            guard(kind, {SECURE: ConfigRecord({**record, name: longer})})


@pytest.mark.parametrize("kind", [KEYS, SHARES, UNMASK])
def test_stages_are_for_experiments_that_add_securely(kind):
    with pytest.raises(PolicyError, match="only for an experiment that adds securely"):
        guard(kind, {SECURE: stages()[kind]}, make_experiment())


def test_masked_vectors_pass_and_nothing_else_does():
    experiment = secure()
    out = guard("train", {MASKED: masked(experiment)}, experiment)
    assert out[MASKED]["update"].numpy().tolist() == list(range(7))
    trained = {"arrays": pack_arrays(TRUNK), "metrics": pack_sums(3, {})}
    for content in (
        trained,  # the update itself
        {MASKED: masked(experiment), **trained},
        {MASKED: masked(experiment), "metrics": pack_sums(3, {})},
        {MASKED: masked(experiment, update=np.zeros(8, np.uint32))},
        {MASKED: masked(experiment, update=np.zeros(7, np.uint64))},
        {MASKED: pack_arrays(TRUNK)},
        {MASKED: ArrayRecord()},
    ):
        with pytest.raises(PolicyError):
            guard("train", content, experiment)


def test_sums_that_go_openly_go_beside():
    experiment = secure(sums="sent")
    sums = {"train": {"kind": {"loss": [3.0, 20.0]}}}
    content = {
        MASKED: masked(experiment, sums=np.empty(0, np.uint64)),
        "metrics": pack_sums(10, sums),
    }
    out = guard("train", content, experiment)
    assert isinstance(out["metrics"], MetricRecord)
    assert not adds_sums(experiment)


def test_what_the_owner_would_take_out_must_not_be_under_a_mask():
    experiment = secure()
    content = {MASKED: masked(experiment)}
    with pytest.raises(PolicyError, match=r"training-sums must not leave .* set privacy.sums"):
        guard("train", content, experiment, leaves={"allow": ["trunk"]})
    with pytest.raises(PolicyError, match="smallest-group must be 5 or more"):
        guard("train", content, experiment, leaves={"smallest-group": 5})
    large = secure(**{"smallest-group": 5})
    guard("train", {MASKED: masked(large)}, large, leaves={"smallest-group": 5})


def test_a_dry_run_goes_through_all_stages(tmp_path):
    experiment = load_experiment(
        "digits", ["partition.clients=4", "privacy.secure-aggregation.max-norm=1"]
    )
    config = {"client": "client-001", "state": str(tmp_path)}
    found = dry_run(experiment, config, Policy())
    around = [KEYS, SHARES, UNMASK]
    kinds = [exchange.kind for exchange in found.exchanges]
    assert kinds == ["query", KEYS, SHARES, "train", UNMASK, KEYS, SHARES, "evaluate", UNMASK]
    assert not any(exchange.refused for exchange in found.exchanges)
    train = found.exchanges[3]
    assert set(train.leaves) == {"masked update", "masked sums"}
    assert all(exchange.leaves for exchange in found.exchanges if exchange.kind in around)


class NodeGrid(LoopbackGrid):
    """Every client is an owner's node, whose context and messages go through Flower's bytes."""

    def __init__(self, names, folder):
        super().__init__(app, names)
        self.nodes, self.contexts = {}, {}
        for name in names:
            config = f'client="{name}" device="cpu" state="{folder / name}"'
            node = Node(None, ["--insecure", "--node-config", config])
            node._worker = HereWorker()
            self.nodes[name] = node

    def deliver(self, message):
        name = self.name_of(message.metadata.dst_node_id)
        own = message_from_proto(message_to_proto(message))
        task = FakeTask(
            own, {"client": name, "device": "cpu", "state": str(self.nodes[name].state)}
        )
        task.context = self.contexts.get(name, task.context)
        self.nodes[name].answer(task)
        self.contexts[name] = task.context
        (reply,) = task.replies
        if reply.has_error():
            return Message(reply.error, reply_to=message)
        return Message(reply.content, reply_to=message)


@pytest.mark.slow
def test_nodes_with_guards_make_the_run_of_the_engine_and_keep_no_secret(tmp_path):
    settings = load_experiment(
        "digits",
        [
            "data.clients=['client-000','client-001','client-002']",
            "trunk.widths=[8]",
            "federation.rounds=2",
            "privacy.secure-aggregation.max-norm=50",
            "privacy.secure-aggregation.bits=24",
        ],
    )
    names = ("client-000", "client-001", "client-002")
    grid = NodeGrid(names, tmp_path / "nodes")
    folder = RunFolder(tmp_path / "run")
    folder.create(settings, "flower")
    federate(grid, settings, folder)
    close_sessions()
    simulate(settings, engine="loopback", out=tmp_path / "loopback")
    assert_same_trunk(tmp_path / "loopback", tmp_path / "run", 1e-4)
    for context in grid.contexts.values():
        state = context.state["secure-aggregation"]
        assert state["stage"] == "over"
        assert not any(state[key] for key in ("mask-key", "seal-key", "seed", "own-share"))
    for node in grid.nodes.values():
        node.close()
