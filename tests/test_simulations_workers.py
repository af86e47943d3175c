"""Workers end with their parent, at once."""

import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.wire import pack_arrays, unpack_arrays
from simulations.shared_arrays import Shelf, anonymous_file, layout_of
from simulations.simulate import simulate
from simulations.worker_messages import Job, Parts
from simulations.workers import WorkerGrid


def test_idle_workers_end_when_the_grid_is_closed():
    grid = WorkerGrid(ClientApp(), ["a", "b", "c"], workers=3)
    started = time.monotonic()
    grid.close()
    assert time.monotonic() - started < 1
    assert [process.exitcode for process in grid._processes] == [0, 0]  # none was terminated


def test_a_worker_at_work_is_not_waited_for():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        time.sleep(60)
        return Message(RecordDict(), reply_to=message)

    grid = WorkerGrid(app, ["a", "b"], workers=2)
    _, node_id = grid.get_node_ids()
    grid._send([(0, ("deliver", Job(Parts({}), "train", [node_id], [1], None)))])
    time.sleep(0.2)
    started = time.monotonic()
    grid.close()
    assert time.monotonic() - started < 3
    assert not any(process.is_alive() for process in grid._processes)


def make_echo() -> ClientApp:
    """Make clients that answer with twice the arrays that they were sent."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        content = RecordDict()
        for key, record in message.content.items():
            arrays = unpack_arrays(record)
            content[key] = pack_arrays({name: 2 * values for name, values in arrays.items()})
        return Message(content, reply_to=message)

    @app.query()
    def query(message: Message, context: object) -> Message:
        return Message(RecordDict({"config": ConfigRecord({"x": 1})}), reply_to=message)

    return app


def test_arrays_of_any_size_and_number_come_back_through_the_shelf_or_past_it():
    names = [str(number) for number in range(12)]
    grid = WorkerGrid(make_echo(), names, workers=3)
    try:
        nodes = list(grid.get_node_ids())
        for count, size in ((2, 3), (5, 3), (5, 40), (12, 40), (3, 1), (12, 41)):
            sent = {"w": np.arange(size, dtype=np.float32), "n": np.array(count)}
            content = RecordDict({"arrays": pack_arrays(sent)})
            messages = [Message(content, node, "train") for node in nodes[:count]]
            replies = list(grid.send_and_receive(messages))
            assert [reply.metadata.src_node_id for reply in replies] == nodes[:count]
            for reply in replies:
                arrays = unpack_arrays(reply.content["arrays"])
                np.testing.assert_array_equal(arrays["w"], 2 * sent["w"])
                assert arrays["n"] == 2 * count
        # More clients are asked than the shelf had slots for, with nothing that needs one.
        grid._shelf = grid._shelf and Shelf(anonymous_file(64), 1, 64)
        asked = [Message(RecordDict(), node, "query") for node in nodes]
        assert len(list(grid.send_and_receive(asked))) == len(nodes)
    finally:
        grid.close()


def test_a_slot_that_is_too_small_or_not_there_is_refused():
    shelf = Shelf(anonymous_file(128), 2, 64)
    arrays = {"a": {"x": np.arange(16, dtype=np.float32)}}
    assert shelf.put(1, arrays, layout_of(arrays))
    np.testing.assert_array_equal(shelf.get(1, layout_of(arrays))["a"]["x"], arrays["a"]["x"])
    assert not shelf.put(2, arrays, layout_of(arrays))
    larger = {"a": {"x": np.zeros(17, np.float32)}}
    assert not shelf.put(1, larger, layout_of(larger))


def test_workers_are_refused_where_a_fork_would_hang(tmp_path, monkeypatch):
    monkeypatch.setattr("common.threads._most", 2)  # this process has trained with two
    with pytest.raises(ConfigError, match=r"--workers must be 1 in this process.*start anew"):
        simulate(load_experiment("digits"), engine="loopback", workers=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
