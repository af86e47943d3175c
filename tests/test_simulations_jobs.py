"""Jobs in turn and in processes: results as they come, errors and Ctrl-C at once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from simulations.jobs import run_as_drawn, run_jobs


def collect(processes, jobs=(3, -1, 2)):
    results = {}
    run_jobs(abs, jobs, processes, lambda job, result: results.update({job: result}))
    return results


def test_jobs_in_turn_are_done_in_their_order():
    assert list(collect(1).items()) == [(3, 3), (-1, 1), (2, 2)]


@pytest.mark.slow
def test_jobs_in_processes_give_the_same():
    assert collect(2) == collect(1)


def draw_each_from_the_last(processes):
    results, drawn = {}, []

    def draw():
        if len(drawn) == 5:
            return None
        drawn.append(-len(results))
        return drawn[-1]

    run_as_drawn(abs, draw, processes, lambda job, result: results.update({job: result}))
    return results, drawn


def test_a_job_is_drawn_when_the_one_before_is_done():
    assert draw_each_from_the_last(1) == ({0: 0, -1: 1, -2: 2, -3: 3, -4: 4}, [0, -1, -2, -3, -4])


@pytest.mark.slow
def test_with_processes_there_are_never_more_jobs_drawn_than_have_room():
    _, drawn = draw_each_from_the_last(2)
    assert drawn[:2] == [0, 0]  # nothing is done yet
    assert drawn[2] == -1  # the first of them is


@pytest.mark.slow
def test_an_error_does_not_wait_for_the_other_jobs():
    started = time.monotonic()
    with pytest.raises(ValueError, match="non-negative"):
        run_jobs(time.sleep, [600, -1], 2, lambda *_: None)
    assert time.monotonic() - started < 60


def wait_for_the_end_of_group(group):
    """multiprocessing's own tracker ends a moment after the process that it tracked for."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process is left")


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 1.0])
def test_ctrl_c_ends_all_processes_without_a_word(after_s):
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from simulations.jobs import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    print('ready', flush=True)\n"
        "    try: run_jobs(time.sleep, [600, 600], 2, print)\n"
        "    except KeyboardInterrupt: sys.exit(7)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()
    time.sleep(0.2 + after_s)  # at first the other processes still start
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7
    assert errors == ""
    wait_for_the_end_of_group(process.pid)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_that_is_killed_leaves_no_other_behind():
    code = (
        "import time\n"
        "from simulations.jobs import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    print('ready', flush=True)\n"
        "    run_jobs(time.sleep, [600, 600], 2, print)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    process.stdout.readline()
    time.sleep(3)  # the other processes start
    process.stdout.close()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(process.pid)


def running(group: int) -> list[str]:
    """The processes of a group that still do something: nobody may be there to bury the dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, of, *_ = path.read_text().rpartition(")")[2].split()
            found += [path.parent.name] if of == str(group) and state != "Z" else []
    return found
