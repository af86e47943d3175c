"""What `fedmtl privacy ledger` shows: by client and run, or reply by reply."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.privacy_ledger import FOLDER, LedgerFile
from common.errors import CheckpointError
from common.privacy.ledger import Entry
from simulations.formats import format_figure

FILE = "ledgers.jsonl"
MOST_LINES = 200


def read_ledgers(place: Path, client: str = "") -> list[Entry]:
    """Read the ledgers of a run folder, or of a node's state folder.

    Args:
        place: the folder.
        client: the only client wanted; empty for all.

    Raises:
        CheckpointError: it has none, or none of this client.
        StateError: one cannot be read.
    """
    own = sorted((place / FOLDER).glob("*.jsonl"))
    files = [place / FILE] if (place / FILE).is_file() else own
    if not files:
        raise CheckpointError(
            f"{place} has neither {FILE}, as the run folder of a simulation with [privacy] does, "
            f"nor {FOLDER}/, as a node's state folder does; name one of these"
        )
    entries = [entry for path in files for entry in LedgerFile(path).read()]
    kept = [entry for entry in entries if client in ("", entry.client)]
    if not kept and client:
        names = ", ".join(sorted({entry.client for entry in entries})[:8])
        raise CheckpointError(f"--client must be one of {names}, got '{client}'")
    return kept


def last_entries(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Group replies of runs: client and run -> its entries, oldest first."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.reply == "query":  # belongs to no run
            continue
        groups.setdefault((entry.client, entry.run), []).append(entry)
    return groups


def ledger_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Collect what clients paid for machines."""
    return [
        {
            "client": client,
            "run": run,
            "rounds": len({e.round for e in own if e.reply == "train"}),
            "replies": len(own),
            "numbers": sum(each.numbers for entry in own for each in entry.released),
            "epsilon": dict(own[-1].epsilon),
            "delta": dict(own[-1].delta),
        }
        for (client, run), own in last_entries(entries).items()
    ]


def print_ledger(entries: Sequence[Entry], console: Console, *, replies: bool) -> None:
    """Print what clients paid, a line each, or each of their replies."""
    lines = entries if replies else [own[-1] for own in last_entries(entries).values()]
    counts = {key: len(own) for key, own in last_entries(entries).items()}
    table = Table(title="replies" if replies else "what clients have released, and paid")
    headings = ["client", "run", "round", "reply"] if replies else ["client", "run", "replies"]
    for heading in (*headings, "held", "epsilon", "at delta"):
        table.add_column(heading)
    for entry in lines[:MOST_LINES]:
        place = (
            [str(entry.round), entry.reply] if replies else [str(counts[entry.client, entry.run])]
        )
        table.add_row(
            *map(Text, [entry.client, entry.run, *place]),
            Text(_held(entry if replies else _largest(entries, entry))),
            Text(_by_unit(entry.epsilon)),
            Text(", ".join(f"{delta:g}" for delta in entry.delta.values())),
        )
    console.print(table)
    for told in _protections(entries if replies else [_largest(entries, each) for each in lines]):
        console.print(Text(told))
    if len(lines) > MOST_LINES:
        console.print(f"{len(lines) - MOST_LINES:,} more: --json, or --client")


def _largest(entries: Sequence[Entry], like: Entry) -> Entry:
    """Get the reply of a client that held most, to say what its replies hold."""
    own = [e for e in entries if (e.client, e.run) == (like.client, like.run)]
    return max(own, key=lambda entry: sum(each.numbers for each in entry.released))


def _held(entry: Entry) -> str:
    return ", ".join(f"{each.what} {each.numbers:,}" for each in entry.released)


def _protections(entries: Sequence[Entry]) -> dict[str, None]:
    """Say what protects each kind of numbers, once; as the keys, in order."""
    return {
        f"{each.what}: {'not protected' if each.mechanism == 'none' else each.mechanism}": None
        for entry in entries
        for each in entry.released
    }


def _by_unit(epsilon: Any) -> str:
    return ", ".join(f"{format_figure(value)} ({unit})" for unit, value in epsilon.items()) or "-"
