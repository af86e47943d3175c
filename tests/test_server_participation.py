"""A deployment whose replies are lost or late: rounds asked again, skipped, closed early."""

import json

import pytest
from flwr.app import MessageType

from common.errors import ConfigError
from common.experiment_file import load_experiment
from simulations.simulate import simulate
from tests.test_server_app import (
    NAMES,
    SETTINGS,
    Nodes,
    events_of,
    expected,
    run,
    runs,
    same,
    the_run,
    trunk_of,
)  # fmt: skip

__all__ = ["expected", "runs"]  # fixtures
ALL_NEEDED = ["federation.least-replies=1.0", "federation.round-timeout-s=0.3"]


class Losing(Nodes):
    """Nodes whose answers to some messages never arrive."""

    def __init__(self, lost):
        super().__init__()
        self.lost, self.gone = dict(lost), set()  # (round, client) -> how often it is lost

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        for message, message_id in zip(messages, ids, strict=True):
            if message.metadata.message_type == MessageType.TRAIN:
                place = (
                    message.content["config"]["round"],
                    self.name_of(message.metadata.dst_node_id),
                )
                if self.lost.get(place, 0):
                    self.lost[place] -= 1
                    self.gone.add(message_id)
        return ids

    def pull_messages(self, message_ids):
        return super().pull_messages([i for i in message_ids if i not in self.gone])


def lines_of(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_round_asked_again_after_a_lost_reply_is_the_round_that_lost_none(runs, expected):
    settings = [*SETTINGS, *ALL_NEEDED, "federation.too-few=repeat"]
    run(Losing({(2, "client-001"): 2}), set=" ".join(settings))
    folder = the_run(runs)
    same(folder, expected)
    line = lines_of(folder)[1]
    assert line["clients"]["answered"] == 3
    lost = {"asked": 3, "answered": 2, "left-out": {"client-001": "no answer in time"}}
    assert line["lost-attempts"] == [lost] * 2
    told = [event for event in events_of(folder) if event["event"] == "round"][1]
    assert (told["attempts"], told["skipped"]) == (3, None)
    assert 'fedmtl_failures_total{reason="timeout"} 2.0' in (folder / "metrics.prom").read_text()


def test_a_skipped_round_leaves_the_trunk_and_the_next_one_goes_on(runs, expected):
    settings = [*SETTINGS, *ALL_NEEDED, "federation.too-few=skip"]
    run(Losing({(4, "client-001"): 1}), set=" ".join(settings))
    folder, three = the_run(runs), runs.parent / "three"
    simulate(
        load_experiment("digits", [*SETTINGS, "federation.rounds=3"]), engine="loopback", out=three
    )
    before, after = trunk_of(three), trunk_of(folder)
    assert all((before[name] == after[name]).all() for name in before)
    assert lines_of(folder)[3]["skipped"] == "usable replies: 2, needed: 3"
    assert json.loads((folder / "results.json").read_text())["skipped-rounds"] == 1


def test_a_round_closes_without_the_reply_it_can_do_without(runs):
    settings = [*SETTINGS, "federation.clients-per-round=2", "federation.over-selection=0.5"]
    run(Losing({(2, "client-001"): 1}), set=" ".join(settings))  # the deadline is an hour away
    late = "came after the round had closed"
    for line in lines_of(the_run(runs)):
        assert line["clients"]["asked"] == 3
        assert line["clients"]["answered"] == 2
        assert set(line["clients"]["left-out"].values()) == {late}
    assert lines_of(the_run(runs))[1]["clients"]["left-out"] == {"client-001": late}


def write_trace(folder, *lines):
    (folder / "trace.csv").write_text("\n".join(["client,from-round,to-round,delay-s", *lines]))
    return [*SETTINGS, f"federation.availability={folder / 'trace.csv'}"]


def test_a_trace_is_a_timetable_of_which_the_nodes_are_told_a_digest(runs, tmp_path, caplog):
    nodes = Nodes()
    run(nodes, set=" ".join(write_trace(tmp_path, "client-001,2,3,", "client-007,1,9,0")))
    assert [line["clients"]["asked"] for line in lines_of(the_run(runs))] == [2, 3, 3, 2]
    assert [config["clients"] for config in nodes.asked] == [2, 3, 3, 2]
    for config in nodes.asked:
        assert "sha256:" in config["experiment"]
        assert not any(name in config["experiment"] for name in (*NAMES, "client-007"))
        assert "trace.csv" not in config["experiment"]
    assert "line 3: client must be one of the 3 clients, got 'client-007'" in caplog.text


def test_delays_are_refused_where_nobody_simulates_them(runs, tmp_path):
    with pytest.raises(ConfigError, match="delay-s other than 0 in a deployment"):
        run(Nodes(), set=" ".join(write_trace(tmp_path, "client-001,2,3,1.5")))
