"""Who takes part: refusals told once; nodes that join, go, come back, and share a name."""

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from client.app import app
from common.agreement import Description
from common.errors import ClientsMissingError, DataError
from common.experiment_file import load_experiment
from common.wire import CONFIG, REFUSED
from server import roster as roster_module
from server.patient_grid import PatientGrid
from server.roster import Roster
from simulations.loopback import LoopbackGrid
from tests.links import Clock, FakeLink, gone

FILES = {"good": "x,t\n1,2\n3,4\n5,6\n7,8\n", "odd": "x,t\n1,2\nword,3\n5,6\n7,8\n"}
ANNA, BERT, CLEO = 31, 32, 33
LABELLED = {"kind": 5, "flag": 5, "size": 5}


@pytest.fixture
def roster(tmp_path):
    for client, text in FILES.items():
        (tmp_path / f"{client}.csv").write_text(text)
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[data]\nsource = "folder"\npath = "."\nvalidation = 0.0\n'
        '[inputs.x]\ncolumns = ["x"]\n[tasks.t]\nkind = "regression"\n'
    )
    roster = Roster(load_experiment(str(tmp_path / "mine.toml")))
    roster.meet(LoopbackGrid(app, list(FILES)), 10.0)
    return roster


def test_under_strict_a_refusal_is_in_the_error_alone(roster, caplog):
    with pytest.raises(DataError, match="odd"):
        roster.require(strict=True)
    assert "takes no part" not in caplog.text


def test_else_it_is_a_warning_and_the_run_goes_on(roster, caplog):
    roster.require(strict=False)
    assert roster.names == ["good"]
    assert caplog.text.count("takes no part") == 1


def describe(name):
    def answer(message):
        description = Description(client=name, examples={"train": 5}, labelled=LABELLED)
        record = ConfigRecord({"description": description.to_json()})
        return Message(RecordDict({CONFIG: record}), reply_to=message)

    return answer


def refuse(message):
    return Message(Error(code=REFUSED, reason="no"), reply_to=message)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(roster_module.time, "monotonic", clock)
    monkeypatch.setattr(roster_module.time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def link(clock):
    link = FakeLink(clock, ANNA, BERT)
    link.answers = {ANNA: [(1.0, describe("anna"))], BERT: [(2.0, describe("bert"))]}
    return link


@pytest.fixture
def grid(link, clock):
    return PatientGrid(link, clock=clock, sleep=clock.sleep)


@pytest.fixture
def settled(grid, tiny):
    roster = Roster(tiny)
    roster.settle(grid, 1, 3600.0)
    roster.require(strict=False)
    return roster


def asked(link):
    return [message.metadata.dst_node_id for message in link.pushed]


def test_all_who_are_there_at_the_start_are_waited_for(settled, clock):
    assert settled.names == ["anna", "bert"]
    assert clock.now < 3.0


def test_one_that_does_not_answer_holds_the_others_up_for_a_while_only(grid, link, clock, tiny):
    link.answers[BERT] = []
    roster = Roster(tiny)
    roster.settle(grid, 1, 3600.0)
    assert roster.names == ["anna"]
    assert clock.now == pytest.approx(roster_module.PATIENCE_S, abs=1.0)


def test_one_that_is_gone_for_a_moment_at_the_start_is_asked_again(
    grid, link, clock, tiny, monkeypatch
):
    link.answers[BERT] = [(1.0, gone)]
    roster = Roster(tiny)

    def mend(seconds):
        clock.now += seconds
        if clock.now > 10.0:
            link.answers[BERT] = [(1.0, describe("bert"))]

    monkeypatch.setattr(roster_module.time, "sleep", mend)
    roster.settle(grid, 2, 3600.0)
    assert roster.names == ["anna", "bert"]


def test_a_newcomer_joins_without_holding_up_a_round(settled, grid, link, clock):
    link.answers[CLEO] = [(50.0, describe("cleo"))]
    link.online.add(CLEO)
    now = clock.now
    settled.greet(grid, 3600.0)
    assert (settled.names, clock.now) == (["anna", "bert"], now)
    clock.sleep(51.0)
    settled.greet(grid, 3600.0)
    assert settled.names == ["anna", "bert", "cleo"]
    assert asked(link) == [ANNA, BERT, CLEO]


def test_who_is_offline_is_not_there_and_comes_back_without_being_asked(settled, grid, link):
    link.online.remove(BERT)
    settled.greet(grid, 60.0)
    assert (settled.names, settled.asked_per_round) == (["anna"], 1)
    link.online.add(BERT)
    settled.greet(grid, 60.0)
    assert (settled.names, settled.asked_per_round) == (["anna", "bert"], 2)
    assert asked(link) == [ANNA, BERT]


def test_a_restarted_node_takes_its_own_place_under_its_new_id(settled, grid, link, clock):
    link.answers[CLEO] = [(1.0, describe("bert"))]
    link.online = {ANNA, CLEO}
    settled.greet(grid, 60.0)
    clock.sleep(2.0)
    settled.greet(grid, 60.0)
    assert settled.node_ids == {"anna": ANNA, "bert": CLEO}
    assert settled.names == ["anna", "bert"]
    link.online = {ANNA, BERT, CLEO}  # the old id once more: it is nobody's any longer
    settled.greet(grid, 60.0)
    assert settled.node_ids["bert"] == CLEO


def test_one_restarted_before_its_old_id_is_gone_waits_for_that(settled, grid, link, clock, caplog):
    link.answers[CLEO] = [(1.0, describe("bert"))]
    link.online.add(CLEO)  # the old one missed no heartbeat yet
    for _ in range(3):
        settled.greet(grid, 60.0)
        clock.sleep(2.0)
    assert settled.node_ids["bert"] == BERT
    assert caplog.text.count("another node has this name") == 1
    link.online.remove(BERT)
    settled.greet(grid, 60.0)
    assert settled.node_ids["bert"] == CLEO
    assert not settled.refused
    assert asked(link) == [ANNA, BERT, CLEO]


def test_a_superlink_that_fails_for_a_while_changes_nothing(settled, grid, link, clock):
    link.answers[CLEO] = [(0.0, describe("cleo"))]
    link.online.add(CLEO)
    link.failing_until = clock.now + 20.0
    settled.greet(grid, 60.0)
    assert settled.names == ["anna", "bert", "cleo"]


def test_a_question_that_is_lost_is_asked_again(settled, grid, link, clock):
    link.answers[CLEO] = [(1.0, gone)]
    link.online.add(CLEO)
    settled.greet(grid, 60.0)
    link.answers[CLEO] = []
    clock.sleep(2.0)
    settled.greet(grid, 60.0)  # hears that the node was gone
    settled.greet(grid, 60.0)  # asks again; the node is restarted and never sees it
    link.answers[CLEO] = [(0.0, describe("cleo"))]
    clock.sleep(61.0)
    settled.greet(grid, 60.0)
    assert settled.names == ["anna", "bert", "cleo"]


def test_a_refused_node_that_was_mended_and_restarted_is_asked_again(settled, grid, link, clock):
    link.answers[CLEO] = [(0.0, refuse)]
    link.online.add(CLEO)
    settled.greet(grid, 60.0)
    settled.greet(grid, 60.0)
    assert asked(link).count(CLEO) == 1
    link.answers[CLEO] = [(0.0, describe("cleo"))]
    link.online.remove(CLEO)
    settled.greet(grid, 60.0)
    link.online.add(CLEO)
    settled.greet(grid, 60.0)
    assert "cleo" in settled.names


def test_too_few_clients_are_waited_for(settled, grid, link, clock):
    link.online.remove(BERT)
    told = []

    def tell(there):
        told.append(there)
        link.online.add(BERT)

    assert settled.gather(grid, 2, 60.0, tell)
    assert not settled.gather(grid, 2, 60.0, tell)
    assert (told, settled.names) == ([1], ["anna", "bert"])


def test_clients_that_do_not_come_stop_the_run_at_the_deadline(settled, grid, link, clock):
    link.online.remove(BERT)
    now = clock.now
    with pytest.raises(ClientsMissingError, match="2 clients are needed, 1 are connected"):
        settled.gather(grid, 2, 60.0, lambda there: None)
    assert clock.now == pytest.approx(now + 60.0, abs=1.0)
