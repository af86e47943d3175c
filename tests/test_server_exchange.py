"""A round's messages in a deployment: deadline, late, double and garbled replies, nodes that go."""

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import TIMESTAMP_TOLERANCE, ErrorCode

from server.patient_grid import LOST, NOT_TAKEN, OFFLINE, PatientGrid
from tests.links import Clock, FakeLink, ask, gone, of_the_superlink, reply

ANNA, BERT, CLEO, DORA = 31, 32, 33, 34


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def link(clock):
    link = FakeLink(clock, ANNA, BERT, CLEO)
    link.answers = {node: [(5.0, reply)] for node in link.online}
    return link


@pytest.fixture
def grid(link, clock):
    return PatientGrid(link, clock=clock, sleep=clock.sleep)


def senders(replies):
    return sorted(r.metadata.src_node_id for r in replies if r.has_content())


def reasons(replies):
    return {r.metadata.src_node_id: r.error.reason for r in replies if r.has_error()}


def test_all_who_answer_in_time_count_and_the_round_ends_with_the_last(grid, clock):
    assert senders(grid.send_and_receive(ask(ANNA, BERT), timeout=60.0)) == [ANNA, BERT]
    assert 5.0 <= clock.now < 5.2


def test_what_comes_after_the_deadline_is_never_counted(grid, link, clock):
    link.answers[BERT] = [(61.0, reply)]
    assert senders(grid.send_and_receive(ask(ANNA, BERT), timeout=60.0)) == [ANNA]
    assert clock.now == 60.0
    link.answers[BERT] = [(5.0, reply)]
    again = grid.send_and_receive(ask(BERT), timeout=60.0)  # the late reply lies there by now
    assert senders(again) == [BERT]
    assert [i for i, waiting in link.inbox.items() if waiting] == ["message-1-to-32"]


def test_what_comes_at_the_last_moment_counts(grid, link):
    link.answers[ANNA] = [(60.0, reply)]
    assert senders(grid.send_and_receive(ask(ANNA), timeout=60.0)) == [ANNA]


def test_a_wall_clock_that_jumps_moves_no_deadline(grid, link, clock, monkeypatch):
    link.answers[ANNA] = []
    monkeypatch.setattr("time.time", lambda: 1.0e12)
    grid.send_and_receive(ask(ANNA), timeout=60.0)
    assert clock.now == 60.0


def test_a_second_answer_to_one_message_is_passed_over(grid, link):
    link.answers[ANNA] = [(1.0, reply), (1.0, reply)]
    assert senders(grid.send_and_receive(ask(ANNA, BERT), timeout=60.0)) == [ANNA, BERT]


def test_an_answer_to_what_nobody_asked_is_passed_over(grid, link):
    stray = ask(CLEO)[0]
    stray.metadata.__dict__["_message_id"] = "of an earlier round"
    link.answers[ANNA] = [(1.0, lambda _: reply(stray)), (2.0, reply)]
    assert senders(grid.send_and_receive(ask(ANNA), timeout=60.0)) == [ANNA]


def test_a_node_that_dies_costs_no_deadline_and_is_named(grid, link, clock):
    link.answers[BERT] = [(30.0, gone)]
    replies = grid.send_and_receive(ask(ANNA, BERT), timeout=3600.0)
    assert senders(replies) == [ANNA]
    assert reasons(replies) == {BERT: OFFLINE}
    assert clock.now < 32.0


def test_a_message_that_expired_is_told_of_its_node(grid, link):
    def expired(message):
        return of_the_superlink(message, ErrorCode.MESSAGE_UNAVAILABLE, "Error")

    link.answers[BERT] = [(1.0, expired)]
    assert reasons(grid.send_and_receive(ask(ANNA, BERT), timeout=60.0)) == {BERT: LOST}


def test_a_node_that_answers_in_place_of_another_is_left_out(grid, link):
    def steal(message):
        stolen = Message(RecordDict(), reply_to=message)
        stolen.metadata.__dict__["_src_node_id"] = CLEO
        return stolen

    link.answers[BERT] = [(1.0, steal)]
    replies = grid.send_and_receive(ask(ANNA, BERT), timeout=60.0)
    assert senders(replies) == [ANNA]
    assert "another node" in reasons(replies)[BERT]


def test_a_message_that_the_superlink_does_not_take_costs_no_deadline(grid, link, clock):
    link.refused = {BERT}
    replies = grid.send_and_receive(ask(ANNA, BERT), timeout=3600.0)
    assert reasons(replies) == {BERT: NOT_TAKEN}
    assert clock.now < 6.0


def test_a_superlink_that_fails_for_a_while_costs_no_reply(grid, link):
    link.failing_until = 20.0
    assert senders(grid.send_and_receive(ask(ANNA, BERT), timeout=60.0)) == [ANNA, BERT]


def test_a_superlink_that_fails_until_the_deadline_ends_the_round_without_an_error(grid, link):
    link.failing_until = 1000.0
    assert reasons(grid.send_and_receive(ask(ANNA), timeout=60.0)) == {ANNA: NOT_TAKEN}


def test_garbage_that_cannot_be_read_costs_the_others_one_round_and_then_only_its_sender(
    grid, link, caplog
):
    link.answers = {ANNA: [(5.0, reply)], BERT: [(1.0, reply)]}
    link.broken = {"message-1-to-32", "message-3-to-32"}
    assert senders(grid.send_and_receive(ask(ANNA, BERT), timeout=60.0)) == [ANNA]
    replies = grid.send_and_receive(ask(ANNA, BERT), timeout=60.0)
    assert senders(replies) == [ANNA]
    assert "cannot be read (ValueError)" in reasons(replies)[BERT]
    assert "0.123" not in caplog.text + reasons(replies)[BERT]


def test_one_by_one_too_a_failing_superlink_costs_no_reply(grid, link, clock):
    link.answers = {node: [(5.0, reply)] for node in (ANNA, BERT, CLEO)}
    grid._one_by_one, pull = True, link.pull_messages

    def fail_after_the_first(ids):
        came = pull(ids)
        if came and not link.failing_until:
            link.failing_until = clock.now + 3.0
        return came

    link.pull_messages = fail_after_the_first
    assert senders(grid.send_and_receive(ask(ANNA, BERT, CLEO), timeout=60.0)) == [ANNA, BERT, CLEO]


def test_messages_outlive_the_deadline_by_clocks_that_are_wrong_but_no_longer(grid, link):
    grid.send_and_receive(ask(ANNA), timeout=60.0)
    assert link.pushed[0].metadata.ttl == 60.0 + 2 * TIMESTAMP_TOLERANCE


@pytest.mark.parametrize("wrong_by", [TIMESTAMP_TOLERANCE, -TIMESTAMP_TOLERANCE])
def test_the_reply_of_a_node_whose_clock_is_wrong_still_lives(grid, link, wrong_by, monkeypatch):
    from datetime import timedelta

    from flwr.app.message import message as module
    from flwr.server.utils.validator import validate_message

    true_now = module.now

    def late_reply(message):
        monkeypatch.setattr(module, "now", lambda: true_now() + timedelta(seconds=60 + wrong_by))
        answer = reply(message)
        answer.metadata.__dict__["_message_id"] = "some"
        return answer

    link.answers[ANNA] = [(60.0, late_reply)]
    (answer,) = grid.send_and_receive(ask(ANNA), timeout=60.0)
    assert validate_message(answer, is_reply_message=True) == []  # as the SuperLink checks


def test_polls_are_quick_at_first_and_rare_in_long_rounds(grid, link):
    link.answers[ANNA] = [(1.0, reply)]
    grid.send_and_receive(ask(ANNA), timeout=3600.0)
    assert 10 <= link.pulls <= 12
    link.pulls, link.answers[ANNA] = 0, [(3000.0, reply)]
    grid.send_and_receive(ask(ANNA), timeout=3600.0)
    assert link.pulls < 3300


def test_the_server_shows_that_it_is_alive_while_it_waits(link, clock):
    beats = []
    grid = PatientGrid(link, lambda: beats.append(clock.now), clock, clock.sleep)
    grid.send_and_receive(ask(ANNA), timeout=60.0)
    assert len(beats) > 10


def test_a_round_does_not_wait_for_those_it_can_do_without(grid, link, clock):
    link.answers = {
        ANNA: [(1.0, reply)], BERT: [(3.0, gone)], CLEO: [(5.0, reply)], DORA: [(900.0, reply)],
    }  # fmt: skip
    link.online.add(DORA)
    usable = []

    def is_enough(answer):
        usable.extend([answer] if answer.has_content() else [])
        return len(usable) == 2

    messages = ask(ANNA, BERT, CLEO, DORA)
    replies = grid.send_and_receive(messages, timeout=3600.0, is_enough=is_enough)
    assert senders(replies) == [ANNA, CLEO]
    assert 5.0 <= clock.now < 5.2
    clock.now = 1000.0
    assert grid.pull_messages([m.metadata.message_id for m in messages]) == []  # never counted


def test_a_round_that_cannot_be_filled_ends_with_its_deadline(grid, link, clock):
    link.answers[BERT] = []
    replies = grid.send_and_receive(ask(ANNA, BERT), timeout=60.0, is_enough=lambda _: False)
    assert senders(replies) == [ANNA]
    assert clock.now == 60.0
