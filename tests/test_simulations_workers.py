"""Workers end with their parent, at once."""

import time

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from simulations.workers import Job, Parts, WorkerGrid


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
