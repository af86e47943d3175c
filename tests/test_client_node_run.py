"""A node answers or refuses every message, and never answers what its owner's policy forbids."""

import json
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.kept_model import open_kept
from client.node.dry_run import _instruction
from client.node.ledger import FILE as LEDGER
from client.node.policy import Policy
from client.node.run import Node
from client.node.worker import answer
from client.node.worker_link import NotWantedError, WorkerDiedError
from client.place import Place
from client.privacy_ledger import LedgerFile
from client.session import close_sessions, open_rows, open_session
from client.state import FolderState
from common.agreement import agree
from common.errors import ConfigError, NodeError
from common.experiment_file import load_experiment
from common.privacy.accounting import Event, epsilon_of
from common.wire import ARRAYS, CONFIG, Instruction, arrays_of, pack_arrays, unpack_arrays

SETTINGS = ["data.clients=['client-000','client-001']", "trunk.widths=[8]", "training.epochs=1"]
CONFIG_TEXT = 'client="client-000" device="cpu" state="{}"'


class FakeTask:
    """What the SuperNode would hand over."""

    def __init__(self, message, node_config):
        self.message = message
        self.context = Context(1, 1, node_config, RecordDict(), {})
        self.fab = SimpleNamespace(hash_str="ab" * 32, content=b"")
        self.replies, self.left, self.pull_s, self.claim = [], False, 0.0, self

    def wanted(self):
        return True

    def reply(self, reply, context):
        self.replies.append(reply)
        self.context = context

    def leave(self):
        self.left = True


class HereWorker:
    """The installed client, in this process; dies as often as told."""

    bundle, network = "", True

    def __init__(self, deaths=0, lost=False):
        self.deaths, self.lost, self.asked = deaths, lost, 0

    def start(self):
        pass

    def close(self):
        pass

    def ask(self, context, message, most_s, wanted):
        from client.app import app

        self.asked += 1
        if self.lost:
            raise NotWantedError
        if self.asked <= self.deaths:
            raise WorkerDiedError("the worker was ended by signal 9")
        return answer(app, context, message)


@pytest.fixture(autouse=True)
def _alone():
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    close_sessions()
    yield
    close_sessions()


@pytest.fixture
def experiment():
    return load_experiment("digits", SETTINGS)


@pytest.fixture
def node(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text("")
    made = Node(policy, ["--insecure", "--node-config", CONFIG_TEXT.format(tmp_path / "state")])
    made._worker = HereWorker()
    yield made
    made.close()


def message(experiment, kind, round_number=1, **changes) -> Message:
    text = experiment.model_dump_json(by_alias=True)
    if kind == MessageType.QUERY:
        return Message(RecordDict({CONFIG: Instruction(text).to_record()}), 1, kind)
    rows = open_rows(text, Place())
    agreement = agree([rows.describe("client-000")], experiment)
    trainer = open_session(text, agreement.to_json(), Place()).trainer
    instruction = _instruction(experiment, text, agreement, Policy())
    record = instruction.to_record()
    record["round"] = round_number
    for key, value in changes.items():
        record[key] = value
    trunk = pack_arrays(trainer.flat.read(trainer.shared))
    return Message(RecordDict({ARRAYS: trunk, CONFIG: record}), 1, kind)


def serve(node, asked) -> FakeTask:
    task = FakeTask(asked, {"client": "client-000", "device": "cpu", "state": str(node.state)})
    node.answer(task)
    return task


def refusal_of(task) -> str:
    (reply,) = task.replies
    assert reply.has_error()
    return reply.error.reason


@pytest.mark.parametrize("kind", [MessageType.QUERY, MessageType.TRAIN, MessageType.EVALUATE])
def test_every_kind_of_message_is_answered(node, experiment, kind):
    (reply,) = serve(node, message(experiment, kind)).replies
    assert reply.has_content()
    assert (arrays_of(reply.content) is not None) == (kind == MessageType.TRAIN)


def test_answered_rounds_are_counted_and_the_count_survives(node, experiment):
    for number in (1, 2):
        serve(node, message(experiment, MessageType.TRAIN, number))
    serve(node, message(experiment, MessageType.EVALUATE, 2))
    assert json.loads((node.state / LEDGER).read_text()) == {"rounds": 2, "evaluations": 1}
    node.policy_path.write_text("[experiments]\nmost-rounds-in-all = 2")
    told = refusal_of(serve(node, message(experiment, MessageType.TRAIN, 3)))
    assert "most-rounds-in-all" in told
    assert serve(node, message(experiment, MessageType.EVALUATE, 2)).replies[0].has_content()


def test_a_ledger_that_cannot_be_read_is_no_permission(node, experiment):
    serve(node, message(experiment, MessageType.TRAIN))
    (node.state / LEDGER).write_text("{")
    assert LEDGER in refusal_of(serve(node, message(experiment, MessageType.TRAIN, 2)))


def test_a_changed_policy_holds_from_the_next_message_on(node, experiment):
    assert serve(node, message(experiment, MessageType.QUERY)).replies[0].has_content()
    node.policy_path.write_text('[experiments]\nnames = ["other"]')
    worker = node._worker
    asked = worker.asked
    told = refusal_of(serve(node, message(experiment, MessageType.QUERY)))
    assert "experiments.names" in told
    assert worker.asked == asked  # nothing was read or trained


def test_a_policy_that_cannot_be_read_is_no_permission(node, experiment, caplog):
    node.policy_path.write_text("[experiments")
    told = refusal_of(serve(node, message(experiment, MessageType.TRAIN)))
    assert told == "the policy of the node's owner cannot be read; the node's log says why"
    assert "no TOML" in caplog.text


def test_a_server_does_not_say_where_a_node_reads(node, experiment):
    data = {"source": "folder", "path": "/etc"}
    named = experiment.model_copy(update={"data": experiment.data.model_copy(update=data)})
    told = refusal_of(serve(node, hostile(named, clients=1)))
    assert "a node reads only what its owner names" in told
    ready = {"architecture": "transformer", "model": "/etc", "pretrained": False}
    named = experiment.model_copy(update={"trunk": experiment.trunk.model_copy(update=ready)})
    told = refusal_of(serve(node, hostile(named, clients=1)))
    assert 'name a copy of it in its --node-config: model="FOLDER"' in told
    assert not node._worker.asked


def hostile(experiment, **changes) -> Message:
    """A message to train whose instruction was changed by hand."""
    record = Instruction(experiment.model_dump_json(by_alias=True), round=1).to_record()
    for key, value in changes.items():
        record[key] = value
    return Message(RecordDict({ARRAYS: ArrayRecord(), CONFIG: record}), 1, MessageType.TRAIN)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": float("nan")},
        {"round": "1"},
        {"round": -1},
        {"clients": [5]},
        {"run": b"x"},
        {"run": "x" * 10_000},
        {"memory": "[" * 100_000},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_an_instruction_of_other_types_is_refused(node, experiment, changes):
    node.policy_path.write_text("[experiments]\nmost-rounds = 100\nleast-clients = 3")
    told = refusal_of(serve(node, hostile(experiment, **changes)))
    assert "same version of fedmtl" in told
    assert not node._worker.asked


def test_arrays_that_are_none_end_in_a_refusal_and_not_the_node(node, experiment):
    asked = message(experiment, MessageType.TRAIN)
    for dtype, shape in (("evil", (2,)), ("float32", (-2,))):
        arrays = {"x": Array(dtype, shape, "numpy.ndarray", b"none")}
        asked.content[ARRAYS] = ArrayRecord(arrays)
        assert refusal_of(serve(node, asked))


def test_whatever_goes_wrong_over_a_message_the_node_lives_and_tells_no_text(node, experiment):
    def ask(*_):
        raise ValueError("patient 4711")

    node._worker.ask = ask
    told = refusal_of(serve(node, message(experiment, MessageType.TRAIN)))
    assert told.startswith("the node could not answer: ValueError in ask")
    assert "4711" not in told


def test_a_bundles_hash_is_that_of_its_bytes(node, experiment):
    node.policy_path.write_text(f"[code]\nrun = 'bundle'\nbundles = ['{'ab' * 32}']")
    told = refusal_of(serve(node, message(experiment, MessageType.TRAIN)))
    assert "code.bundles" in told  # although the task says that its hash is the one listed


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({CONFIG: ConfigRecord({"experiment": "{}"})}),
        RecordDict({CONFIG: Instruction('{"name": "x"}').to_record()}),
        RecordDict({CONFIG: Instruction("4711").to_record()}),
    ],
)
def test_a_message_of_another_form_is_refused(node, content):
    told = refusal_of(serve(node, Message(content, 1, MessageType.TRAIN)))
    assert "same version of fedmtl" in told


def test_a_worker_that_dies_once_costs_nothing(node, experiment):
    asked = message(experiment, MessageType.TRAIN)
    (before,) = serve(node, asked).replies
    node._worker = HereWorker(deaths=1)
    (after,) = serve(node, asked).replies
    trunks = [reply.content[ARRAYS].to_numpy_ndarrays() for reply in (before, after)]
    assert all((a == b).all() for a, b in zip(*trunks, strict=True))


def test_a_worker_that_dies_twice_over_a_message_refuses_it(node, experiment):
    node._worker = HereWorker(deaths=2)
    assert "signal 9" in refusal_of(serve(node, message(experiment, MessageType.TRAIN)))
    assert not (node.state / LEDGER).exists()


def test_what_nobody_waits_for_is_dropped_without_a_reply(node, experiment):
    node._worker = HereWorker(lost=True)
    task = serve(node, message(experiment, MessageType.TRAIN))
    assert not task.replies
    assert task.left


def test_heads_lie_in_the_state_folder_and_flowers_memory_stays_empty(node, experiment):
    task = serve(node, message(experiment, MessageType.TRAIN, run="digits-1"))
    assert not task.context.state
    kept = node.state / "runs" / "digits-1" / "client-000"
    assert {path.name for path in kept.iterdir()} == {
        "own-00000001.safetensors", "trunk.safetensors", "run.json", "fitted.json",
    }  # fmt: skip


def test_what_a_node_keeps_is_the_model_that_predicts(node, experiment):
    asked = message(experiment, MessageType.TRAIN, run="digits-1")
    (reply,) = serve(node, asked).replies
    final = message(experiment, MessageType.EVALUATE, run="digits-1")
    final.content[ARRAYS] = reply.content[ARRAYS]
    serve(node, final)
    kept = open_kept(node.state)
    assert (kept.run, kept.client) == ("digits-1", "client-000")
    trained = unpack_arrays(reply.content[ARRAYS])
    own = FolderState(node.state / "runs" / "digits-1" / "client-000").load(2)
    model = dict(kept.build().named_parameters())
    for name, array in (trained | own).items():
        assert (model[name].detach().numpy() == array).all()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "must name a state folder"),
        (["--node-config", 'state="s" divice="cpu"'], "keys must be among"),
        (["--node-config", "state=s d"], "cannot be read"),
        (["--isolation", "subprocess", "--node-config", 'state="s"'], "fedmtl node run sets it"),
        (["--isolation=process", "--node-config", 'state="s"'], "fedmtl node run sets it"),
        (["--node-config"], "expected one argument"),
    ],
)
def test_wrong_flags_are_told_in_a_line(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        Node(None, flags)


def test_a_bundle_is_unpacked_once_into_a_folder_of_its_own(node, monkeypatch):
    unpacked = []

    def install(content, folder, skip_prompt):
        assert not folder.exists()  # what was there may be half of one, or changed
        folder.mkdir(parents=True)
        unpacked.append(content)
        return folder / "theirs"

    monkeypatch.setattr("client.node.run.install_from_fab", install)
    stale = node.state / "bundles" / "cd" / "changed.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    found = {node._unpack("cd", b"zip") for _ in range(2)}
    assert found == {str(node.state / "bundles" / "cd" / "theirs")}
    assert unpacked == [b"zip"]


def test_a_state_folder_that_is_none_is_told_in_a_line(tmp_path):
    (tmp_path / "state").write_text("")
    flags = ["--insecure", "--node-config", CONFIG_TEXT.format(tmp_path / "state")]
    with pytest.raises(NodeError, match="cannot be used: File exists"):
        Node(None, flags)


PRIVATE = ["federation.weight-by='uniform'", "privacy.client-level.noise-multiplier=2.0"]


@pytest.fixture
def private():
    return load_experiment("digits", [*SETTINGS, *PRIVATE, "federation.rounds=2"])


def limit(node, epsilon):
    node.policy_path.write_text(f"[protections]\nlargest-epsilon = {epsilon}\n")


def test_the_owners_budget_ends_the_node_s_rounds_over_all_runs(node, private):
    limit(node, epsilon_of([Event(2.0, 1.0, 3)], 1e-5) + 0.01)
    for run, number in (("run-a", 1), ("run-a", 2), ("run-b", 1)):
        (reply,) = serve(node, message(private, MessageType.TRAIN, number, run=run)).replies
        assert reply.has_content()
    told = refusal_of(serve(node, message(private, MessageType.TRAIN, 2, run="run-b")))
    assert "largest-epsilon of this node" in told


def test_an_experiment_that_would_cost_more_is_refused_before_it_reaches_the_rows(node, private):
    limit(node, 1.0)
    told = refusal_of(serve(node, message(private, MessageType.QUERY)))
    assert "protections.largest-epsilon" in told
    assert node._worker.asked == 0


def test_the_budget_that_a_client_is_told_stays_on_the_node(node, private):
    limit(node, 50.0)
    task = serve(node, message(private, MessageType.TRAIN))
    assert "largest-epsilon" not in task.context.node_config


def test_code_that_keeps_no_ledger_sends_nothing_where_there_is_a_budget(
    node, private, monkeypatch
):
    limit(node, 50.0)
    monkeypatch.setattr(LedgerFile, "append", lambda *_: None)
    told = refusal_of(serve(node, message(private, MessageType.TRAIN)))
    assert "no entry for this reply" in told
