"""Whole runs whose server learns sums alone, on every engine, with clients that drop out."""

import json

import numpy as np
import pytest
import typer
from flwr.app import ArrayRecord, Message

from client.app import app
from client.session import close_sessions
from common.clients import open_clients
from common.errors import ConfigError, NothingLearnedError
from common.experiment_file import load_experiment
from common.privacy import problems
from common.secure_aggregation import grids
from common.secure_aggregation.grids import (
    MOST_CLIENTS,
    join_sums,
    require_room_for_sums,
    split_sums,
)
from common.secure_aggregation.records import KEYS, MASKED, SECURE, SHARES, UNMASK
from common.wire import size_bytes
from server import federation
from server.federation import federate
from server.run_folder import RunFolder
from simulations.benchmarks.secure_aggregation import HEADINGS, Case, main
from simulations.hostile import Hostile
from simulations.loopback import LoopbackGrid
from simulations.report import write_report
from simulations.simulate import simulate
from tests.lossy_loopback import simulate_losses
from tests.test_simulations_engines import assert_same_figures, assert_same_trunk, figures, trunk

SMALL = ["partition.clients=6", "trunk.widths=[8]", "federation.rounds=2"]
# A norm that clips nothing, and the finest grid, so that a run may be held against a plain one.
SECURE_SETTINGS = ["privacy.secure-aggregation.max-norm=50", "privacy.secure-aggregation.bits=24"]
SKEWED = ["partition.task-skew=random", "partition.tasks-per-client=2"]
NAMES = [f"client-{number:03d}" for number in range(6)]
TOLERANCE = 2e-4  # steps of 50 / 2^23, six clients, two rounds of training


def experiment(*settings, secure=True):
    return load_experiment("digits", [*SMALL, *(SECURE_SETTINGS if secure else ()), *settings])


class DroppingGrid(LoopbackGrid):
    """Keeps what the server saw; loses messages, each (round, kind) once: to these clients."""

    def __init__(self, names, losses):
        super().__init__(app, names)
        self.losses, self.seen = losses, []

    def send_and_receive(self, messages, *, timeout=None):
        asked = list(messages)
        about = asked[0].content["config"]["round"], asked[0].metadata.message_type
        gone = self.losses.pop(about, ())
        names = [self.name_of(message.metadata.dst_node_id) for message in asked]
        pairs = zip(asked, names, strict=True)
        replies = [self.deliver(message) for message, name in pairs if name not in gone]
        self.seen += replies
        return replies


def simulate_drops(settings, out, losses):
    grid = DroppingGrid(open_clients(settings).names, losses)
    folder = RunFolder(out)
    folder.create(settings, "loopback")
    try:
        federate(grid, settings, folder, strict=True, keep_clients=grid.keep_clients)
    finally:
        close_sessions()
    return grid


@pytest.mark.parametrize(
    "settings",
    [
        ["federation.weight-by=uniform"],
        ["federation.weight-by=examples", "partition.kind=dirichlet", "partition.by=digit"],
        ["federation.strategy=fedadam"],
        [*SKEWED, "federation.heads=per-task"],
        ["evaluation.by=message"],
        ["privacy.secure-aggregation.neighbours=4"],
    ],
    ids=["uniform", "examples", "fedadam", "parts of tasks", "by message", "few neighbours"],
)
def test_all_engines_come_to_the_plain_trunk_and_figures(tmp_path, settings):
    simulate(experiment(*(s for s in settings if "privacy" not in s), secure=False),
             engine="loopback", out=tmp_path / "plain")  # fmt: skip
    for engine in ("loopback", "batched"):
        results = simulate(experiment(*settings), engine=engine, out=tmp_path / engine)
        assert_same_trunk(tmp_path / "plain", tmp_path / engine, TOLERANCE)
        assert results["clients"] == {}
        assert results["final"]["clients"] == 6
    plain = json.loads((tmp_path / "plain" / "results.json").read_text())
    for split in ("validation", "test"):
        for task, own in plain["final"][split]["tasks"].items():
            found = results["final"][split]["tasks"][task]
            assert found["examples"] == own["examples"]
            assert found["loss"] == pytest.approx(own["loss"], rel=1e-3)
            assert "spread" not in found
    assert_same_figures(figures(tmp_path / "loopback"), figures(tmp_path / "batched"))


def test_parts_of_tasks_that_have_no_stacked_form_are_averaged_over_holders(tmp_path):
    settings = [*SKEWED, "trunk.sharing=mtan", "trunk.widths=[8]"]
    simulate(experiment(*settings, secure=False), engine="loopback", out=tmp_path / "plain")
    simulate(experiment(*settings), engine="loopback", out=tmp_path / "secure")
    assert_same_trunk(tmp_path / "plain", tmp_path / "secure", TOLERANCE)


def test_worker_processes_make_the_same_run(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        simulate(experiment(), engine="loopback", out=tmp_path / name, workers=workers)
    assert_same_trunk(tmp_path / "one", tmp_path / "two", 0.0)
    assert figures(tmp_path / "one") == figures(tmp_path / "two")


def test_a_resumed_run_is_the_whole_one(tmp_path):
    settings = ["federation.rounds=4", "federation.strategy=fedadam"]
    whole = simulate(experiment(*settings), engine="loopback", out=tmp_path / "whole")
    simulate(experiment(*settings[1:]), engine="loopback", out=tmp_path / "parts")
    parts = simulate(experiment(*settings), engine="loopback", out=tmp_path / "parts", resume=True)
    assert_same_trunk(tmp_path / "whole", tmp_path / "parts", 0.0)
    assert whole["final"] == parts["final"]


@pytest.mark.parametrize("kind", [KEYS, SHARES, "train"])
@pytest.mark.parametrize("heads", [[], [*SKEWED, "federation.heads=per-task"]])
def test_who_drops_out_before_its_vector_is_there_is_not_in_the_sum(tmp_path, kind, heads):
    gone = {NAMES[1], NAMES[4]}
    grid = simulate_drops(experiment(*heads), tmp_path / "secure", {(1, kind): gone})
    lost = {(1, name): "before" for name in gone}
    simulate_losses(experiment(*heads, secure=False), tmp_path / "plain", lost)
    assert_same_trunk(tmp_path / "plain", tmp_path / "secure", TOLERANCE)
    first = figures(tmp_path / "secure")[0]["clients"]
    assert (first["answered"], set(first["left-out"])) == (4, gone)
    assert not grid.losses


def test_who_drops_out_after_its_vector_is_there_is_in_the_sum(tmp_path):
    simulate_drops(experiment(), tmp_path / "secure", {(1, UNMASK): {NAMES[0], NAMES[5]}})
    simulate(experiment(secure=False), engine="loopback", out=tmp_path / "plain")
    assert_same_trunk(tmp_path / "plain", tmp_path / "secure", TOLERANCE)
    assert figures(tmp_path / "secure")[0]["clients"]["answered"] == 6


@pytest.mark.parametrize("kind", [KEYS, SHARES, "train", UNMASK])
def test_below_the_threshold_a_round_is_lost_and_the_trunk_stays(tmp_path, kind):
    losses = {(2, kind): set(NAMES[:3])}
    simulate_drops(experiment("evaluation.by=train-reply"), tmp_path / "secure", losses)
    simulate(experiment("federation.rounds=1"), engine="loopback", out=tmp_path / "one")
    assert_same_trunk(tmp_path / "one", tmp_path / "secure", 0.0)
    first, second = figures(tmp_path / "secure")
    assert first["skipped"] is None
    assert "secure aggregation: " in second["skipped"]
    assert "4 are needed" in second["skipped"]
    assert second["clients"]["answered"] == 0
    assert second["train"]["loss"] is None


def test_too_few_replies_for_the_experiment_are_not_even_uncovered(tmp_path):
    settings = experiment("federation.least-replies=1.0", "federation.too-few=skip")
    grid = simulate_drops(settings, tmp_path / "run", {(1, "train"): {NAMES[0]}})
    first, second = figures(tmp_path / "run")
    assert first["skipped"] == "usable replies: 5, needed: 6"
    assert second["skipped"] is None
    uncovered = [reply for reply in grid.seen if "seed-shares" in reply.content.get(SECURE, {})]
    assert len(uncovered) == 2 * 6  # of round 2, and of the last evaluation


def test_a_lost_round_is_repeated_where_the_experiment_says_so(tmp_path):
    settings = experiment(
        "federation.too-few=repeat", "federation.least-replies=0.5", "federation.rounds=1"
    )
    simulate_drops(settings, tmp_path / "run", {(1, "train"): set(NAMES[:3])})
    (line,) = figures(tmp_path / "run")
    assert len(line["lost-attempts"]) == 1
    assert line["skipped"] is None


def test_a_run_whose_every_round_is_below_the_threshold_says_so(tmp_path):
    losses = {(number, SHARES): set(NAMES[:3]) for number in (1, 2)}
    with pytest.raises(NothingLearnedError, match="secure aggregation: shares of 3 clients"):
        simulate_drops(experiment(), tmp_path / "run", losses)


def test_the_server_is_sent_nothing_but_keys_shares_and_masked_vectors(tmp_path):
    grid = simulate_drops(experiment("trunk.widths=[128]"), tmp_path / "run", {})
    later = [reply for reply in grid.seen if set(reply.content) != {"config"}]  # not descriptions
    assert {tuple(reply.content) for reply in later} == {(SECURE,), (MASKED,)}
    masked = [reply.content[MASKED] for reply in later if MASKED in reply.content]
    assert {tuple(record) for record in masked} == {("update", "sums")}
    updates = [record["update"].numpy() for record in masked if record["update"].shape[0]]
    assert len(updates) == 12
    for update in updates:
        counts = np.bincount(update >> 24, minlength=256)  # an update's own are 0 or 255
        expected = len(update) / 256
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert abs(statistic - 255) < 6 * 22.6  # chi-square with 255 degrees of freedom
    sums = np.concatenate([record["sums"].numpy() for record in masked])
    assert (sums > 2**55).mean() > 0.9  # a client's own are far below, or just under 2^64
    # No two vectors differ by what is smaller than masks.
    difference = (updates[0] - updates[1]).astype(np.int32)
    assert np.median(np.abs(difference.astype(np.int64))) > 2**28


def test_a_plain_question_gets_no_update(tmp_path):
    refused = set()

    class Curious(LoopbackGrid):
        def deliver(self, message):
            if message.metadata.message_type == "train":
                message.content.pop(SECURE, None)
            reply = super().deliver(message)
            if reply.has_error():
                refused.add(reply.error.reason)
            return reply

    settings = experiment("federation.rounds=1")
    grid = Curious(app, open_clients(settings).names)
    folder = RunFolder(tmp_path / "run")
    folder.create(settings, "loopback")
    with pytest.raises(NothingLearnedError):
        federate(grid, settings, folder, strict=True)
    close_sessions()
    assert refused == {"secure aggregation: the message has no record 'secure'"}


def test_a_message_asked_twice_gets_one_masked_vector(tmp_path):
    second = []

    class Twice(LoopbackGrid):
        def deliver(self, message):
            reply = super().deliver(message)
            if message.metadata.message_type == "train":
                again = Message(message.content, message.metadata.dst_node_id, "train")
                second.append(super().deliver(again))
            return reply

    settings = experiment("federation.rounds=1")
    grid = Twice(app, open_clients(settings).names)
    folder = RunFolder(tmp_path / "run")
    folder.create(settings, "loopback")
    federate(grid, settings, folder, strict=True)
    close_sessions()
    assert len(second) == 6
    assert all(reply.has_error() for reply in second)
    assert "this client is at 'mask'" in second[0].error.reason


def test_bytes_are_those_of_the_messages(tmp_path):
    totals = {}
    for engine in ("loopback", "batched"):
        results = simulate(experiment(), engine=engine, out=tmp_path / engine)
        totals[engine] = results["traffic"]
    assert totals["loopback"] == totals["batched"]
    grid = simulate_drops(experiment(), tmp_path / "seen", {})
    received = sum(size_bytes(r.content) for r in grid.seen if "config" not in r.content)
    assert totals["loopback"]["received-bytes"] == received


def test_the_report_tells_of_a_run_without_single_clients(tmp_path):
    simulate(experiment(), engine="batched", out=tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    assert "digit" in page


def test_clients_that_have_no_room_are_refused_before_they_train():
    with pytest.raises(ConfigError, match=r"leave room for 300 clients .* room for 256"):
        experiment("partition.clients=300")


def test_sums_of_more_clients_than_have_room_are_refused_and_those_of_all_that_have_are_right():
    largest = np.array([2.0**19 - 1])
    total = np.zeros(2, np.uint64)
    for _ in range(MOST_CLIENTS):
        total += split_sums(largest)
    assert join_sums(total) == largest * MOST_CLIENTS
    with pytest.raises(ConfigError, match=r"has room for 4,096 clients, .* got 4,097"):
        require_room_for_sums(MOST_CLIENTS + 1)


@pytest.mark.parametrize("bits", [20, 24])
def test_clients_that_join_and_have_no_room_are_not_added_up(tmp_path, monkeypatch, bits):
    """After the start, at which there was room for all."""
    monkeypatch.setattr(grids, "MODULUS_BITS", 26)  # room for 4 of 24 bits, and for 64 of 20
    monkeypatch.setattr(federation, "require_room", lambda *_: None)
    monkeypatch.setattr(problems, "_room_problems", lambda *_: ())
    settings = experiment(f"privacy.secure-aggregation.bits={bits}", "federation.rounds=1")
    if bits == 20:
        simulate_drops(settings, tmp_path, {})
        return
    with pytest.raises(NothingLearnedError, match=r"leave room for 6 clients"):
        simulate_drops(settings, tmp_path, {})


def test_an_update_goes_no_further_than_the_norm(tmp_path):
    clipped = ["privacy.secure-aggregation.max-norm=0.1", "federation.rounds=1"]
    settings = load_experiment("digits", [*SMALL, *clipped])
    simulate(settings, engine="loopback", out=tmp_path / "run")
    start = load_experiment("digits", [*SMALL, *clipped, "training.lr=1e-12"])
    simulate(start, engine="loopback", out=tmp_path / "start")
    after, before = trunk(tmp_path / "run"), trunk(tmp_path / "start")
    moved = np.sqrt(sum(float(np.square(after[n] - before[n]).sum()) for n in after))
    assert 0.05 < moved < 0.1 * 1.001


def test_arrays_of_replies_are_whole_numbers(tmp_path):
    grid = simulate_drops(experiment("federation.rounds=1"), tmp_path / "run", {})
    arrays = [
        r for reply in grid.seen for r in reply.content.values() if isinstance(r, ArrayRecord)
    ]
    assert {array.dtype for record in arrays for array in record.values()} == {"uint32", "uint64"}


SHARED_NOISE = [
    "federation.weight-by=uniform",
    "privacy.client-level.noise=shares",
    "privacy.client-level.noise-multiplier=2",
    "privacy.client-level.max-norm=3",
    "privacy.secure-aggregation.bits=20",
]


def still(*settings):
    """A federation that learns nothing, so that its trunk moves by noise alone."""
    few = ["partition.clients=6", "trunk.widths=[64]", "federation.rounds=1", "training.lr=1e-12"]
    return load_experiment("digits", [*few, *SHARED_NOISE, *settings])


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize("distribution", ["discrete-gaussian", "skellam"])
def test_the_mean_has_at_least_the_noise_that_was_asked_for(tmp_path, engine, distribution):
    settings = still(f"privacy.client-level.distribution={distribution}")
    simulate(settings, engine=engine, out=tmp_path / "noisy")
    plain = load_experiment("digits", ["partition.clients=6", "trunk.widths=[64]",
                                       "federation.rounds=1", "training.lr=1e-12"])  # fmt: skip
    simulate(plain, engine=engine, out=tmp_path / "plain")
    after, before = trunk(tmp_path / "noisy"), trunk(tmp_path / "plain")
    moves = np.concatenate([(after[name] - before[name]).reshape(-1) for name in after])
    # Six stay where four are guaranteed: the noise of six shares, on the sum, over six clients.
    expected = 2 * 3 / 6 * np.sqrt(6 / 4)
    assert moves.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * len(moves)))


def test_noise_in_shares_repeats_and_resumes(tmp_path):
    for name in ("one", "again"):
        simulate(still("federation.rounds=2"), engine="loopback", out=tmp_path / name)
    simulate(still(), engine="loopback", out=tmp_path / "parts")
    simulate(still("federation.rounds=2"), engine="loopback", out=tmp_path / "parts", resume=True)
    for other in ("again", "parts"):
        assert_same_trunk(tmp_path / "one", tmp_path / other, 0.0)
    simulate(still("federation.rounds=2"), engine="batched", out=tmp_path / "batched")
    assert_same_trunk(tmp_path / "one", tmp_path / "batched", 1e-4)


def test_noise_of_shares_is_there_with_as_few_as_the_threshold_allows(tmp_path):
    simulate_drops(still(), tmp_path / "run", {(1, "train"): set(NAMES[:2])})
    simulate(still("privacy.client-level.noise-multiplier=1e-6"),
             engine="loopback", out=tmp_path / "quiet")  # fmt: skip
    after, before = trunk(tmp_path / "run"), trunk(tmp_path / "quiet")
    moves = np.concatenate([(after[name] - before[name]).reshape(-1) for name in after])
    assert moves.std() == pytest.approx(2 * 3 / 6, rel=5 / np.sqrt(2 * len(moves)))


@pytest.mark.parametrize("quantile", [[], ["privacy.client-level.quantile=0.5"]])
def test_noise_of_the_server_on_a_secure_sum_is_that_on_an_open_one(tmp_path, quantile):
    settings = [
        "federation.weight-by=uniform",
        "privacy.client-level.noise-multiplier=0.01",
        "privacy.client-level.max-norm=5",
        *quantile,
    ]
    simulate(experiment(*settings, secure=False), engine="loopback", out=tmp_path / "open")
    for engine in ("loopback", "batched"):
        secure = [*settings, "privacy.secure-aggregation.bits=24"]
        simulate(experiment(*secure, secure=False), engine=engine, out=tmp_path / engine)
        assert_same_trunk(tmp_path / "open", tmp_path / engine, 1e-4)


def test_hostile_clients_are_not_simulated_under_masks(tmp_path):
    hostile = Hostile("sign-flip", frozenset(NAMES[:1]), 1.0)
    with pytest.raises(ConfigError, match="must be left out under"):
        simulate(experiment(), engine="loopback", out=tmp_path / "run", hostile=hostile)


def test_where_counts_are_withheld_weights_and_holders_are_right_all_the_same(tmp_path):
    skewed = [
        "partition.kind=dirichlet",
        "partition.by=digit",
        *SKEWED,
        "federation.heads=per-task",
    ]
    withheld = ["privacy.counts=withheld", "privacy.secure-aggregation.most-examples=400"]
    simulate(experiment(*skewed, secure=False), engine="loopback", out=tmp_path / "plain")
    for engine in ("loopback", "batched"):
        results = simulate(experiment(*skewed, *withheld), engine=engine, out=tmp_path / engine)
        assert_same_trunk(tmp_path / "plain", tmp_path / engine, TOLERANCE)
        assert results["final"]["clients"] == 6


def test_small_groups_are_in_no_sum(tmp_path):
    whole = simulate(experiment(), engine="loopback", out=tmp_path / "whole")
    assert whole["final"]["test"]["tasks"]["digit"]["examples"] > 0
    smallest = ["privacy.smallest-group=1000"]
    for engine in ("loopback", "batched"):
        results = simulate(experiment(*smallest), engine=engine, out=tmp_path / engine)
        assert results["final"]["test"] == {}


@pytest.mark.parametrize("late", [1, 3])
def test_engines_agree_on_clients_that_come_too_late(tmp_path, late):
    lines = [f"client-00{number},1,1,20" for number in range(late)]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["client,from-round,to-round,delay-s", *lines]))
    settings = [f"federation.availability={trace}", "federation.round-timeout-s=10"]
    for engine in ("loopback", "batched"):
        simulate(experiment(*settings), engine=engine, out=tmp_path / engine)
    assert_same_trunk(tmp_path / "loopback", tmp_path / "batched", TOLERANCE)
    ours, theirs = (figures(tmp_path / engine)[0] for engine in ("loopback", "batched"))
    assert ours["clients"]["answered"] == theirs["clients"]["answered"] == (5 if late == 1 else 0)
    assert set(ours["clients"]["left-out"]) == set(theirs["clients"]["left-out"])
    assert ours["skipped"] == theirs["skipped"]
    assert (ours["skipped"] is None) == (late == 1)


@pytest.mark.parametrize(("neighbours", "gone"), [(0, 0), (0, 2), (4, 1)])
def test_the_benchmark_measures_rounds_whose_sums_are_right(neighbours, gone):
    case = Case(clients=8, parameters=300, neighbours=neighbours, gone=gone)
    case.run()
    cells = dict(zip(HEADINGS, case.cells(), strict=True))
    assert (cells["clients"], cells["gone"]) == ("8", str(gone))
    assert cells["neighbours"] == str(neighbours or 7)
    assert float(cells["of plain"]) > 1


def test_the_benchmark_takes_no_round_that_would_be_lost(capsys):
    with pytest.raises(typer.Exit):
        main(clients="4", parameters="10", neighbours=0, gone=0.5)
    assert "--gone must be from 0 to below 0.34, got 0.5" in capsys.readouterr().err
