"""A SuperNode gets one reply for each message that it waits for, and none for another."""

import threading

import httpx
import pytest

from client.node import runtime
from client.node.runtime import Claim, OrphanError, Runtime, TaskLostError


class FakeClient:
    """A Runtime API that notes what is said to it."""

    def __init__(self):
        self.finished, self.closed = [], threading.Event()

    def PushTaskOutput(self, request):
        self.finished.append(request.sub_status)

    def SendTaskHeartbeat(self, request):
        raise RuntimeError("closed")  # ends the thread that beats

    def close(self):
        self.closed.set()


class Offers(Runtime):
    """Offers claims one after another."""

    def __init__(self, *clients):
        self.beat = lambda: None
        self.offers = [client and Claim(client) for client in clients]

    def _claim(self):
        return self.offers.pop(0) if self.offers else None


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(runtime, "OFFER_S", 0.02)


def content_of(client):
    return (f"message of {id(client)}", "context", "run", "fab")


def test_a_message_that_is_there_is_the_task(monkeypatch):
    monkeypatch.setattr(runtime, "pull", content_of)
    client = FakeClient()
    task = Offers(client).next_task()
    assert task.message == content_of(client)[0]
    assert task.claim.wanted()
    assert not client.finished
    assert Offers(None).next_task() is None


def test_a_newer_offer_says_that_the_earlier_message_was_given_up(monkeypatch):
    earlier, newer = FakeClient(), FakeClient()

    def pull(client):
        if client is earlier:
            client.closed.wait(10)  # its message never comes
            raise RuntimeError("closed")
        return content_of(client)

    monkeypatch.setattr(runtime, "pull", pull)
    task = Offers(earlier, None, newer).next_task()
    assert task.message == content_of(newer)[0]
    assert earlier.finished == ["failed"]  # so that no late reply is made for it
    assert not newer.finished


def failing(error):
    def pull(_):
        raise error

    return pull


def test_a_message_that_was_given_up_is_ended_without_a_reply(monkeypatch):
    monkeypatch.setattr(runtime, "pull", failing(OrphanError()))
    client = FakeClient()
    with pytest.raises(TaskLostError):
        Offers(client).next_task()
    assert client.finished == ["failed"]
    assert client.closed.is_set()


@pytest.mark.parametrize("error", [httpx.ConnectError("gone"), ValueError("4711"), KeyError("x")])
def test_any_other_trouble_is_left_to_the_supernode_which_then_replies_itself(
    monkeypatch, caplog, error
):
    monkeypatch.setattr(runtime, "pull", failing(error))
    client = FakeClient()
    with pytest.raises(TaskLostError):
        Offers(client).next_task()
    assert not client.finished
    assert client.closed.is_set()
    assert "4711" not in caplog.text
