"""The journal: lines that survive torn ones, full disks and each other; it never raises."""

import json
import logging
import math
import threading

import pytest

from common.errors import ConfigError
from common.journal import Journal


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "state" / "log.jsonl", {"run": "digits-1"})
    yield journal
    journal.close()


@pytest.fixture
def logger(journal):
    logger = logging.Logger("fedmtl.test")
    logger.addHandler(journal)
    return logger


def lines_of(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_line_holds_when_where_what_and_the_extras(journal, logger):
    logger.info("round %d done", 3, extra={"round": 3, "seconds": 1.5, "loss": math.nan})
    (line,) = lines_of(journal.path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "fedmtl.test",
        "message": "round 3 done",
        "run": "digits-1",
        "round": 3,
        "seconds": 1.5,
        "loss": None,
    }


def test_the_time_is_utc_with_milliseconds(journal):
    record = logging.makeLogRecord({"created": 0.25})
    assert journal.describe(record)["time"] == "1970-01-01T00:00:00.250Z"


def test_a_line_torn_by_a_crash_is_ended_before_the_next(journal, logger):
    journal.path.parent.mkdir()
    journal.path.write_text('{"message": "whole"}\n{"message": "to')
    logger.info("after")
    _, torn, after = journal.path.read_text().splitlines()
    assert torn == '{"message": "to'
    assert json.loads(after)["message"] == "after"


def test_what_cannot_be_written_is_passed_over_and_writing_goes_on_later(journal, logger):
    journal.path.parent.write_text("a file where the folder should be")
    logger.info("lost")
    journal.path.parent.unlink()
    logger.info("kept")
    assert [line["message"] for line in lines_of(journal.path)] == ["kept"]


def test_what_cannot_be_worded_is_passed_over(journal, logger):
    logger.info("%d rounds", "many")
    logger.info("odd: %s", "\udc80", extra={"path": journal.path})
    (line,) = lines_of(journal.path)
    assert line["path"] == str(journal.path)


def test_only_our_own_errors_are_quoted(journal, logger):
    for error in (ConfigError("a must be 1\nb must be 2"), ValueError("row 7: 0.123")):
        try:
            raise error
        except Exception:
            logger.exception("failed")
    ours, other = lines_of(journal.path)
    assert ours["error"] == "a must be 1; b must be 2"
    assert other["error"].startswith("ValueError in test_only_our_own_errors_are_quoted, line ")
    assert "0.123" not in journal.path.read_text()


def test_a_full_file_is_put_away_and_the_oldest_is_dropped(tmp_path):
    journal = Journal(tmp_path / "log.jsonl", size_bytes=400, files=3)
    for number in range(40):
        journal.handle(logging.makeLogRecord({"msg": f"line {number:02d}"}))
    journal.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log.jsonl", "log.jsonl.1", "log.jsonl.2"]
    assert all((tmp_path / name).stat().st_size <= 400 for name in names)
    kept = [line["message"] for name in reversed(names) for line in lines_of(tmp_path / name)]
    assert kept == [f"line {number:02d}" for number in range(40 - len(kept), 40)]


def test_a_file_that_somebody_put_away_is_begun_anew(journal, logger):
    logger.info("before")
    journal.path.rename(journal.path.with_name("kept.jsonl"))
    logger.info("after")
    assert [line["message"] for line in lines_of(journal.path)] == ["after"]


def test_two_writers_do_not_mix_their_lines(tmp_path):
    journals = [Journal(tmp_path / "log.jsonl", {"writer": n}) for n in range(2)]

    def write(journal):
        for number in range(200):
            journal.handle(logging.makeLogRecord({"msg": f"{number} " + 50 * "x"}))

    threads = [threading.Thread(target=write, args=(j,)) for j in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for journal in journals:
        journal.close()
    assert len(lines_of(tmp_path / "log.jsonl")) == 400
