"""What a client keeps at home belongs to it alone and survives its process, whole."""

import json

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from client.state import FolderState, MemoryState, open_state, replace_file
from common.errors import StateError
from simulations.client_log import read_clients, write_clients
from simulations.loopback import FIRST_NODE, LoopbackGrid

NAMES = ["a", "a|b", "a/b", "..", "../a", "Köln 7"]
HEADS = {name: {"heads.task-y.w": np.full(2, i, np.float32)} for i, name in enumerate(NAMES)}


def node(state=None) -> Context:
    config = {"partition-id": 0} if state is None else {"state": str(state)}
    return Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})


def heads(value: float) -> dict[str, np.ndarray]:
    return {"heads.task-y.w": np.full(2, value, np.float32)}


def first(arrays) -> float:
    return float(arrays["heads.task-y.w"][0])


def test_a_restarted_node_finds_its_own_heads_and_writes_nowhere_else(tmp_path):
    state = tmp_path / "state"
    for name in NAMES:
        open_state(node(state), name, "r").save(1, HEADS[name])
    for name in NAMES:
        own = open_state(node(state), name, "r").load(2)
        np.testing.assert_array_equal(own["heads.task-y.w"], HEADS[name]["heads.task-y.w"])
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert len(list((state / "runs" / "r").iterdir())) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_simulated_client_gets_its_own_heads_back(tmp_path, name):
    grid = LoopbackGrid(ClientApp(), NAMES)
    for i, client in enumerate(NAMES):
        open_state(grid.context(FIRST_NODE + i), client, "r").save(1, HEADS[client])
    write_clients(tmp_path / "clients", grid.own_states(grid.known_nodes()))
    restored = LoopbackGrid(ClientApp(), NAMES)
    restored.restore_states(read_clients(tmp_path / "clients"))
    own = open_state(restored.context(FIRST_NODE + NAMES.index(name)), name, "r").load(2)
    np.testing.assert_array_equal(own["heads.task-y.w"], HEADS[name]["heads.task-y.w"])


def test_a_repeated_round_starts_from_the_heads_before_it(tmp_path):
    for number in (1, 2, 3):
        open_state(node(tmp_path), "a", "r").save(number, heads(number))
    assert first(open_state(node(tmp_path), "a", "r").load(4)) == 3
    assert first(open_state(node(tmp_path), "a", "r").load(3)) == 2
    assert open_state(node(tmp_path), "a", "r").load(2) == {}  # two rounds are kept


def test_a_run_that_goes_far_back_keeps_what_it_trains_from_there_on(tmp_path, caplog):
    state = FolderState(tmp_path / "a")
    for number in (7, 8, 9):
        state.save(number, heads(number))
    assert state.load(4) == {}
    assert "has heads of later rounds only" in caplog.text
    for number in (4, 5, 6):
        state.save(number, heads(number + 100))
        assert first(state.load(number + 1)) == number + 100
    assert first(state.load(6)) == 105


def test_a_private_file_does_not_follow_a_link_that_was_there(tmp_path):
    other = tmp_path / "other"
    other.write_text("")
    (tmp_path / "secret.partial").symlink_to(other)
    replace_file(tmp_path / "secret", b"4711", private=True)
    assert other.read_text() == ""
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0
    assert not (tmp_path / "secret").is_symlink()


def test_runs_do_not_share_heads_unless_told_to(tmp_path):
    open_state(node(tmp_path), "a", "first").save(20, heads(7))
    assert open_state(node(tmp_path), "a", "second").load(1) == {}
    assert first(open_state(node(tmp_path), "a", "second", heads_from="first").load(1)) == 7
    open_state(node(tmp_path), "a", "second").save(1, heads(8))
    assert first(open_state(node(tmp_path), "a", "second", heads_from="first").load(2)) == 8


def test_an_earlier_runs_control_variates_stay_with_it(tmp_path):
    """The server of a new run starts its own at 0, which is then their mean."""
    kept = {**heads(7), "kept.control.trunk.w": np.ones(2, np.float32)}
    open_state(node(tmp_path), "a", "first").save(20, kept)
    assert open_state(node(tmp_path), "a", "first").load(21).keys() == kept.keys()
    later = open_state(node(tmp_path), "a", "second", heads_from="first").load(1)
    assert later.keys() == heads(7).keys()


def test_heads_of_an_earlier_run_need_a_state_folder():
    with pytest.raises(StateError, match="no state folder"):
        open_state(node(), "a", "second", heads_from="first")


def test_a_deployed_node_without_a_state_folder_is_told_so():
    deployed = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(StateError, match="a restart would lose its heads"):
        open_state(deployed, "a", "r")


def test_memory_does_not_pass_off_later_heads_as_earlier_ones(caplog):
    context = node()
    MemoryState(context, "a").save(3, heads(3))
    assert first(MemoryState(context, "a").load(4)) == 3
    assert MemoryState(context, "a").load(3) == {}
    assert "starting new ones" in caplog.text


def test_a_file_cut_short_is_refused_and_a_file_being_written_is_no_state(tmp_path):
    state = FolderState(tmp_path / "a")
    state.save(1, heads(1))
    (tmp_path / "a" / "own-00000002.safetensors.partial").write_bytes(b"half")
    assert first(state.load(9)) == 1
    whole = (tmp_path / "a" / "own-00000001.safetensors").read_bytes()
    (tmp_path / "a" / "own-00000001.safetensors").write_bytes(whole[:-3])
    with pytest.raises(StateError, match="cannot be read"):
        state.load(9)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    state = FolderState(tmp_path / "a")
    state.save(1, heads(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.state.os.fsync", full)
    with pytest.raises(StateError, match="No space left on device"):
        state.save(2, heads(2))
    assert first(state.load(3)) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["own-00000001.safetensors"]


def test_the_owner_alone_can_read_it(tmp_path):
    FolderState(tmp_path / "state" / "a").save(1, heads(1))
    assert (tmp_path / "state" / "a").stat().st_mode & 0o077 == 0


def test_what_a_run_is_about_is_written_once(tmp_path):
    state = FolderState(tmp_path)
    state.save_run({"run": "r", "client": "a"}, "{}")
    state.save_run({"run": "other"}, "{}")
    assert json.loads((tmp_path / "run.json").read_text())["run"] == "r"


def test_a_run_does_not_become_another_experiment(tmp_path):
    """Else heads that were fitted without noise could be trained on with a private trunk."""
    state = FolderState(tmp_path / "r")
    state.save_run({"run": "r", "fingerprint": "one"}, "{}")
    state.save_run({"run": "r", "fingerprint": "one"}, "{}")
    with pytest.raises(StateError, match="another experiment before, of fingerprint one, got two"):
        state.save_run({"run": "r", "fingerprint": "two"}, "{}")
