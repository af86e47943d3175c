"""--record-wire: what travelled is written, and nothing more, on every engine."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict

from common.errors import CheckpointError, ConfigError
from common.experiment_file import load_experiment
from common.privacy.settings import SecureAggregation
from simulations.attacks.truth import client_data, replay, train_again
from simulations.attacks.wire import EVERYBODY, open_wire
from simulations.simulate import simulate
from simulations.wire_record import FOLDER, INDEX, WireRecord
from tests.recorded import SMALL, record

FOUR = ["partition.clients=4", "data.test=0.5"]


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    return record(tmp_path_factory.mktemp("wire") / "run", *FOUR)


def test_the_record_holds_every_reply_of_every_round(wire):
    assert wire.rounds == [1, 2]
    assert all(wire.clients(n) == [f"client-00{i}" for i in range(4)] for n in wire.rounds)
    assert [line["kind"] for line in wire.lines] == ["query", "train", "train", "evaluate"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_client_trained_again_sends_what_the_record_holds(wire, number):
    """Bit for bit: what was written is what was sent and what came, of the same round."""
    client = "client-002"
    own, trainer = replay(wire, number, client)
    again = train_again(wire, trainer, client_data(wire, client), number, own, client)
    came = wire.reply(number, client).arrays
    assert again.keys() == came.keys()
    assert all(np.array_equal(again[name], came[name]) for name in came)
    assert any(update.any() for update in wire.update(number, client).values())


@pytest.mark.parametrize(
    "settings",
    [
        ["federation.algorithm=scaffold", "training.optimiser=sgd"],
        ["federation.algorithm=whole-model"],
        ["federation.algorithm=fedrep"],
        ["loss.weighting=uncertainty"],
        ["partition.task-skew=rotate"],
    ],
)
def test_clients_of_every_kind_can_be_trained_again(tmp_path, settings):
    wire = record(tmp_path / "run", *FOUR, *settings)
    own, trainer = replay(wire, 2, "client-002")
    data = client_data(wire, "client-002")
    again = train_again(wire, trainer, data, 2, own, "client-002")
    came = wire.reply(2, "client-002").arrays
    assert again.keys() == came.keys()
    assert all(np.array_equal(again[name], came[name]) for name in came)


def test_the_next_trunk_is_the_mean_of_the_recorded_updates(wire):
    counts = [wire.rows_of(1, name) for name in wire.clients(1)]
    for name, mean in wire.update(1, EVERYBODY).items():
        updates = [wire.update(1, client)[name] for client in wire.clients(1)]
        np.testing.assert_allclose(mean, np.average(updates, 0, counts), atol=1e-6)


def test_nothing_that_stays_home_is_in_the_record(wire):
    files = sorted((wire.run / FOLDER).iterdir())
    content = b"".join(path.read_bytes() for path in files)
    assert b"trunk.encoder.layers.0.weight" in content
    assert b"heads." not in content
    own, _ = replay(wire, 2, "client-000")
    heads = [array for name, array in own.items() if name.startswith("heads.")]
    assert heads
    assert all(array.astype("<f4").tobytes() not in content for array in heads)
    # The largest cell of a row would be there as text or as a number, were rows there.
    rows = client_data(wire, "client-000").train.inputs["pixels"].numpy()
    assert all(row.astype("<f4").tobytes() not in content for row in rows)


def test_engines_record_alike(wire, tmp_path):
    batched = record(tmp_path / "run", *FOUR, engine="batched")
    for one, other in zip(wire.lines, batched.lines, strict=True):
        assert (one["round"], one["kind"]) == (other["round"], other["kind"])
        names = [[r["client"] for r in line["replies"]] for line in (one, other)]
        assert names[0] == names[1]
        assert one["replies"][0]["metrics"].keys() == other["replies"][0]["metrics"].keys()
    for client in wire.clients(2):
        for name, update in wire.update(2, client).items():
            np.testing.assert_allclose(batched.update(2, client)[name], update, atol=1e-6)


@pytest.mark.slow
def test_engine_flower_records_alike(wire, tmp_path):
    script = "import sys; from tests.recorded import *; "
    script += "record(Path(sys.argv[1]), *sys.argv[2:], engine='flower')"
    root = Path(__file__).parent.parent  # Ray leaves processes to the interpreter's end
    words = [sys.executable, "-c", script, str(tmp_path / "run"), *FOUR]
    subprocess.run(words, cwd=root, check=True)
    flower = open_wire(tmp_path / "run")
    assert flower.clients(2) == wire.clients(2)
    for name, update in wire.update(2, "client-001").items():
        np.testing.assert_allclose(flower.update(2, "client-001")[name], update, atol=1e-6)


def test_a_run_without_the_option_records_nothing(tmp_path):
    simulate(load_experiment("digits", [*SMALL, *FOUR]), engine="batched", out=tmp_path / "run")
    assert not (tmp_path / "run" / FOLDER).exists()
    with pytest.raises(CheckpointError, match="fedmtl simulate --record-wire"):
        open_wire(tmp_path / "run")


def test_a_resumed_run_goes_on_recording(tmp_path):
    record(tmp_path / "run", *FOUR, "federation.rounds=1")
    index = tmp_path / "run" / FOLDER / INDEX
    with index.open("a") as file:  # of a round that was cut short before its checkpoint
        file.write(json.dumps({"number": 9, "round": 2, "kind": "train", "sent": []}) + "\n")
    longer = load_experiment("digits", [*SMALL, *FOUR])
    simulate(longer, engine="loopback", out=tmp_path / "run", resume=True)
    whole = record(tmp_path / "whole", *FOUR)
    resumed = open_wire(tmp_path / "run")
    assert resumed.rounds == [1, 2]
    for name, update in whole.update(2, "client-001").items():
        np.testing.assert_array_equal(resumed.update(2, "client-001")[name], update)


def test_what_is_no_array_is_noted_and_the_run_goes_on(tmp_path):
    recorder = WireRecord(tmp_path)
    torn = Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=b"torn")
    content = RecordDict({"arrays": ArrayRecord({"trunk.w": torn})})
    asked = Message(RecordDict({}), 7, MessageType.TRAIN)
    recorder.messages([asked], [Message(content, reply_to=asked)])
    (line,) = (tmp_path / FOLDER / INDEX).read_text().splitlines()
    assert json.loads(line)["replies"][0]["config"] == {"unreadable": ["trunk.w"]}


@pytest.mark.parametrize("number", [0, 3])
def test_a_round_that_was_not_recorded_is_refused(wire, number):
    with pytest.raises(
        ConfigError, match=f"--round must be a recorded round .1 to 2., got {number}"
    ):
        wire.update(number, "client-000")


def test_a_client_that_did_not_answer_is_refused(wire):
    with pytest.raises(
        ConfigError, match=r"--client must name one of the 4 clients .* got 'nobody'"
    ):
        wire.update(1, "nobody")


def test_under_secure_aggregation_there_is_a_mean_and_no_single_update(wire):
    privacy = wire.experiment.privacy.model_copy(update={"secure_aggregation": SecureAggregation()})
    secure = replace(wire, experiment=wire.experiment.model_copy(update={"privacy": privacy}))
    with pytest.raises(ConfigError, match=r"hidden by privacy\.secure-aggregation"):
        secure.update(1, "client-000")
    assert secure.update(1, EVERYBODY).keys() == wire.update(1, EVERYBODY).keys()


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_securely_summed_run_records_no_single_update(tmp_path, engine):
    """Engine batched masks nothing: what a server would not see is not written."""
    mechanism = ["privacy.secure-aggregation.max-norm=1", "federation.weight-by=uniform"]
    wire = record(tmp_path / "run", *FOUR, *mechanism, engine=engine)
    for client in wire.clients(1):
        assert not wire.reply(1, client).arrays.keys() & wire.sent(1).keys()
        assert not wire.reply(1, client).metrics
    assert len(wire.clients(1)) == 4
    assert any(update.any() for update in wire.update(1, EVERYBODY).values())


def test_arrays_that_are_not_the_trunk_are_no_update(wire, monkeypatch):
    reply = wire.reply(1, "client-000")
    masked = replace(reply, arrays={"masked": np.zeros(3, np.uint32)})
    monkeypatch.setattr(type(wire), "reply", lambda *_: masked)
    with pytest.raises(ConfigError, match="sent other arrays than the trunk"):
        wire.update(1, "client-000")
