"""What a contender's processes cost: CPU time and memory, read from Linux's /proc."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One line of /proc: who it belongs to, and its CPU time with that of its ended children."""

    parent: int
    session: int
    cpu_s: float


@dataclass(frozen=True)
class Memory:
    """Memory of several processes.

    Attributes:
        resident_mb: the sum of what each has in memory; shared pages count once per process.
        proportional_mb: the same with each shared page divided among those that share it.
        processes: how many they are.
    """

    resident_mb: float
    proportional_mb: float
    processes: int


def read_processes() -> dict[int, Process]:
    """Read all processes of the machine: id -> process."""
    found = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name, in brackets, may hold spaces and brackets.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        ticks = sum(int(field) for field in fields[11:15])
        found[int(entry.name)] = Process(int(fields[1]), int(fields[3]), ticks / TICKS_PER_S)
    return found


def family(leader: int) -> dict[int, Process]:
    """Find the processes of a session and all their descendants: id -> process."""
    every = read_processes()
    members = {number for number, process in every.items() if process.session == leader}
    size = 0
    while len(members) > size:
        size = len(members)
        members |= {number for number, process in every.items() if process.parent in members}
    return {number: every[number] for number in members}


def cpu_s(leader: int) -> float:
    """Add the CPU time of a session's processes and descendants, in ticks of mostly 10 ms."""
    return sum(process.cpu_s for process in family(leader).values())


def memory(processes: Iterable[int]) -> Memory:
    """Add the memory of processes."""
    resident, proportional, count = 0.0, 0.0, 0
    for number in processes:
        try:
            lines = (PROC / str(number) / "smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue  # it has just ended
        sizes = {key: text.split()[0] for key, _, text in (line.partition(":") for line in lines)}
        if "Rss" in sizes:
            resident += int(sizes["Rss"]) / 1024
            proportional += int(sizes["Pss"]) / 1024
            count += 1
    return Memory(resident, proportional, count)


def busy_s() -> float:
    """Count the seconds that all cores together have worked since the machine started."""
    numbers = [int(n) for n in (PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    idle, waiting = numbers[3:5]
    return (sum(numbers) - idle - waiting) / TICKS_PER_S
