import io
import logging
import math
import time

import pytest
from rich.console import Console

from simulations import live
from simulations.live import LiveView, PlainLines, show_progress, sparkline

FIGURES = {"kind": {"accuracy": 0.5, "loss": 1.0}, "flag": {"loss": 0.7, "accuracy": 0.25}}


def round_line(number, validation=FIGURES, left_out=None):
    left_out = left_out or {}
    evaluation = {"trunk-round": number - 1, "validation": {"loss": 1.0, "tasks": validation}}
    return {
        "round": number,
        "time_s": 0.005,
        "clients": {"asked": 10, "answered": 10 - len(left_out), "left-out": left_out},
        "evaluation": evaluation if validation else None,
    }


def drawn(view, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(view.render())
    return console.file.getvalue()


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def printed(tiny):
    lines = []
    return PlainLines(tiny, lambda text: lines.append(text.plain)), lines


def test_a_plain_line_says_round_figures_and_clients(printed):
    plain, lines = printed
    plain.on_round(round_line(3))
    assert lines == [
        "round 3/20  kind accuracy 0.5000, flag accuracy 0.2500, size rmse -  "
        "10 of 10 clients answered  200.0 rounds/s"
    ]


def test_fast_rounds_print_at_most_a_line_a_second_and_the_last(printed, clock):
    plain, lines = printed
    for number in range(1, 21):
        plain.on_round(round_line(number))
        clock[0] += 0.3
    plain.finish()
    numbers = [int(line.split()[1].split("/")[0]) for line in lines]
    assert numbers == [1, 5, 9, 13, 17, 20]


def test_the_last_line_is_not_printed_twice(printed):
    plain, lines = printed
    plain.on_round(round_line(1))
    plain.finish()
    assert len(lines) == 1


def test_a_round_without_evaluation_keeps_the_last_figures(printed, clock):
    plain, lines = printed
    plain.on_round(round_line(1))
    clock[0] += 2
    plain.on_round(round_line(2, validation=None))
    assert "kind accuracy 0.5000" in lines[1]


def test_the_view_shows_bar_figures_and_who_was_left_out(tiny):
    view = LiveView(tiny)
    view.on_round(round_line(5, left_out={"client-[3]": "trunk has NaN"}))
    text = drawn(view)
    assert "round 5/20" in text
    assert "0.5000" in text
    assert "9 of 10 clients answered" in text
    assert "left out: client-[3]: trunk has NaN" in text


def test_many_clients_left_out_are_counted(tiny):
    view = LiveView(tiny)
    view.on_round(round_line(5, left_out={f"c{i}": "silent" for i in range(10)}))
    assert "and 7 more" in drawn(view)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_view_draws_before_the_first_round_and_on_any_width(tiny, width):
    view = LiveView(tiny)
    assert "tiny" in drawn(view, width)
    view.on_round(round_line(1))
    assert all(len(line) <= width for line in drawn(view, width).splitlines())


def test_a_view_in_ascii_has_no_other_letters(tiny):
    view = LiveView(tiny, ascii_only=True)
    for number in range(1, 4):
        view.on_round(round_line(number))
    assert drawn(view).replace("━", "-").replace("╺", "-").replace("╸", "-").isascii()


def test_the_expected_time_follows_the_speed(tiny, clock):
    view = LiveView(tiny)
    for number in range(1, 11):
        clock[0] += 2
        view.on_round(round_line(number))
    assert view.speed.seconds_for(10) == pytest.approx(20)
    assert "20.0 s left" in drawn(view)


def test_a_trend_ends_at_the_present():
    assert sparkline([*range(100), 0])[-1] == "▁"
    assert len(sparkline(list(range(100)))) == live.TREND_WIDTH


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [math.nan], [math.inf, 1.0]])
def test_a_trend_of_odd_series_is_drawn(values):
    assert len(sparkline(values)) == len(values)


def test_a_round_costs_next_to_nothing(tiny):
    view = LiveView(tiny)
    started = time.perf_counter()
    for number in range(1000):
        view.on_round(round_line(number))
    assert (time.perf_counter() - started) / 1000 < 1e-3


def test_a_repeated_warning_is_shown_once_and_the_handler_goes(tiny):
    console = Console(file=io.StringIO(), width=100)
    log = logging.getLogger("fedmtl.server")
    before = list(logging.getLogger("fedmtl").handlers)
    with show_progress(tiny, console):
        log.warning("client-003 left out: %s", "NaN")
        log.warning("client-003 left out: %s", "NaN")
    assert console.file.getvalue().count("client-003 left out") == 1
    assert logging.getLogger("fedmtl").handlers == before


def test_a_quiet_run_shows_warnings_only(tiny):
    console = Console(file=io.StringIO())
    with show_progress(tiny, console, quiet=True) as listener:
        listener.on_round(round_line(1))
        logging.getLogger("fedmtl").warning("disk is nearly full")
    assert "round" not in console.file.getvalue()
    assert "disk is nearly full" in console.file.getvalue()


def test_a_terminal_gets_a_live_view_that_leaves_nothing_behind(tiny):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with show_progress(tiny, console) as listener:
        listener.on_round(round_line(1))
        assert isinstance(listener, LiveView)
    assert console.file.getvalue().rstrip().endswith("\x1b[2K")
