"""`fedmtl ensemble`: what averaging the predictions of several models gains, task by task."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from client.prediction import describe_cover, describe_model
from common.algorithms import ALGORITHMS
from common.errors import ConfigError
from server.run_folder import command_line
from simulations.ensembles.figures import WEIGHTS, judge
from simulations.ensembles.members import (
    Member,
    check_members,
    open_member,
    open_snapshot_members,
)
from simulations.ensembles.rows import JUDGED, SharedRows, share_rows
from simulations.ensembles.votes import Poll, poll_averages, poll_clients, poll_runs
from simulations.formats import format_count

BY = ("runs", "clients", "snapshots")
FIGURES = "ensemble.json"


def make_ensemble(
    folders: Sequence[Path], by: str = "runs", weights: str = "equal", data: str | None = None
) -> dict[str, Any]:
    """Average predictions over runs, or over the clients or snapshots of one, and judge them.

    Args:
        folders: of finished simulations.
        by: of `BY`.
        weights: of `simulations.ensembles.figures.WEIGHTS`.
        data: where raw data is, if not where the experiments say.

    Returns:
        Figures for people and machines; the content of ensemble.json.

    Raises:
        ConfigError: an option is wrong, or the runs cannot vote together.
        CheckpointError: a folder is no finished run with its clients' heads, or kept no snapshots.
        DataError: the data cannot be read any more.
    """
    check_request(folders, by, weights)
    if by == "snapshots":
        members = open_snapshot_members(folders[0], data)
    else:
        members = [open_member(folder, data) for folder in folders]
        check_members(members)
    rows = share_rows(members)
    polls = poll_clients(members[0], rows) if by == "clients" else poll_runs(members, rows)
    _require_members(polls, members)
    averaged = poll_averages(members, rows) if by == "snapshots" else {}
    tasks = members[0].experiment.tasks
    return {
        "experiment": members[0].experiment.name,
        "command": command_line(),
        "by": by,
        "weights": weights,
        "runs": [describe_member(member) for member in members],
        "rows": {s: {"shared": rows.count(s), "of-each-run": list(rows.held[s])} for s in JUDGED},
        "tasks": {
            name: judge(
                name,
                tasks[name],
                poll,
                weights,
                by_clients=by == "clients",
                averaged=averaged.get(name),
            )
            for name, poll in polls.items()
        },
        "notes": [*_left_out(members, rows, polls), *_cautions(members, by)],
    }


def check_request(folders: Sequence[Path], by: str, weights: str) -> None:
    """Refuse what is no ensemble.

    Raises:
        ConfigError: names the option or argument.
    """
    if by not in BY:
        raise ConfigError(f"--by must be one of {', '.join(BY)}, got '{by}'")
    if weights not in WEIGHTS:
        raise ConfigError(f"--weights must be one of {', '.join(WEIGHTS)}, got '{weights}'")
    if by == "runs" and len(folders) < 2:
        raise ConfigError(
            "--by runs averages over two runs or more, got 1; train another with another --seed "
            "and the same data.seed, or use --by clients, or --by snapshots where the run kept any"
        )
    if by != "runs" and len(folders) > 1:
        raise ConfigError(
            f"--by {by} averages over the {by} of one run, got {len(folders)} runs; give one, or "
            "use --by runs"
        )


def _require_members(polls: Mapping[str, Poll], members: Sequence[Member]) -> None:
    if not polls:
        raise ConfigError(
            "RUN must name runs that share a task with test rows at some client, got none among "
            f"{len(members)}; keep test rows with data.test"
        )
    if all(len(poll.members) < 2 for poll in polls.values()):
        raise ConfigError(
            "--by clients averages over two clients or more with the same task, got 1; use --by "
            "runs"
        )


def describe_member(member: Member) -> dict[str, Any]:
    """Say which run a member is."""
    return {
        "folder": member.name,
        "run": member.kept.run,
        "round": member.kept.round,
        "fingerprint": member.experiment.fingerprint(),
        "seed": member.experiment.seed,
        "data-seed": member.experiment.data_seed,
        "clients": len(member.clients),
    }


def _left_out(
    members: Sequence[Member], rows: SharedRows, polls: Mapping[str, Poll]
) -> Iterator[str]:
    """Say in a line each which rows, clients and tasks are not counted."""
    for split in JUDGED:
        if any(count != rows.count(split) for count in rows.held[split]):
            held = sorted(set(rows.held[split]))
            yield (
                f"only {format_count(rows.count(split), f'{split} row')} of the "
                f"{' or '.join(map(str, held))} that each run has are used, which are "
                f"{split} rows of the same client in all; any other is one that a run may have "
                "trained on, or whose client keeps no heads there"
            )
    for member in members:
        if member.without_heads:
            left = format_count(len(member.without_heads), "client")
            yield f"{left} of {member.name} took part in no round, and have no say"
    if lacking := [task for task in members[0].experiment.tasks if task not in polls]:
        yield f"no test row that all members answer for task {', '.join(lacking)}: left out"


def _cautions(members: Sequence[Member], by: str) -> Iterator[str]:
    """Say in a line each what the figures do not mean."""
    for member in members[-1:] if by == "snapshots" else members:
        model = member.model(next(iter(member.clients)))
        for told in (*describe_model(member.experiment), *describe_cover(model)):
            yield f"{told} ({member.name})"
    federation = members[0].experiment.federation
    stay = ALGORITHMS[federation.algorithm].shares != "all" and federation.heads == "local"
    if by == "clients" and stay:
        yield (
            "heads stay with their clients in this experiment: whoever would let all vote has to "
            "be given them, or ask their owners"
        )
    if by == "snapshots":
        yield (
            "snapshots of one run saw the same rows in the same order, and are more alike than "
            "runs by other seeds"
        )
    elif len(members) > 1 and any(any(m.experiment.privacy.levels) for m in members):
        yield (
            "every run with noise spent a privacy budget on the same rows: for who is shown their "
            "average, the epsilons of the members add up"
        )
