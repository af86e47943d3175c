"""How long a report takes to open from disk: ``python -m simulations.benchmarks.report_opening``.

Trains six tasks at fifty clients (`simulations.benchmarks.six_tasks`), evaluates, writes the
report, and opens it in a new Chromium each time, so that no opening gains by the one before.
"""

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.benchmarks.browser import find_browser, open_browser
from simulations.terminal import print_json, told_in_lines

SCREEN = (1280, 800)
# Charts whose place is on the screen, and all charts, are drawn.
SEEN = """[...document.querySelectorAll(".chart")].every((chart) => chart.querySelector(".main-svg")
    || !chart.checkVisibility() || chart.getBoundingClientRect().top > innerHeight)"""
ALL = """[...document.querySelectorAll(".chart")].every((c) => c.querySelector(".main-svg"))"""


def main(
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="This run's report; default: a new run.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of the new run.")] = 30,
    openings: Annotated[int, typer.Option(min=1, help="How often the page is opened.")] = 5,
) -> None:
    """Measure how long a report takes to open, in seconds, and print JSON."""
    with told_in_lines(), tempfile.TemporaryDirectory() as place:
        program = find_browser()
        if program is None:
            raise ConfigError("a browser must be on the path, got none; install chromium")
        page = write_page_of(run or train(Path(place), rounds))
        times = [open_once(program, page) for _ in range(openings)]
        told = {key: round(median(own[key] for own in times), 3) for key in times[0]}
        told |= {"openings": openings, "megabytes": round(page.stat().st_size / 1e6, 2)}
        print_json(told)


def train(folder: Path, rounds: int) -> Path:
    """Train, evaluate, and return the run folder."""
    from simulations.benchmarks.six_tasks import make_six_tasks
    from simulations.evaluation.evaluate import evaluate
    from simulations.evaluation.files import write_evaluation
    from simulations.simulate import simulate

    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    simulate(make_six_tasks(folder, rounds), engine="loopback", out=run)
    write_evaluation(evaluate(run), run)
    return run


def write_page_of(run: Path) -> Path:
    """Write the report of a run."""
    from simulations.report import write_report

    return write_report(run)


def open_once(program: str, page: Path) -> dict[str, float]:
    """Open a page in a new browser.

    Returns:
        Seconds from navigation to "load", the load event; "seen", all charts on the screen are
        drawn; and "all", so are those below it, which a reader gets by scrolling.
    """
    with open_browser(program) as browser:
        browser.look(*SCREEN)
        start = time.perf_counter()
        browser.open(page)
        load = time.perf_counter() - start
        browser.until(SEEN)
        seen = time.perf_counter() - start
        browser.run("window.dispatchEvent(new Event('beforeprint'))")
        browser.until(ALL)
        return {"load": load, "seen": seen, "all": time.perf_counter() - start}


if __name__ == "__main__":
    typer.run(main)
