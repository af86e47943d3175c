"""Availability traces: which client is there in which rounds, and how long its reply takes.

A trace is a CSV file with the columns client, from-round, to-round and, if wanted, delay-s; a
resolved experiment holds its lines, so that the run folder alone repeats the run. Clients are sent
a digest in their place: who else takes part, and when, is nobody's business but the server's.
"""

import csv
import hashlib
import math
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from common.errors import ConfigError

SETTING = "federation.availability"
COLUMNS, DELAY = ("client", "from-round", "to-round"), "delay-s"
SEAL = "sha256:"  # begins the only line of a trace that is held elsewhere
MOST_PROBLEMS = 50  # told of one trace; the rest is counted


@dataclass(frozen=True)
class Stay:
    """One line of a trace.

    Attributes:
        client: its stable name.
        first: the first round in which it is there.
        last: the last one.
        delay_s: simulated seconds from being asked to the arrival of its reply.
        line: number of the line, from 1.
    """

    client: str
    first: int
    last: int
    delay_s: float
    line: int


class Trace:
    """When clients are there; a client without a line always is, and answers at once."""

    def __init__(self, stays: Sequence[Stay] = ()) -> None:
        self.stays: dict[str, list[Stay]] = {}
        for stay in sorted(stays, key=lambda stay: stay.first):
            self.stays.setdefault(stay.client, []).append(stay)

    @cached_property
    def has_delays(self) -> bool:
        """Whether any reply takes time."""
        return any(stay.delay_s for stays in self.stays.values() for stay in stays)

    def is_there(self, client: str, round_number: int) -> bool:
        """Tell whether a client is there in a round."""
        return client not in self.stays or self._stay(client, round_number) is not None

    def delay_s(self, client: str, round_number: int) -> float:
        """Say how long a client's reply takes in a round, in simulated seconds."""
        stay = self._stay(client, round_number)
        return stay.delay_s if stay else 0.0

    def strangers(self, clients: Sequence[str]) -> list[str]:
        """Say which lines name a client that is none of these, a line each."""
        known = {*clients}
        unknown = [stays[0] for name, stays in self.stays.items() if name not in known]
        return [
            f"{SETTING}, line {stay.line}: client must be one of the {len(clients)} clients, got "
            f"'{stay.client}'"
            for stay in sorted(unknown, key=lambda stay: stay.line)
        ]

    def _stay(self, client: str, round_number: int) -> Stay | None:
        stays = self.stays.get(client, [])
        place = bisect_right(stays, round_number, key=lambda stay: stay.first)
        return stays[place - 1] if place and stays[place - 1].last >= round_number else None


def read_lines(path: Path) -> list[str]:
    """Read the lines of a trace's file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{SETTING}: {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        place = f"byte {error.start}"
        raise ConfigError(f"{SETTING}: {path} is not UTF-8 text: {place} is wrong.") from error
    if not lines:
        raise ConfigError(f"{SETTING}: {path} is empty; its first line must be {_header()}.")
    return lines


def trace_of(lines: Sequence[str]) -> Trace:
    """Read a trace from its lines, which the experiment's schema has checked.

    >>> trace = trace_of(["client,from-round,to-round,delay-s", "anna,2,5,1.5"])
    >>> trace.is_there("anna", 1), trace.is_there("bert", 1), trace.delay_s("anna", 2)
    (False, True, 1.5)
    """
    return _read(tuple(lines))[0]


def require_known(lines: Sequence[str], clients: Sequence[str]) -> None:
    """Check that a trace names none but these clients.

    Raises:
        ConfigError: it does; a line for each.
    """
    strangers = trace_of(lines).strangers(clients)
    if strangers:
        raise ConfigError("\n".join(strangers))


def leave_out(lines: Sequence[str], clients: Collection[str]) -> tuple[str, ...]:
    """Leave out the lines of clients that take no part; nothing where no other has one.

    >>> leave_out(["client,from-round,to-round", "anna,2,5", "bert,1,3"], ["anna"])
    ('client,from-round,to-round', 'bert,1,3')
    >>> leave_out(["client,from-round,to-round", "anna,2,5"], ["anna"])
    ()
    """
    stays = trace_of(lines).stays
    if not stays.keys() - clients:
        return ()
    gone = {stay.line for name in clients for stay in stays.get(name, ())}
    return tuple(line for number, line in enumerate(lines, start=1) if number not in gone)


def trace_problems(lines: Sequence[str]) -> list[str]:
    """Say what is wrong with a trace's lines, a line each."""
    problems = _read(tuple(lines))[1]
    rest = len(problems) - MOST_PROBLEMS
    more = [f"{SETTING}: and {rest} more lines are wrong"] if rest > 0 else []
    return [*problems[:MOST_PROBLEMS], *more]


def seal(lines: Sequence[str]) -> tuple[str, ...]:
    """Put a digest in the place of a trace's lines; sealing twice changes nothing.

    >>> sealed = seal(["client,from-round,to-round", "anna,2,5"])
    >>> len(sealed), seal(sealed) == sealed
    (1, True)
    """
    if not lines or is_sealed(lines):
        return tuple(lines)
    return (SEAL + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],)


def is_sealed(lines: Sequence[str]) -> bool:
    """Tell whether only the digest of a trace is there."""
    return len(lines) == 1 and lines[0].startswith(SEAL)


@lru_cache(maxsize=8)
def _read(lines: tuple[str, ...]) -> tuple[Trace, tuple[str, ...]]:
    """Read a trace as far as it can be read; also returns what is wrong with it."""
    if not lines or is_sealed(lines):
        return Trace(), ()
    reader = csv.reader(lines)
    problems: list[str] = []
    stays: list[Stay] = []
    try:
        columns = [cell.strip() for cell in next(reader, [])]
        wanted = {*COLUMNS, *({DELAY} & {*columns})}
        if {*columns} != wanted or len(columns) != len(wanted):
            got = ",".join(columns)
            return Trace(), (f"{SETTING}, line 1: the columns must be {_header()}, got '{got}'",)
        for cells in reader:
            found = list(_row_problems(columns, cells)) if cells else []
            problems += [f"{SETTING}, line {reader.line_num}: {problem}" for problem in found]
            if cells and not found:
                stays.append(_stay_of(columns, cells, reader.line_num))
    except csv.Error as error:
        problems.append(f"{SETTING}, line {reader.line_num}: cannot be read as CSV ({error})")
    if not stays and not problems:
        problems.append(f"{SETTING}: no client has a line; add one, or remove the setting")
    trace = Trace(stays)
    return trace, (*problems, *_overlaps(trace))


def _row_problems(columns: Sequence[str], cells: Sequence[str]) -> Iterator[str]:
    if len(cells) != len(columns):
        yield f"must have {len(columns)} cells, got {len(cells)}"
        return
    row = _row_of(columns, cells)
    if not row["client"]:
        yield "client must be a name, got ''"
    rounds = [column for column in COLUMNS[1:] if not _is_round(row[column])]
    for column in rounds:
        yield f"{column} must be a whole number of at least 1, got '{row[column]}'"
    if not rounds and int(row["from-round"]) > int(row["to-round"]):
        yield f"from-round must be at most to-round, got {row['from-round']} and {row['to-round']}"
    if DELAY in row and not _is_delay(row[DELAY]):
        yield f"{DELAY} must be a finite number of at least 0, got '{row[DELAY]}'"


def _is_round(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1


def _is_delay(text: str) -> bool:
    try:
        return 0 <= float(text or 0) < math.inf
    except ValueError:
        return False


def _row_of(columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    return {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}


def _stay_of(columns: Sequence[str], cells: Sequence[str], line: int) -> Stay:
    row = _row_of(columns, cells)
    delay_s = float(row.get(DELAY) or 0)
    return Stay(row["client"], int(row["from-round"]), int(row["to-round"]), delay_s, line)


def _overlaps(trace: Trace) -> Iterator[str]:
    for client, stays in trace.stays.items():
        for place, stay in enumerate(stays[1:]):
            before = stays[place]
            if stay.first <= before.last:
                yield (
                    f"{SETTING}, line {max(stay.line, before.line)}: a client's lines must not "
                    f"overlap, got rounds {stay.first} to {stay.last} and {before.first} to "
                    f"{before.last} (line {min(stay.line, before.line)}) of '{client}'"
                )


def _header() -> str:
    return f"{','.join(COLUMNS)} and, if wanted, {DELAY}"
