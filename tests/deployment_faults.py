"""Faults in a federation on three hosts, at random moments, many times in a row.

``python -m tests.deployment_faults --times 20`` repeats each and prints a table; ``--fault NAME``
picks some, ``--seed N`` repeats the moments of another day. Every repetition is one run of a few
rounds. Its outcome is defined: all rounds are done, each is recorded once, after at most one
resume, and the last trunk is the trunk of the loopback engine with the very replies lost that the
run's record calls left out.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile_client import MODE, MODES, write_hostile
from tests.hosts import START_BY, Federation, Node, lines_of, rounds_of, trunk_of
from tests.lossy_loopback import heads_at_home, simulate_losses, ways_to_lose
from tests.namespaces import Host, Process, command_of, send_signal, wait_until

ROUNDS, DEADLINE_S, HANG_S = 4, 30, 420
SETTINGS = (f"federation.rounds={ROUNDS}", f"federation.round-timeout-s={DEADLINE_S}")
DISK_BYTES = 2**25
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@dataclass
class Trial:
    """One run with one fault.

    Attributes:
        federation: the hosts.
        random: draws moments and lengths.
        victim: the node that suffers, where it is a node's fault.
        expected_s: how long a run without a fault takes.
        notes: what was done, and when.
        run: the command that follows the run.
    """

    federation: Federation
    random: random.Random
    victim: Node
    expected_s: float
    before: int
    notes: list[str] = field(default_factory=list)
    run: Process | None = None
    started: float = field(default_factory=time.monotonic)
    wrong: str = ""  # what the fault itself found wrong

    def note(self, what: str) -> None:
        self.notes.append(f"{time.monotonic() - self.started:.1f} s {what}")

    def submit(self, resume: str = "") -> None:
        self.run = self.federation.submit(*SETTINGS, resume=resume)

    def pause(self, longest_s: float) -> float:
        """Wait a random while."""
        length = self.random.uniform(0, longest_s)
        time.sleep(length)
        return length

    def is_followed(self) -> bool:
        """Whether the run has not ended yet, as far as its operator sees."""
        return self.run is not None and self.run.is_alive()

    @property
    def folder(self) -> Path | None:
        """The run's folder; None before it is made."""
        folders = self.federation.run_folders()
        return folders[-1] if len(folders) > self.before else None

    def wait_for_the_moment(self) -> None:
        """Wait until some round is done, or none, and a part of the next."""
        done = self.random.randrange(ROUNDS)
        wait_until(lambda: len(self.lines()) >= done, HANG_S, f"round {done}")
        last_s = self.lines()[-1]["time_s"] if done else self.expected_s / 2
        self.note(f"{self.pause(last_s):.1f} s into round {done + 1}")

    def lines(self) -> list[dict[str, Any]]:
        """The rounds recorded so far."""
        return [] if self.folder is None else lines_of(self.folder)


def kill_node(trial: Trial) -> None:
    """kill -9 of a SuperNode and all that it started; systemd starts it again."""
    trial.victim.kill()
    trial.note(f"killed node {trial.victim.client}")


def kill_worker(trial: Trial) -> None:
    """kill -9 of the process on a node that trains."""
    host = trial.victim.host
    with suppress(TimeoutError):
        wait_until(lambda: workers(host), 60, "a worker")
    trial.pause(2)
    pids = workers(host)
    send_signal(pids, signal.SIGKILL)
    trial.note(f"killed {len(pids)} worker(s) of {trial.victim.client}")


def workers(host: Host) -> list[int]:
    """The processes on a node that run client code."""
    words = ("flwr-clientapp", "client/node/worker.py")
    return [pid for pid in host.processes() if any(word in command_of(pid) for word in words)]


def kill_superlink(trial: Trial) -> None:
    """kill -9 of the SuperLink alone; systemd starts it again, on its database."""
    superlink = trial.federation.superlink
    assert superlink is not None
    send_signal([superlink.pid], signal.SIGKILL)
    superlink.wait(10)
    trial.note("killed SuperLink")
    trial.pause(5)


def kill_server_host(trial: Trial) -> None:
    """A power cut of the server: SuperLink, ServerApp and all else on it."""
    trial.federation.server.kill()
    trial.note("killed all on the server host")
    trial.pause(5)


def kill_server_app(trial: Trial) -> None:
    """kill -9 of the ServerApp alone."""
    server = trial.federation.server
    with suppress(TimeoutError):  # it may have done its work
        wait_until(lambda: server.find("flwr-serverapp") or not trial.is_followed(), 60, "it")
    pids = server.find("flwr-serverapp")
    send_signal(pids, signal.SIGKILL)
    trial.note(f"killed {len(pids)} ServerApp process(es)")


def cut_link(trial: Trial) -> None:
    """A node's cable is out for some seconds."""
    trial.victim.host.cut_link()
    length = trial.pause(15)
    trial.victim.host.mend_link()
    trial.note(f"link of {trial.victim.client} was down for {length:.1f} s")


def cut_link_long(trial: Trial) -> None:
    """A node's cable is out for longer than a round may take."""
    trial.victim.host.cut_link()
    time.sleep(DEADLINE_S)
    length = DEADLINE_S + trial.pause(10)
    trial.victim.host.mend_link()
    trial.note(f"link of {trial.victim.client} was down for {length:.1f} s")


def stop_node(trial: Trial) -> None:
    """A node that stands still beyond the round's deadline, and then goes on."""
    pids = trial.victim.host.processes()
    send_signal(pids, signal.SIGSTOP)
    time.sleep(DEADLINE_S)
    length = DEADLINE_S + trial.pause(5)
    send_signal(pids, signal.SIGCONT)
    trial.note(f"{trial.victim.client} stood still for {length:.1f} s")


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Leave no room on a disk for a while."""
    ballast = folder / "ballast"
    try:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        yield
    finally:
        ballast.unlink()


def fill_node_disk(trial: Trial) -> None:
    """No room for a node's state, for a while."""
    with full_disk(trial.victim.state):
        trial.note(f"disk of {trial.victim.client} was full for {trial.pause(20):.1f} s")


def fill_server_disk(trial: Trial) -> None:
    """No room for run folders, until the run has ended, or for a while."""
    assert trial.run is not None
    with full_disk(trial.federation.runs):
        end = time.monotonic() + 20
        while trial.run.is_alive() and time.monotonic() < end:
            time.sleep(0.2)
    trial.note("the server's disk was full")


def shift_clock(trial: Trial) -> None:
    """A node is started again with a clock that is wrong, and later with one that is right."""
    offset = trial.random.choice(["+2h", "-2h", "+100s", "-100s"])
    unfaked = {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    trial.victim.stop()
    trial.victim.start(before=[find_faketime(), "-m", "-f", offset], environment=unfaked)
    trial.note(f"clock of {trial.victim.client} was wrong by {offset} for {trial.pause(40):.1f} s")
    trial.victim.stop()


def find_faketime() -> str:
    """The program faketime.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = shutil.which("faketime")
    if found is None:
        raise FileNotFoundError("faketime is not installed: apt-get install faketime")
    return found


def turn_hostile(trial: Trial) -> None:
    """A node answers garbage, or twice, from before the run to its end."""
    mode = trial.random.choice(MODES)
    front = write_hostile(trial.victim.host.folder / "hostile")
    path = f"{front}:{trial.victim.host.environment['PYTHONPATH']}"
    trial.victim.stop()
    before = len(trial.victim.said())
    process = trial.victim.start(by="plain", environment={"PYTHONPATH": path, MODE: mode})
    process.wait_for("SuperNode ID", after=before)
    trial.note(f"{trial.victim.client} answers with {mode}")
    trial.submit()
    assert trial.run is not None
    with suppress(subprocess.TimeoutExpired):
        trial.run.wait(HANG_S)
    trial.victim.stop()
    told = [line["clients"] for line in trial.lines()]
    heard = len(trial.federation.nodes) - (mode != "twice")
    if [clients["answered"] for clients in told] != [heard] * ROUNDS:
        trial.wrong = f"{mode}: {told}"


FAULTS: dict[str, Callable[[Trial], None]] = {
    "node-killed": kill_node,
    "worker-killed": kill_worker,
    "superlink-killed": kill_superlink,
    "server-killed": kill_server_host,
    "serverapp-killed": kill_server_app,
    "link-down": cut_link,
    "link-down-long": cut_link_long,
    "node-slow": stop_node,
    "node-disk-full": fill_node_disk,
    "server-disk-full": fill_server_disk,
    "node-clock-wrong": shift_clock,
    "node-hostile": turn_hostile,
}
BEFORE_THE_RUN = ("node-hostile",)  # start the run themselves; the others strike when it is on


@dataclass(frozen=True)
class Verdict:
    """What came of a trial; `wrong` is empty where all is as defined."""

    fault: str
    wrong: str
    seconds: float
    resumes: int
    lost: dict[int, dict[str, str]]
    notes: tuple[str, ...]


def try_fault(federation: Federation, fault: str, seed: int, expected_s: float) -> Verdict:
    """One repetition: a run, the fault at a random moment, what is left, judged."""
    draws = random.Random(f"{seed}-{fault}")
    victim = draws.choice(list(federation.nodes.values()))
    trial = Trial(federation, draws, victim, expected_s, len(federation.run_folders()))
    federation.tend()
    if fault not in BEFORE_THE_RUN:
        trial.submit()
        trial.wait_for_the_moment()
    FAULTS[fault](trial)
    try:
        resumes = finish(trial)
        wrong = trial.wrong or judge(trial) or ("more than one resume" if resumes > 1 else "")
    except TimeoutError as error:
        resumes, wrong = 0, f"hang: {error}"
    lost = {}
    if trial.folder is not None:
        lost = {
            line["round"]: line["clients"]["left-out"]
            for line in lines_of(trial.folder)
            if line["clients"]["left-out"]
        }
    seconds = time.monotonic() - trial.started
    return Verdict(fault, wrong, seconds, resumes, lost, tuple(trial.notes))


def finish(trial: Trial) -> int:
    """Tend the hosts until the run ends, going on with it where it died; returns how often.

    Raises:
        TimeoutError: it hangs.
    """
    end, resumes = time.monotonic() + HANG_S, 0
    while True:
        trial.federation.tend()
        time.sleep(0.5)
        if time.monotonic() > end:
            raise TimeoutError(f"no end within {HANG_S} s")
        assert trial.run is not None
        if trial.run.is_alive():
            continue
        if is_over(trial):
            return resumes
        if run_goes_on(trial):
            continue
        resumes += 1
        trial.note("run ended unfinished: " + last_line(trial.run))
        if resumes > 2:
            raise TimeoutError("unfinished after two resumes")
        if trial.folder is not None and (trial.folder / "checkpoint/checkpoint.json").exists():
            trial.submit(resume=trial.folder.name)
        else:
            trial.submit()  # it died before its first checkpoint


def is_over(trial: Trial) -> bool:
    return trial.folder is not None and (trial.folder / "results.json").exists()


def run_goes_on(trial: Trial) -> bool:
    """Whether the SuperLink still has the run although nobody follows it."""
    with suppress(OSError, ValueError):
        return any(
            not run["status"].startswith("finished") for run in trial.federation.listed_runs()
        )
    return True


def last_line(process: Process) -> str:
    lines = [line.strip(" \u2502\u2500\u2570\u256f") for line in process.said().splitlines()]
    return " | ".join([line for line in lines if line][-3:])[-300:]


def judge(trial: Trial) -> str:
    """Say what is wrong with how a run ended; empty where nothing is."""
    folder = trial.folder
    if folder is None:
        return "no run folder"
    if rounds_of(folder) != list(range(1, ROUNDS + 1)):
        return f"rounds {rounds_of(folder)}"
    if not (folder / "results.json").exists():
        return "no results.json"
    heads = {}
    for node in trial.federation.nodes.values():
        kept = node.kept(folder)
        heads[node.client] = node.heads(folder, max(kept)) if kept else {}
    experiment = trial.federation.experiment(*SETTINGS)
    gaps = []
    for losses in ways_to_lose(lines_of(folder), heads):
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "loopback"
            simulate_losses(experiment, out, losses)
            gap = differs(trunk_of(folder), trunk_of(out))
            at_home = heads_at_home(out)  # of a client that never trained: none
            for client, arrays in heads.items():
                gap = gap or differs(arrays, at_home.get(client, {}))
        if not gap:
            return ""
        gaps.append(f"{losses}: {gap}")
    return "not the loopback's: " + "; ".join(gaps)


def differs(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> str:
    """Name the arrays that are not the same; empty where all are."""
    if ours.keys() != theirs.keys():
        return f"names {sorted(ours.keys() ^ theirs.keys())}"
    return ", ".join(
        f"{name} by {np.abs(values - theirs[name]).max():.2g}"
        for name, values in ours.items()
        if not np.allclose(values, theirs[name], **CLOSE)
    )


def warm_up(federation: Federation) -> float:
    """A run without a fault: how long it takes, and that it is right.

    Raises:
        AssertionError: it is not.
    """
    trial = Trial(federation, random.Random(0), next(iter(federation.nodes.values())), 0, 0)
    trial.before = len(federation.run_folders())
    trial.submit()
    finish(trial)
    wrong = judge(trial)
    assert not wrong, wrong
    return time.monotonic() - trial.started


def main() -> int:
    """Repeat faults and print a table; returns 1 where an outcome was not as defined."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--fault", action="append", choices=list(FAULTS))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="keep all files here")
    parser.add_argument("--start-by", default=START_BY, choices=["plain", "fedmtl"])
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts go in order
    print(f"seed {options.seed}", flush=True)
    verdicts: list[Verdict] = []
    with (
        tempfile.TemporaryDirectory(prefix="fedmtl-faults-") as place,
        Federation(
            options.folder or Path(place), start_by=options.start_by, disk_bytes=DISK_BYTES
        ) as federation,
    ):
        federation.start_nodes()
        expected_s = warm_up(federation)
        print(f"a run without a fault takes {expected_s:.1f} s", flush=True)
        for fault in options.fault or FAULTS:
            for number in range(options.times):
                verdict = try_fault(federation, fault, options.seed + number, expected_s)
                verdicts.append(verdict)
                print(json.dumps(verdict.__dict__), flush=True)
    for fault in dict.fromkeys(v.fault for v in verdicts):
        mine = [v for v in verdicts if v.fault == fault]
        good, seconds = sum(not v.wrong for v in mine), sorted(v.seconds for v in mine)
        print(
            f"{fault:20} {good}/{len(mine)} as defined, resumes {sum(v.resumes for v in mine)}, "
            f"replies lost {sum(len(c) for v in mine for c in v.lost.values())}, "
            f"seconds {seconds[0]:.0f} to {seconds[-1]:.0f}"
        )
    return int(any(v.wrong for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
