"""A node's ledger forgets nothing, and no reply leaves that it could not pay, or not write down."""

import errno
import json
import os

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app as client_app
from client import privacy_ledger
from client.job import Job
from client.node.dry_run import _instruction
from client.node.policy import Policy
from client.place import SIMULATION, Place
from client.privacy_ledger import LedgerFile, PrivacyLedger, require_entry
from client.session import close_sessions, open_rows, open_session
from common.agreement import agree
from common.errors import BudgetError, ConfigError, StateError
from common.experiment_file import load_experiment
from common.privacy.accounting import Event, epsilon_of
from common.privacy.ledger import Entry
from common.wire import ARRAYS, CONFIG, Instruction, pack_arrays

CLIENT = "client-000"
SMALL = [f"data.clients=['{CLIENT}','client-001']", "trunk.widths=[8]", "training.epochs=1"]
LEVEL = ["federation.weight-by='uniform'", "federation.rounds=3"]
NOISE = "privacy.client-level.noise-multiplier=2.0"


def experiment(*overrides):
    return load_experiment("digits", [*SMALL, *LEVEL, *(overrides or [NOISE])])


def ledger(state, settings, number=1, run="run-1", rows=100, limits=None, **privacy):
    instruction = Instruction(
        settings.model_dump_json(by_alias=True), round=number, run=run, privacy=privacy
    )
    return PrivacyLedger(settings, instruction, limits or Place(), CLIENT, rows, state)


def answer(state, settings, number=1, reply="train", **options):
    """Check and write down one reply, as a client does."""
    opened = ledger(state, settings, number, **options)
    opened.check(reply)
    opened.enter(reply, 10, 4)
    return opened.entries[-1]


def after(rounds, delta=1e-5, noise=2.0):
    return pytest.approx(epsilon_of([Event(noise, 1.0, rounds)], delta))


@pytest.mark.parametrize(
    ("sums", "held"),
    [("secure", ["masked vector", "sums"]), ("sent", ["masked vector", "sums", "counts"])],
)
def test_under_masks_no_count_leaves_unless_sums_do(tmp_path, sums, held):
    settings = experiment(NOISE, "privacy.secure-aggregation.bits=20", f"privacy.sums={sums}")
    assert [each.what for each in answer(tmp_path, settings).released] == held


def test_every_reply_is_a_line_with_what_it_held_and_cost(tmp_path):
    answer(tmp_path, experiment(), 1)
    entry = answer(tmp_path, experiment(), 2)
    assert (entry.run, entry.round, entry.client, entry.reply) == ("run-1", 2, CLIENT, "train")
    held = [(each.what, each.numbers, each.units) for each in entry.released]
    assert held == [("update", 10, ("client",)), ("sums", 4, ()), ("counts", 1, ())]
    assert entry.cost == {"client": (Event(2.0),)}
    assert entry.epsilon == {"client": after(2)}
    assert LedgerFile.of(tmp_path, CLIENT).read()[-1] == entry


def test_a_restarted_node_goes_on_where_it_was(tmp_path):
    for number in (1, 2):
        answer(tmp_path, experiment(), number)
    assert answer(tmp_path, experiment(), 3).epsilon == {"client": after(3)}


def test_a_round_that_is_asked_again_costs_again(tmp_path):
    for _ in range(3):
        entry = answer(tmp_path, experiment(), 1)
    assert entry.epsilon == {"client": after(3)}


def test_another_run_has_an_account_of_its_own(tmp_path):
    answer(tmp_path, experiment(), 1)
    assert answer(tmp_path, experiment(), 1, run="run-2").epsilon == {"client": after(1)}


def test_a_reply_that_would_overdraw_the_experiments_budget_is_refused(tmp_path):
    budget = epsilon_of([Event(2.0, 1.0, 2)], 1e-5) + 0.01
    settings = experiment(NOISE, f"privacy.client-level.epsilon={budget}")
    for number in (1, 2):
        answer(tmp_path, settings, number)
    with pytest.raises(BudgetError, match=r"client-000 does not answer: privacy.client-level") as e:
        answer(tmp_path, settings, 3)
    assert "\n" not in str(e.value)
    assert len(LedgerFile.of(tmp_path, CLIENT).read()) == 2


@pytest.mark.parametrize("counts", ["sent", "withheld"])
def test_a_refusal_tells_no_number_of_rows_that_is_withheld(tmp_path, counts):
    quiet = NOISE, f"privacy.counts='{counts}'", "privacy.sums='withheld'"
    level = "privacy.example-level.noise-multiplier=2.0", "privacy.example-level.epsilon=0.5"
    with pytest.raises(ConfigError, match="delta must be below") as refused:
        answer(tmp_path, experiment(*quiet, *level, "privacy.example-level.delta=0.1"), rows=97)
    assert ("97" in str(refused.value)) is (counts == "sent")
    with pytest.raises(BudgetError, match="does not answer") as overdrawn:
        answer(tmp_path, experiment(*quiet, *level, "privacy.example-level.delta=1e-4"), rows=97)
    assert ("would make it" in str(overdrawn.value)) is (counts == "sent")


def test_a_plan_that_fits_its_budget_exactly_is_served_to_its_end(tmp_path):
    settings = experiment("privacy.client-level.epsilon=2.0")
    for number in (1, 2, 3):
        entry = answer(tmp_path, settings, number)
    answer(tmp_path, settings, 3, reply="evaluate")
    assert 1.99 < entry.epsilon["client"] <= 2.0
    with pytest.raises(BudgetError):  # a resumed server asks for the last round again
        answer(tmp_path, settings, 3)


def test_the_nodes_own_budget_counts_all_runs(tmp_path):
    limits = Place(largest_epsilon=epsilon_of([Event(2.0, 1.0, 2)], 1e-6) + 0.01, delta=1e-6)
    answer(tmp_path, experiment(), 1, run="run-1", limits=limits)
    answer(tmp_path, experiment(), 1, run="run-2", limits=limits)
    with pytest.raises(BudgetError, match="largest-epsilon of this node"):
        answer(tmp_path, experiment(), 1, run="run-3", limits=limits)


def test_a_node_with_a_budget_serves_no_experiment_without_one(tmp_path):
    with pytest.raises(BudgetError, match="has no budget"):
        answer(tmp_path, experiment("training.lr=0.1"), limits=Place(largest_epsilon=1.0))


@pytest.mark.parametrize(("least", "refused"), [(1.9, False), (2.1, True)])
def test_a_node_asks_for_its_least_noise(tmp_path, least, refused):
    limits = Place(least_noise_multiplier=least)
    if refused:
        with pytest.raises(BudgetError, match=r"least-noise-multiplier of this node is 2\.1"):
            answer(tmp_path, experiment(), limits=limits)
    else:
        answer(tmp_path, experiment(), limits=limits)


def test_the_noise_for_a_clients_own_rows_is_held_against_the_least(tmp_path):
    settings = experiment("privacy.example-level.epsilon=50.0", "privacy.example-level.delta=1e-3")
    with pytest.raises(BudgetError, match="least-noise-multiplier"):
        answer(tmp_path, settings, rows=200, limits=Place(least_noise_multiplier=5.0))


def test_under_amplification_a_reply_pays_for_the_rounds_in_between(tmp_path):
    sampled = [
        "federation.sampling='poisson'",
        "federation.clients-per-round=2",
        "privacy.client-level.amplification=true",
    ]
    settings = experiment(NOISE, *sampled)
    paid = [answer(tmp_path, settings, number, population=8).cost["client"] for number in (2, 3, 3)]
    assert paid == [(Event(2.0, 0.25, 2),), (Event(2.0, 0.25, 1),), (Event(2.0, 0.25, 1),)]


def test_a_sample_from_nobody_knows_how_many_is_everybody(tmp_path):
    settings = experiment(
        NOISE,
        "federation.sampling='poisson'",
        "federation.clients-per-round=2",
        "privacy.client-level.amplification=true",
    )
    assert answer(tmp_path, settings).cost == {"client": (Event(2.0, 1.0, 1),)}


@pytest.mark.parametrize("keep", [1, 30, -2])
def test_a_torn_last_line_never_left_and_does_not_count(tmp_path, keep, caplog):
    for number in (1, 2):
        answer(tmp_path, experiment(), number)
    path = LedgerFile.of(tmp_path, CLIENT).path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:keep])
    assert answer(tmp_path, experiment(), 3).epsilon == {"client": after(2)}
    assert "torn by a crash" in caplog.text
    assert [entry.round for entry in LedgerFile(path).read()] == [1, 3]


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path):
    answer(tmp_path, experiment(), 1)
    path = LedgerFile.of(tmp_path, CLIENT).path
    path.write_bytes(path.read_bytes()[:-1])
    assert answer(tmp_path, experiment(), 2).epsilon == {"client": after(2)}
    assert [entry.round for entry in LedgerFile(path).read()] == [1, 2]


@pytest.mark.parametrize("wrong", [b"{}\n", b"\xff\xfe\n", b'{"run": 3\n'])
def test_a_line_that_is_no_entry_stops_the_client(tmp_path, wrong):
    answer(tmp_path, experiment(), 1)
    path = LedgerFile.of(tmp_path, CLIENT).path
    path.write_bytes(wrong + path.read_bytes())
    with pytest.raises(StateError, match="line 1 is no entry"):
        ledger(tmp_path, experiment(), 2)


def test_a_file_that_cannot_be_read_stops_the_client(tmp_path):
    LedgerFile.of(tmp_path, CLIENT).path.mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be read"):
        ledger(tmp_path, experiment())


def test_an_entry_is_read_as_it_was_written():
    entry = Entry("r", 1, "c", "train", (), {"client": (Event(1.5, 0.1, 3),)}, {"client": 0.5})
    assert Entry.from_json(entry.to_json()) == entry


def full_disk(monkeypatch, taken):
    """Let writes to a ledger take a few bytes, then none."""
    write, left = os.write, [taken]

    def limited(handle, content):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        size = write(handle, content[: left[0]])
        left[0] -= size
        return size

    monkeypatch.setattr(privacy_ledger.os, "write", limited)


@pytest.mark.parametrize("taken", [0, 10])
def test_what_a_full_disk_took_of_a_line_is_taken_back(tmp_path, monkeypatch, taken):
    answer(tmp_path, experiment(), 1)
    before = LedgerFile.of(tmp_path, CLIENT).path.read_bytes()
    with monkeypatch.context() as patched:
        full_disk(patched, taken)
        with pytest.raises(StateError, match="No space left on device"):
            answer(tmp_path, experiment(), 2)
    assert LedgerFile.of(tmp_path, CLIENT).path.read_bytes() == before
    assert answer(tmp_path, experiment(), 2).epsilon == {"client": after(2)}


@pytest.fixture
def _alone():
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    close_sessions()
    yield
    close_sessions()


def message(settings, kind=MessageType.TRAIN, number=1, heads_from=""):
    text = settings.model_dump_json(by_alias=True)
    agreement = agree([open_rows(text, Place()).describe(CLIENT)], settings)
    trainer = open_session(text, agreement.to_json(), Place()).trainer
    record = _instruction(settings, text, agreement, Policy()).to_record()
    record["round"], record["heads-from"] = number, heads_from
    trunk = pack_arrays(trainer.flat.read(trainer.shared))
    return Message(RecordDict({ARRAYS: trunk, CONFIG: record}), 1, kind)


def ask(state, settings, kind=MessageType.TRAIN, number=1, **config):
    config = {"client": CLIENT, "device": "cpu", "state": str(state), **config}
    return client_app.app(message(settings, kind, number), Context(1, 1, config, RecordDict(), {}))


@pytest.mark.usefixtures("_alone")
def test_a_client_writes_down_what_it_sends(tmp_path):
    reply = ask(tmp_path, experiment())
    size = sum(array.numpy().size for array in reply.content[ARRAYS].values())
    (entry,) = LedgerFile.of(tmp_path, CLIENT).read()
    assert entry.released[0].numbers == size
    ask(tmp_path, experiment(), MessageType.EVALUATE)
    assert [e.reply for e in LedgerFile.of(tmp_path, CLIENT).read()] == ["train", "evaluate"]


@pytest.mark.usefixtures("_alone")
def test_a_description_is_written_down_too_and_kept_at_home_where_it_cannot_be(
    tmp_path, monkeypatch
):
    asked = experiment("inputs.pixels.standardise='federation'")
    query = Message(
        RecordDict({CONFIG: Instruction(asked.model_dump_json(by_alias=True)).to_record()}),
        1,
        MessageType.QUERY,
    )
    context = Context(1, 1, {"client": CLIENT, "state": str(tmp_path)}, RecordDict(), {})
    assert client_app.app(query, context).has_content()
    (entry,) = LedgerFile.of(tmp_path, CLIENT).read()
    held = [(each.what, each.numbers, each.mechanism) for each in entry.released]
    assert held == [("counts", 3 + 3, "none"), ("column sums", 3, "none")]  # of one channel
    full_disk(monkeypatch, 0)
    assert "The reply stays here" in client_app.app(query, context).error.reason


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("unit", ["example", "client"])
def test_heads_of_another_run_are_outside_a_budget_of_rows(tmp_path, unit):
    level = f"privacy.{unit}-level.noise-multiplier=2.0", f"privacy.{unit}-level.delta=1e-4"
    asked = message(experiment(*level), heads_from="earlier")
    context = Context(1, 1, {"client": CLIENT, "state": str(tmp_path)}, RecordDict(), {})
    reply = client_app.app(asked, context)
    assert reply.has_error() is (unit == "example")
    if reply.has_error():
        assert "heads-from must be left out under [privacy.example-level]" in reply.error.reason


@pytest.mark.usefixtures("_alone")
def test_without_any_mechanism_it_writes_down_that_nothing_protects_it(tmp_path):
    ask(tmp_path, experiment("training.lr=0.1"))
    (entry,) = LedgerFile.of(tmp_path, CLIENT).read()
    assert {each.mechanism for each in entry.released} == {"none"}
    assert not entry.cost


@pytest.mark.usefixtures("_alone")
def test_a_reply_that_cannot_be_written_down_does_not_leave(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        full_disk(patched, 0)
        reply = ask(tmp_path, experiment())
    assert reply.has_error()
    assert "The reply stays here" in reply.error.reason


@pytest.mark.usefixtures("_alone")
def test_an_overdraft_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    def train(*_):
        raise AssertionError("trained")

    monkeypatch.setattr(Job, "begin", train)
    reply = ask(tmp_path, experiment(), **{"largest-epsilon": 0.1})
    assert reply.has_error()
    assert "does not answer" in reply.error.reason


@pytest.mark.usefixtures("_alone")
def test_a_simulated_client_keeps_no_ledger_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMTL_STATE", str(tmp_path))
    monkeypatch.setenv(SIMULATION, "1")
    config = {"partition-id": 0, "num-partitions": 2}
    reply = client_app.app(message(experiment()), Context(1, 1, config, RecordDict(), {}))
    assert reply.has_content()
    assert not (tmp_path / "privacy").exists()


@pytest.mark.usefixtures("_alone")
def test_a_real_node_that_has_a_partition_id_keeps_its_ledger_and_its_limits(tmp_path):
    config = {"partition-id": 0, "num-partitions": 2}
    assert ask(tmp_path, experiment(), **config).has_content()
    assert len(LedgerFile.of(tmp_path, CLIENT).read()) == 1
    reply = ask(tmp_path, experiment(), **config, **{"largest-epsilon": 0.1})
    assert "does not answer" in reply.error.reason
    stateless = {"client": CLIENT, "device": "cpu", **config, "largest-epsilon": 9.0}
    reply = client_app.app(message(experiment()), Context(1, 1, stateless, RecordDict(), {}))
    assert "need a ledger" in reply.error.reason


@pytest.mark.usefixtures("_alone")
def test_another_name_for_the_same_rows_is_no_fresh_budget(tmp_path):
    """A server's [partition] names the client of a node that does not."""
    limits = {"device": "cpu", "state": str(tmp_path), "delta": 1e-5}
    limits["largest-epsilon"] = epsilon_of([Event(2.0, 1.0, 2)], 1e-5) + 0.01
    replies = []
    for name in ("client-000", "client-001", "client-002"):
        settings = experiment(NOISE, f"data.clients=['{name}']")
        text = settings.model_dump_json(by_alias=True)
        agreement = agree([open_rows(text, Place()).describe(name)], settings)
        trainer = open_session(text, agreement.to_json(), Place()).trainer
        record = _instruction(settings, text, agreement, Policy()).to_record()
        content = RecordDict({ARRAYS: pack_arrays(trainer.flat.read(trainer.shared))})
        content[CONFIG] = record
        asked = Message(content, 1, MessageType.TRAIN)
        replies.append(client_app.app(asked, Context(1, 1, dict(limits), RecordDict(), {})))
    assert [reply.has_error() for reply in replies] == [False, False, True]
    assert "largest-epsilon of this node" in replies[-1].error.reason


def test_a_node_with_limits_lets_no_reply_out_that_its_ledger_lacks(tmp_path):
    entry = answer(tmp_path, experiment(), 2)
    there = Instruction("{}", round=2, run=entry.run)
    require_entry(tmp_path, there, "train")
    require_entry(tmp_path, there, "query")
    for wrong, reply in (
        (there, "evaluate"),
        (Instruction("{}", round=3, run=entry.run), "train"),
        (Instruction("{}", round=2, run="other"), "train"),
    ):
        with pytest.raises(BudgetError, match="no entry for this reply"):
            require_entry(tmp_path, wrong, reply)


@pytest.mark.parametrize("value", [0, -1.0, "4", True, float("nan")])
@pytest.mark.parametrize("key", ["largest-epsilon", "delta", "least-noise-multiplier"])
def test_a_nodes_limit_is_a_positive_number(key, value):
    with pytest.raises(ConfigError, match=f"node config: {key} must be a positive number"):
        Place.of({key: value})


def test_no_line_holds_rows(tmp_path):
    line = answer(tmp_path, experiment()).to_json()
    assert set(json.loads(line)) == {
        "run", "round", "client", "reply", "released", "cost", "epsilon", "delta"
    }  # fmt: skip
