"""``python -m simulations.benchmarks``: measure, and print a table or JSON."""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import click
import typer

from common.errors import ConfigError
from simulations.benchmarks.contenders import CONTENDERS, PLAIN, USUAL
from simulations.benchmarks.workloads import WORKLOADS
from simulations.terminal import BAD_INPUT, print_json, told_in_lines

PEERS_VARIABLE = "FEDMTL_PEERS"
ROWS = Path(tempfile.gettempdir()) / "fedmtl-benchmarks"
app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def main(
    work: Annotated[str, typer.Option(help=f"One of {', '.join(WORKLOADS)}.")] = "W1",
    contenders: Annotated[
        str,
        typer.Option(metavar="NAMES", help=f"Some of {', '.join(CONTENDERS)}, commas between."),
    ] = ",".join(USUAL),
    flower: Annotated[
        bool, typer.Option("--flower", help="With Flower's Simulation Runtime, too.")
    ] = False,
    peers: Annotated[
        str, typer.Option(metavar="PYTHON", envvar=PEERS_VARIABLE, help="Python that has peers.")
    ] = "",
    cycles: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 30,
    turn_ms: Annotated[float, typer.Option(min=1, help="About how long a turn is.")] = 400.0,
    soak: Annotated[
        int, typer.Option(metavar="ROUNDS", min=0, help="Read the memory after so many rounds.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a process.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    rows: Annotated[
        Path, typer.Option(metavar="DIR", help="Where rows are kept.", show_default=False)
    ] = ROWS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Measure contenders on one workload, as ratios to a plain PyTorch loop."""
    with told_in_lines():
        if not sys.platform.startswith("linux"):
            raise ConfigError(f"the benchmarks read Linux's /proc; this is {sys.platform}")
        if work not in WORKLOADS:
            raise ConfigError(f"--work must be one of {', '.join(WORKLOADS)}, got '{work}'")
        names = choose(contenders, flower=flower)
        if peers and not os.access(peers, os.X_OK):
            raise ConfigError(f"--peers must be a Python that can be run, got '{peers}'")
        from rich.console import Console
        from rich.markup import escape

        from simulations.benchmarks.arena import Settings
        from simulations.benchmarks.measure import measure, time_import
        from simulations.benchmarks.tables import print_measurement

        settings = Settings(
            cycles=cycles,
            checked_round=WORKLOADS[work].checked_round,
            turn_s=turn_ms / 1000,
            soak_rounds=soak,
            time_import=partial(time_import, threads),
        )
        with Console(stderr=True).status(work) as status:
            measurement = measure(
                work,
                names,
                settings,
                rows_folder=rows,
                peers_python=peers,
                threads=threads,
                device=device,
                tell=lambda line: status.update(escape(line)),
            )
        if as_json:
            print_json(measurement)
        else:
            print_measurement(measurement, Console())


def choose(contenders: str, *, flower: bool) -> list[str]:
    """Read the names of contenders, the plain loop first.

    Raises:
        ConfigError: there is no such contender.
    """
    names = [name.strip() for name in contenders.split(",") if name.strip()]
    for name in names:
        if name not in CONTENDERS:
            raise ConfigError(f"--contenders must be some of {', '.join(CONTENDERS)}, got '{name}'")
    return list(dict.fromkeys([PLAIN, *names, *(["flower"] if flower else [])]))


def run() -> int:
    """Run the command; a wrong option is one line on stderr."""
    try:
        return int(app(standalone_mode=False) or 0)
    except click.UsageError as error:
        typer.echo(f"error: {error.format_message()}", err=True)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(run())
