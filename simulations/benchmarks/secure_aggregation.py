"""``python -m simulations.benchmarks.secure_aggregation``: what secure aggregation costs per round.

Clients and server go through the four stages with made-up updates, in one process and without
messages or training, so that what is measured is rounding, keys, shares and masks alone. Beside it
stands what the plain round does with the same updates: add them up in float32. Bytes are what the
messages carry without instructions, in both directions, against the update sent up and the trunk
sent down.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Literal

import numpy as np
import typer

from common.errors import ConfigError
from common.secure_aggregation.client import ClientMachine
from common.secure_aggregation.graph import (
    count_least,
    count_needed,
    draw_neighbours,
    group_size,
)
from common.secure_aggregation.grids import Grid, from_words, to_words
from common.secure_aggregation.server import ServerMachine
from common.wire import FloatArray
from server.secure_traffic import Traffic
from simulations.formats import format_bytes
from simulations.terminal import told_in_lines

THRESHOLD, BITS = 0.66, 20
HEADINGS = (
    "clients",
    "neighbours",
    "parameters",
    "gone",
    "client: keys and shares, ms",
    "client: rounding and masks, ms",
    "client: shares back, ms",
    "server: adding, ms",
    "server: unmasking, ms",
    "plain: adding, ms",
    "bytes up and down per client",
    "of plain",
)


@dataclass
class Case:
    """One size of a round.

    Attributes:
        clients: asked.
        parameters: of an update.
        neighbours: of each client; 0 for all.
        gone: clients that drop out after they dealt shares.
        times: stage -> seconds, over all clients.
    """

    clients: int
    parameters: int
    neighbours: int
    gone: int
    times: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add to a stage's time."""
        started = time.perf_counter()
        yield
        self.times[stage] += time.perf_counter() - started

    def run(self) -> None:
        """Do a round, and hold its sum against the plain one.

        Raises:
            RuntimeError: the sum is another.
        """
        wanted: int | Literal["all"] = self.neighbours or "all"
        needed = count_needed(self.clients, wanted, THRESHOLD)
        least = count_least(self.clients, THRESHOLD)
        machines = {place: ClientMachine("0" * 32) for place in range(1, self.clients + 1)}
        server = ServerMachine("0" * 32, needed, least)
        graph = draw_neighbours(self.clients, wanted, Random(0))
        with self.timed("keys"):
            server.meet({place: m.advertise() for place, m in machines.items()}, graph)
            for place, machine in machines.items():
                peers = {other: server.keys[other] for other in graph[place]}
                server.take_shares(place, machine.deal(place, peers, needed, least))
        plain = self._cover(machines, server)
        for place in sorted(server.staying):
            with self.timed("back"):
                found = machines[place].uncover(server.staying, server.sealed_for(place))
            with self.timed("unmasking"):
                server.take_uncovered(place, found)
        with self.timed("unmasking"):
            total = from_words(server.total()[0]) * Grid(1.0, BITS).step
        if np.abs(total - plain).max() > self.clients * Grid(1.0, BITS).step:
            raise RuntimeError("the secure sum is not the plain one")

    def _cover(self, machines: dict[int, ClientMachine], server: ServerMachine) -> FloatArray:
        """Mask and add up the updates of those who stay; returns their plain sum."""
        grid, random = Grid(1.0, BITS), np.random.default_rng(0)
        plain = np.zeros(self.parameters, np.float32)
        nothing = np.zeros(0, np.uint64)
        for place in range(1, self.clients + 1 - self.gone):
            update = random.uniform(-1, 1, self.parameters).astype(np.float32)
            with self.timed("plain"):
                plain += update
            with self.timed("masks"):
                chance = random.random(self.parameters)
                words = to_words(grid.quantise(update.astype(np.float64), chance))
                machines[place].cover([words, nothing], set(server.dealt))
            with self.timed("adding"):
                server.add(place, [words, nothing])
        server.close_masks()
        return plain

    def cells(self) -> list[str]:
        """Write a row of the table."""
        staying = self.clients - self.gone
        around = group_size(self.clients, self.neighbours or "all") - 1
        size = 4 * self.parameters
        traffic = Traffic.of(self.clients, staying, around, 0, size, size)
        each = (traffic.sent + traffic.received) / self.clients
        counts = {"keys": self.clients, "masks": staying, "back": staying}
        stages = ("keys", "masks", "back", "adding", "unmasking", "plain")
        times = [1000 * self.times[stage] / counts.get(stage, 1) for stage in stages]
        return [
            f"{self.clients:,}",
            f"{around:,}",
            f"{self.parameters:,}",
            f"{self.gone:,}",
            *(f"{taken:,.1f}" for taken in times),
            format_bytes(each),
            f"{each / (2 * size):.2f}",
        ]


def main(
    clients: Annotated[str, typer.Option(help="Clients of a round, by commas.")] = "10,30,100",
    parameters: Annotated[
        str, typer.Option(help="Parameters of an update, by commas.")
    ] = "1000,30000,1000000",
    neighbours: Annotated[int, typer.Option(help="Of each client; 0 for all.")] = 0,
    gone: Annotated[
        float, typer.Option(help="Share of the clients that drop out, below 0.34.")
    ] = 0.0,
) -> None:
    """Write a table of times and bytes per round, in Markdown."""
    with told_in_lines():
        if not 0 <= gone < 1 - THRESHOLD:
            raise ConfigError(f"--gone must be from 0 to below {1 - THRESHOLD:.2f}, got {gone:g}")
        typer.echo(f"| {' | '.join(HEADINGS)} |")
        typer.echo("|---:" * len(HEADINGS) + "|")
        for count in _numbers("--clients", clients, 2):
            for size in _numbers("--parameters", parameters, 1):
                case = Case(count, size, neighbours, int(gone * count))
                case.run()
                typer.echo(f"| {' | '.join(case.cells())} |")


def _numbers(option: str, text: str, least: int) -> list[int]:
    """Read whole numbers by commas.

    Raises:
        ConfigError: they are none.
    """
    try:
        found = [int(part) for part in text.split(",")]
        if min(found) < least:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{option} must be whole numbers from {least}, by commas, got '{text}'"
        ) from None
    return found


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_show_locals=False)
    app.command()(main)
    app()
