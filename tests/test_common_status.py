"""`fedmtl health`: a status that is fresh, stale, failed, abandoned or none at all."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from common.locking import is_held, take
from common.status import DONE, FAILED, TRAINING, Status, StatusFile, judge
from simulations.cli import app


@pytest.fixture
def status(tmp_path):
    first = Status("server", TRAINING, run="digits-1", round=2, rounds=5, max_age_s=100.0)
    return StatusFile(tmp_path, first)


def health(*arguments):
    return CliRunner().invoke(app, ["health", *map(str, arguments)])


def age(folder, seconds):
    path = folder / "status.json"
    content = json.loads(path.read_text())
    content["updated"] -= seconds
    path.write_text(json.dumps(content))


def test_a_fresh_status_is_healthy(tmp_path, status):
    result = health(tmp_path)
    assert result.exit_code == 0
    assert result.stdout == "server digits-1: healthy (training, round 2 of 5, 0 s ago)\n"


def test_a_stale_one_is_not_and_how_old_it_may_be_can_be_said(tmp_path, status):
    age(tmp_path, 101)
    result = health(tmp_path)
    assert result.exit_code == 1
    assert "nothing for 101 s, 100 s are allowed" in result.stdout
    assert health(tmp_path, "--max-age", 200).exit_code == 0


def test_a_failed_one_says_why(tmp_path, status):
    status.set(state=FAILED, error="the disk is full")
    result = health(tmp_path)
    assert (result.exit_code, "not healthy: the disk is full" in result.stdout) == (1, True)


def test_one_that_is_done_stays_healthy(tmp_path, status):
    status.set(state=DONE)
    age(tmp_path, 10**6)
    assert health(tmp_path).exit_code == 0


def test_machines_read_it_too(tmp_path, status):
    content = json.loads(health(tmp_path, "--json").stdout)
    assert content["healthy"] is True
    assert (content["state"], content["round"], content["pid"]) == ("training", 2, os.getpid())


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"what": "node", "state": "odd"}', "{"])
def test_bad_input_is_told_in_a_line(tmp_path, text):
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    result = health(tmp_path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert str(tmp_path) in result.stderr


def test_what_a_later_version_adds_is_passed_over(tmp_path, status):
    content = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps({**content, "mood": "good"}))
    assert health(tmp_path).exit_code == 0


def test_a_status_is_renewed_every_few_seconds_and_not_more_often(tmp_path):
    now = [0.0]
    status = StatusFile(tmp_path, Status("node"), clock=lambda: now[0])
    written = (tmp_path / "status.json").stat().st_ino
    now[0] = 4.0
    status.beat()
    assert (tmp_path / "status.json").stat().st_ino == written
    age(tmp_path, 50)
    now[0] = 6.0
    status.beat()
    assert judge(tmp_path).age_s < 10


def test_a_status_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    StatusFile(tmp_path / "file" / "below", Status("node")).set(state=DONE)


HOLDER = """
import sys
from pathlib import Path
from common.locking import take
take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_server_that_was_killed_is_seen_at_once(tmp_path, status):
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        assert is_held(path)
        assert take(path) is None
        assert judge(tmp_path).is_healthy
        process.kill()
    assert not is_held(path)
    assert judge(tmp_path).reason == "its process is gone"
    handle = take(path)
    assert handle is not None
    os.close(handle)
