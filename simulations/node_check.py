"""What `fedmtl node check` prints."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.node.dry_run import DryRun, Exchange
from common.experiment import Experiment
from simulations.formats import format_bytes, format_count


def to_json(experiment: Experiment, checked: DryRun) -> dict[str, Any]:
    """Collect it for machines."""
    return {
        "experiment": experiment.name,
        "fingerprint": experiment.fingerprint(),
        "client": checked.description.client,
        "device": checked.device,
        "description": checked.description.model_dump(mode="json"),
        "messages": {exchange.kind: asdict(exchange) for exchange in checked.exchanges},
    }


def print_node_check(experiment: Experiment, checked: DryRun, console: Console) -> None:
    """Print it for the node's owner."""
    told = checked.description
    console.print(
        Text(f"{experiment.name}, fingerprint {experiment.fingerprint()}: the data fits.")
    )
    rows = ", ".join(f"{count:,} {split}" for split, count in told.examples.items())
    tasks = ", ".join(f"{task} ({count:,})" for task, count in told.labelled.items())
    console.print(Text(f"client {told.client} on {checked.device}: rows {rows}; tasks {tasks}"))
    table = Table(title="what one message brings, and what leaves in reply (payload)")
    for column in ("message", "received", "sent", "seconds", "the policy"):
        table.add_column(column, justify="left" if column in ("message", "the policy") else "right")
    for exchange in checked.exchanges:
        table.add_row(
            exchange.kind,
            format_bytes(exchange.received_bytes),
            format_bytes(exchange.sent_bytes),
            f"{exchange.seconds:.2f}",
            Text(_verdict(exchange)),
        )
    console.print(table)
    for exchange in checked.exchanges:
        if exchange.leaves:
            console.print(Text(f"in the reply to {exchange.kind}:", style="bold"))
            for name, what in exchange.leaves.items():
                console.print(Text(f"  {name}: {what}"))
    console.print(Text("the description, once a run:", style="bold"))
    console.print(Text(f"  {told.to_json()}"), soft_wrap=True)


def _verdict(exchange: Exchange) -> str:
    if exchange.refused:
        return f"refuses: {exchange.refused}"
    if exchange.withheld:
        return f"keeps back {format_count(len(exchange.withheld), 'value')}"
    return "lets it out"
