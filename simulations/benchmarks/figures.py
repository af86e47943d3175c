"""From turns to figures: ratios to the plain loop, times, CPU time and memory of each contender."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from simulations.benchmarks.arena import Record
from simulations.benchmarks.contenders import PLAIN
from simulations.benchmarks.processes import Memory

Figures = dict[str, Any]


def summarise(records: Mapping[str, Record]) -> dict[str, Figures]:
    """Compute the figures of all contenders, as ``--json`` prints them."""
    return {name: contender_figures(record, records[PLAIN]) for name, record in records.items()}


def contender_figures(record: Record, plain: Record) -> Figures:
    """Compute the figures of one contender.

    A contender whose trunk is not the plain loop's did other work, and has no ratio. Nor has one
    that stopped before its turns.
    """
    figures: Figures = {"skipped": record.skipped} if record.skipped else {}
    if record.comparison is not None:
        figures["trunk"] = {
            "after-rounds": record.checked_round,
            "is-same": record.comparison.is_same,
            **{key.replace("_", "-"): value for key, value in asdict(record.comparison).items()},
        }
    if record.first_s is not None:
        figures["first-round-s"] = record.first_s
        figures["import-torch-s"] = record.import_s
    if record.turns:
        rounds = sum(turn.rounds for turn in record.turns.values())
        figures["ms-per-round"] = float(
            np.median([1e3 * turn.wall_s / turn.rounds for turn in record.turns.values()])
        )
        figures["cpu-ms-per-round"] = (
            1e3 * sum(turn.cpu_s for turn in record.turns.values()) / rounds
        )
        figures["rounds-per-turn"] = record.turn_rounds
        if record.comparison is not None and record.comparison.is_same:
            figures["ratio"] = spread(ratios(record, plain))
    if record.memory:
        figures["memory"] = memory_figures(record.memory[0], record.checked_round)
        figures["memory-at-end"] = memory_figures(record.memory[-1], record.rounds)
    return figures


def ratios(record: Record, plain: Record) -> list[float]:
    """Divide the time per round by the plain loop's, cycle by cycle."""
    return [
        (turn.wall_s / turn.rounds) / (plain.turns[cycle].wall_s / plain.turns[cycle].rounds)
        for cycle, turn in record.turns.items()
        if cycle in plain.turns
    ]


def spread(values: list[float]) -> Figures | None:
    """Summarise by median and quartiles.

    >>> spread([1.0, 2.0, 6.0])
    {'median': 2.0, 'lower-quartile': 1.5, 'upper-quartile': 4.0, 'cycles': 3}
    """
    if not values:
        return None
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {
        "median": median,
        "lower-quartile": lower,
        "upper-quartile": upper,
        "cycles": len(values),
    }


def memory_figures(memory: Memory, rounds: int) -> Figures:
    """Round to what the measurement can say."""
    return {
        "after-rounds": rounds,
        "resident-mb": round(memory.resident_mb),
        "proportional-mb": round(memory.proportional_mb),
        "processes": memory.processes,
    }


def others_load(records: Mapping[str, Record]) -> float:
    """The cores that other processes of the machine kept busy during a turn, in the median."""
    loads = [turn.others_cores for record in records.values() for turn in record.turns.values()]
    return float(np.median(loads)) if loads else math.nan
