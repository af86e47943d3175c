"""Jobs in processes of their own end with whoever started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STARTED = """
from simulations.jobs import run_jobs
from tests.test_simulations_jobs import sleep_for_long

if __name__ == "__main__":
    run_jobs(sleep_for_long, [{0!r}, {0!r}], 2, print)
"""


def sleep_for_long(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}.started").touch()
    time.sleep(60)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]


@pytest.mark.slow
def test_jobs_end_where_the_process_that_wants_them_is_killed(tmp_path):
    script = tmp_path / "start.py"
    script.write_text(STARTED.format(str(tmp_path)))
    root = str(Path(__file__).parent.parent)
    starter = subprocess.Popen(
        [sys.executable, str(script)], cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    deadline = time.monotonic() + 60
    while len(started := list(tmp_path.glob("*.started"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(started) == 2
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    workers = [int(path.stem) for path in started]
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))
