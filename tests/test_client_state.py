"""What a client keeps at home belongs to it alone, whatever it is called."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from client.state import load_own, save_own
from simulations.client_log import read_clients, write_clients
from simulations.loopback import FIRST_NODE, LoopbackGrid

NAMES = ["a", "a|b", "a/b", "..", "../a", "Köln 7"]
HEADS = {name: {"heads.task-y.w": np.full(2, i, np.float32)} for i, name in enumerate(NAMES)}


def node(state=None) -> Context:
    config = {} if state is None else {"state": str(state)}
    return Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})


def test_a_restarted_node_finds_its_own_heads_and_writes_nowhere_else(tmp_path):
    state = tmp_path / "state"
    for name in NAMES:
        save_own(node(state), name, "f", 1, HEADS[name])
    for name in NAMES:
        own = load_own(node(state), name, "f", 2)
        np.testing.assert_array_equal(own["heads.task-y.w"], HEADS[name]["heads.task-y.w"])
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert len(list((state / "f").iterdir())) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_simulated_client_gets_its_own_heads_back(tmp_path, name):
    grid = LoopbackGrid(ClientApp(), NAMES)
    for i, client in enumerate(NAMES):
        save_own(grid.context(FIRST_NODE + i), client, "f", 1, HEADS[client])
    write_clients(tmp_path / "clients", grid.own_states(grid.known_nodes()))
    restored = LoopbackGrid(ClientApp(), NAMES)
    restored.restore_states(read_clients(tmp_path / "clients"))
    own = load_own(restored.context(FIRST_NODE + NAMES.index(name)), name, "f", 2)
    np.testing.assert_array_equal(own["heads.task-y.w"], HEADS[name]["heads.task-y.w"])
