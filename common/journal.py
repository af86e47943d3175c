"""A log of JSON lines for machines and for whoever asks later what happened.

One object a line: ``time`` (UTC, milliseconds), ``level``, ``logger``, ``message``, then what was
given as ``extra`` where it was logged: run, round, client, bytes, seconds. Of an error the journal
tells type and place, and the text only where it is ours: another's may quote private rows.
"""

import json
import logging
import os
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import FedMTLError
from common.json_gaps import without_gaps

SIZE_BYTES, FILES = 5 * 2**20, 4  # of one file; how many are kept, the current one included
STANDARD = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


class Journal(logging.Handler):
    """Appends log records to a file as JSON lines; never raises, whatever the disk does.

    Each record is one write of one whole line, so that a reader sees lines, and two processes that
    write to one file do not mix theirs. A line torn by a crash or a full disk is ended before the
    next one. A full file becomes ``log.jsonl.1``, the one before it ``log.jsonl.2``, and so on.

    Args:
        path: the file; it and its folder are made where they are missing.
        fields: added to every line, such as the run; may be changed at any time.
        size_bytes: a file that would grow past this is put away first.
        files: how many files are kept.
    """

    def __init__(
        self,
        path: Path,
        fields: dict[str, Any] | None = None,
        size_bytes: int = SIZE_BYTES,
        files: int = FILES,
    ) -> None:
        super().__init__()
        self.path, self.fields = path, dict(fields or {})
        self.size_bytes, self.files = size_bytes, files
        self._file: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; a failure is passed over, because a log must not end what it tells of."""
        try:
            line = json.dumps(self.describe(record), default=str, ensure_ascii=False)
            self._append(line.encode("utf-8", "replace") + b"\n")
        except Exception:
            self._close_file()

    def describe(self, record: logging.LogRecord) -> dict[str, Any]:
        """Turn a record into what its line holds."""
        moment = datetime.fromtimestamp(record.created, UTC)
        extra = {key: value for key, value in vars(record).items() if key not in STANDARD}
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self.fields,
            **extra,
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe_error(record.exc_info[1])
        described: dict[str, Any] = without_gaps(line)
        return described

    def close(self) -> None:
        """Close the file."""
        self._close_file()
        super().close()

    def _append(self, line: bytes) -> None:
        if not self._is_current():  # new, or another process has put the file away
            self._close_file()
            self._open()
        if self._size() > 0 and self._size() + len(line) > self.size_bytes:
            self._put_away()
        if self._file is not None and os.write(self._file, line) < len(line):
            self._close_file()  # a full disk took a part; opening again ends the torn line

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o666)
        size = self._size()
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def _put_away(self) -> None:
        self._close_file()
        for number in range(self.files - 1, 0, -1):
            older = self.path if number == 1 else self._numbered(number - 1)
            if older.exists():
                os.replace(older, self._numbered(number))
        self._open()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _size(self) -> int:
        return 0 if self._file is None else os.fstat(self._file).st_size

    def _is_current(self) -> bool:
        try:
            return self._file is not None and os.path.samestat(
                os.fstat(self._file), os.stat(self.path)
            )
        except OSError:
            return False

    def _close_file(self) -> None:
        handle, self._file = self._file, None
        if handle is not None:
            with suppress(OSError):
                os.close(handle)


def describe_error(error: BaseException) -> str:
    """Say what failed, in one line without private data.

    >>> describe_error(KeyError("row 7"))
    'KeyError'
    """
    if isinstance(error, FedMTLError):
        return "; ".join(str(error).splitlines())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
