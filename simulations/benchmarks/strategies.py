"""``python -m simulations.benchmarks.strategies``: what combining one round's trunks costs.

Rules get random rows, one round after another, in this process; the time is the median over some
rounds, the memory what a round takes at its peak beyond the rows themselves.
"""

import time
import tracemalloc
from typing import Annotated

import numpy as np
import typer

from common.experiment_file import load_experiment
from common.methods import make_options
from common.strategies import STRATEGIES
from server.aggregation.rule import Rule, Updates

ROUNDS = 3
MALICIOUS = ("krum", "multikrum", "bulyan")


def make_rule(name: str) -> Rule:
    """Make a rule with its default options; the robust ones expect a hostile client."""
    options = {"num-malicious-nodes": 1} if name in MALICIOUS else {}
    experiment = load_experiment("digits", [f"federation.strategy={name}"])
    rule: Rule = STRATEGIES[name].load()(make_options(STRATEGIES, name, options), experiment)
    return rule


def draw_round(number: int, clients: int, width: int, rows: np.ndarray) -> Updates:
    """Draw a round of so many clients, over the same memory each time."""
    generator = np.random.default_rng(number)
    generator.standard_normal(out=rows, dtype=np.float32)
    return Updates(
        round=number,
        clients=[f"client-{place:04}" for place in range(clients)],
        before=np.zeros(width, np.float32),
        rows=rows,
        weights=np.full(clients, 1 / clients),
        labelled=np.ones((clients, 3), np.int64),
        tasks=("digit", "parity", "ink"),
        losses=np.ones(clients),
        columns={"trunk.w": slice(0, width)},
    )


def measure(name: str, clients: int, width: int) -> tuple[float, float]:
    """Time a rule, in seconds, and take the peak of a round's memory, in MB."""
    rule, rows, times = make_rule(name), np.empty((clients, width), np.float32), []
    for number in range(1, ROUNDS + 1):
        updates = draw_round(number, clients, width, rows)
        started = time.perf_counter()
        rule.combine(updates)
        times.append(time.perf_counter() - started)
    updates = draw_round(ROUNDS + 1, clients, width, rows)
    tracemalloc.start()
    rule.combine(updates)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(np.median(times)), peak / 1e6


def main(
    clients: Annotated[str, typer.Option(help="Numbers of clients, commas between.")] = "10,100",
    widths: Annotated[
        str, typer.Option(help="Numbers of parameters, commas between.")
    ] = "20000,1250000",
    strategies: Annotated[str, typer.Option(help="Commas between.")] = ",".join(STRATEGIES),
) -> None:
    """Print a table, a strategy a line."""
    cases = [(int(k), int(q)) for q in widths.split(",") for k in clients.split(",")]
    heads = [f"K = {k}, P = {q:,}" for k, q in cases]
    typer.echo(f"| strategy | {' | '.join(heads)} |\n|---|{'---|' * len(cases)}")
    for name in strategies.split(","):
        found = [measure(name, *case) for case in cases]
        cells = [f"{1000 * seconds:.3g} ms, {size:.3g} MB" for seconds, size in found]
        typer.echo(f"| `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
