"""A deployed run: its log, status and figures; killed, full disk, resumed, and two at once."""

import io
import json
import logging
import os
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, MessageType, RecordDict
from safetensors.numpy import load_file

from client.app import app as client_app
from client.session import close_sessions
from common.errors import CheckpointError, ClientsMissingError, ConfigError, FedMTLError
from common.experiment_file import load_experiment
from common.locking import take
from common.status import judge
from server import app as server_app
from server.app import OneLine
from simulations.loopback import LoopbackGrid
from simulations.simulate import simulate

SETTINGS = ["partition.clients=3", "trunk.widths=[8]", "federation.rounds=4"]
NAMES = ["client-000", "client-001", "client-002"]


def log_of(error):
    stream = io.StringIO()
    logger = logging.Logger("flwr")
    logger.addHandler(logging.StreamHandler(stream))
    logger.addFilter(OneLine())
    try:
        raise error
    except Exception as caught:
        logger.error("%s raised an exception", "ServerApp", exc_info=caught)
    return stream.getvalue()


def test_an_error_of_the_users_input_is_one_line():
    assert log_of(ConfigError("a must be 1\nb must be 2")) == "a must be 1; b must be 2\n"


def test_any_other_error_keeps_its_traceback():
    text = log_of(KeyError("x"))
    assert text.startswith("ServerApp raised an exception\nTraceback")


class Killed(BaseException):
    """Stands for the end of the server's process."""


class Nodes(LoopbackGrid):
    """Nodes that outlive their server, which dies before it gets the replies of some round."""

    def __init__(self):
        super().__init__(client_app, NAMES)
        self.dies_in_round, self.asked, self.offline = 0, [], 0

    def get_node_ids(self):
        return list(super().get_node_ids())[self.offline :]

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        if messages[0].metadata.message_type == MessageType.TRAIN:
            self.asked.append(messages[0].content["config"])
            if self.asked[-1]["round"] == self.dies_in_round:
                raise Killed
        return ids


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMTL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FEDMTL_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(server_app, "prepare_logs", lambda: None)
    logging.getLogger("fedmtl").setLevel(logging.INFO)
    yield tmp_path / "runs"
    logging.getLogger("fedmtl").setLevel(logging.NOTSET)
    close_sessions()


def run(nodes, **settings):
    given = {"experiment": "digits", "set": "", "resume": "", "heads-from": "", **settings}
    if not given["resume"] and not given["set"]:
        given["set"] = " ".join(SETTINGS)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=given)
    server_app.app(nodes, context)


def the_run(runs: Path) -> Path:
    (folder,) = runs.iterdir()
    return folder


def trunk_of(folder: Path):
    manifest = json.loads((folder / "checkpoint" / "checkpoint.json").read_text())
    return load_file(folder / "checkpoint" / manifest["files"]["trunk"])


def events_of(folder: Path):
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "event" in line]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The same run on the loopback engine, never interrupted."""
    out = tmp_path_factory.mktemp("expected") / "run"
    simulate(load_experiment("digits", SETTINGS), engine="loopback", out=out)
    close_sessions()
    return out


def same(folder: Path, expected: Path):
    found, wanted = trunk_of(folder), trunk_of(expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    results = [json.loads((f / "results.json").read_text()) for f in (folder, expected)]
    assert results[0]["final"] == results[1]["final"]
    lines = [(f / "metrics.jsonl").read_text().splitlines() for f in (folder, expected)]
    rounds = [[json.loads(line)["round"] for line in text] for text in lines]
    assert rounds[0] == rounds[1]


def test_a_deployed_run_is_the_loopback_engines_and_tells_of_itself(runs, expected):
    run(Nodes())
    folder = the_run(runs)
    same(folder, expected)
    kinds = [event["event"] for event in events_of(folder)]
    assert kinds == ["met"] * 3 + ["started"] + ["round"] * 4 + ["done"]
    first = events_of(folder)[4]
    assert (first["round"], first["answered"], first["left_out"]) == (1, 3, {})
    assert first["run"].startswith("digits-")
    assert first["sent_bytes"] > 0
    health = judge(folder)
    assert (health.is_healthy, health.status.state, health.status.round) == (True, "done", 4)
    figures = (folder / "metrics.prom").read_text()
    assert "fedmtl_rounds_total 4.0" in figures
    assert "fedmtl_replies_total 12.0" in figures
    assert "fedmtl_round_seconds_count 4.0" in figures
    assert "fedmtl_clients_connected 3.0" in figures


@pytest.mark.parametrize("killed_in", [1, 3])
def test_a_server_that_was_killed_goes_on_as_if_it_never_was(runs, expected, killed_in):
    nodes = Nodes()
    nodes.dies_in_round = killed_in
    with pytest.raises(Killed):
        run(nodes)
    folder = the_run(runs)
    assert not judge(folder).is_healthy
    nodes.dies_in_round = 0
    run(nodes, resume=folder.name)
    same(folder, expected)
    assert len({config["run"] for config in nodes.asked}) == 1
    assert [config["round"] for config in nodes.asked].count(killed_in) == 2
    stopped, resumed = (
        next(e for e in events_of(folder) if e["event"] == kind) for kind in ("stopped", "resumed")
    )
    assert f'resume="{folder.name}"' in stopped["resume"]
    assert resumed["round"] == killed_in - 1


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(runs, expected):
    nodes = Nodes()
    nodes.client_app = lambda *_: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        run(nodes)
    run(Nodes(), resume=the_run(runs).name)
    same(the_run(runs), expected)


def test_more_rounds_can_be_asked_for_and_nothing_else(runs):
    run(Nodes(), set=" ".join([*SETTINGS[:2], "federation.rounds=1"]))
    name = the_run(runs).name
    run(Nodes(), resume=name, set="federation.rounds=2")
    assert judge(the_run(runs)).status.round == 2
    with pytest.raises(ConfigError, match=r"With resume, set may change only federation\.rounds"):
        run(Nodes(), resume=name, set="training.lr=0.1")
    with pytest.raises(ConfigError, match=r"federation\.rounds must be at least 2"):
        run(Nodes(), resume=name, set="federation.rounds=1")


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"resume": "no-such"}, CheckpointError, "resume must be the name of a run folder"),
        ({"resume": "../runs"}, CheckpointError, "resume must be the name of a run folder"),
        ({"resume": "x", "heads-from": "y"}, ConfigError, "heads-from is for a new run"),
        ({"resume": "x", "experiment": "school"}, ConfigError, "leave experiment out"),
    ],
)
def test_what_does_not_go_with_resuming_is_told(runs, settings, error, text):
    with pytest.raises(error, match=text) as caught:
        run(Nodes(), **settings)
    assert len(str(caught.value).splitlines()) == 1


def test_a_second_server_on_one_run_is_refused(runs, monkeypatch):
    monkeypatch.setattr("common.locking.WAIT_S", 0.0)
    run(Nodes(), set=" ".join([*SETTINGS[:2], "federation.rounds=1"]))
    folder = the_run(runs)
    handle = take(folder / "lock")
    with pytest.raises(CheckpointError, match="is in use: another ServerApp"):
        run(Nodes(), resume=folder.name)
    os.close(handle)
    run(Nodes(), resume=folder.name)


def test_runs_that_start_in_one_second_get_folders_of_their_own(runs, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    short = " ".join([*SETTINGS[:2], "federation.rounds=1"])
    run(Nodes(), set=short)
    run(Nodes(), set=short)
    assert sorted(p.name for p in runs.iterdir()) == [
        "digits-20260101-000000",
        "digits-20260101-000000-2",
    ]


def test_clients_are_told_whose_heads_to_start_from(runs):
    short = " ".join([*SETTINGS[:2], "federation.rounds=1"])
    nodes = Nodes()
    run(nodes, set=short)
    earlier = nodes.asked[0]["run"]
    run(nodes, set=short, **{"heads-from": the_run(runs).name})
    run(nodes, set=short, **{"heads-from": "digits-0badcafe"})
    assert [config["heads-from"] for config in nodes.asked] == ["", earlier, "digits-0badcafe"]


def test_a_round_waits_for_its_clients_and_then_stops_to_be_resumed(runs, monkeypatch):
    monkeypatch.setattr("server.roster.POLL_S", 0.01)
    nodes = Nodes()
    heard = nodes.push_messages

    def push_and_lose_one(messages):
        ids = heard(messages)
        if nodes.asked:
            nodes.offline = 1
        return ids

    nodes.push_messages = push_and_lose_one
    settings = [*SETTINGS, "federation.min-clients=3", "federation.round-timeout-s=0.5"]
    with pytest.raises(ClientsMissingError, match="3 clients are needed, 2 are connected"):
        run(nodes, set=" ".join(settings))
    folder = the_run(runs)
    health = judge(folder)
    assert (health.status.state, health.status.round) == ("failed", 1)
    assert "waiting" in [event["event"] for event in events_of(folder)]
    assert "fedmtl_clients_connected 2.0" in (folder / "metrics.prom").read_text()
    nodes.offline, nodes.push_messages = 0, heard
    run(nodes, resume=folder.name)
    assert judge(folder).status.state == "done"


def test_an_offline_client_is_not_asked_and_the_round_goes_on_without_it(runs):
    nodes = Nodes()
    heard = nodes.push_messages

    def push(messages):
        ids = heard(messages)
        nodes.offline = 1 if len(nodes.asked) == 2 else 0
        return ids

    nodes.push_messages = push
    run(nodes)
    folder = the_run(runs)
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients"]["asked"] for line in lines] == [3, 3, 2, 3]
    assert [config["clients"] for config in nodes.asked] == [3, 3, 2, 3]
    assert {"left", "back"} <= {event["event"] for event in events_of(folder)}


def test_figures_are_served_where_a_port_is_named(runs, monkeypatch, unused_port):
    monkeypatch.setenv("FEDMTL_METRICS_PORT", str(unused_port))
    seen = []
    nodes = Nodes()
    heard = nodes.push_messages

    def push(messages):
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics") as answer:
            seen.append(answer.read().decode())
        return heard(messages)

    nodes.push_messages = push
    run(nodes)
    assert "fedmtl_rounds_total 3.0" in seen[-2]


@pytest.mark.parametrize("port", ["none", "99999999", "80x"])
def test_a_port_that_cannot_be_had_ends_nothing(runs, monkeypatch, port):
    monkeypatch.setenv("FEDMTL_METRICS_PORT", port)
    run(Nodes())
    text = (the_run(runs) / "log.jsonl").read_text()
    assert "FEDMTL_METRICS_PORT must be a free port" in text


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def small_disk(runs):
    """A disk of 400 kB for run folders."""
    runs.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(runs)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to mount a small disk")
    yield runs
    subprocess.run(["umount", "-l", str(runs)], check=True)


def fill(path):
    with suppress(OSError), path.open("wb", 0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_ends_the_run_with_a_line_and_loses_nothing(small_disk, expected):
    nodes = Nodes()
    heard = nodes.push_messages
    ballast = small_disk / "ballast"

    def push(messages):
        if len(nodes.asked) == 2:
            fill(ballast)
        return heard(messages)

    nodes.push_messages = push
    with pytest.raises(FedMTLError, match=r"cannot be written: .*No space left") as caught:
        run(nodes)
    folder = next(p for p in small_disk.iterdir() if p.is_dir())
    assert f"""flwr run . SUPERLINK --stream -c 'resume="{folder.name}"'""" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert json.loads((folder / "checkpoint" / "checkpoint.json").read_text())["round"] == 2
    ballast.unlink()
    nodes.push_messages = heard
    run(nodes, resume=folder.name)
    same(folder, expected)
