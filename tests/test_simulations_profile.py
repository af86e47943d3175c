import inspect
import json
import sys
from types import ModuleType

import pytest
from rich.console import Console
from safetensors.numpy import load_file
from typer.testing import CliRunner

from common.errors import ConfigError
from common.experiment_file import load_experiment
from simulations.cli import app
from simulations.profile import SECTIONS, Stopwatch, find_place, replaced, take_profile, timed
from simulations.simulate import simulate
from simulations.summary import print_profile

SETTINGS = [
    "federation.rounds=3",
    "federation.clients-per-round=3",
    "partition.clients=5",
    "trunk.widths=[16]",
]
CNN = ["trunk.architecture=cnn", "trunk.channels=[2]"]
PLACES = [place for places in SECTIONS.values() for place in places]
# engine and settings -> sections that must have taken time
RUNS = {
    "loopback": ("loopback", []),
    "loopback, plain sgd": ("loopback", ["training.optimiser=sgd"]),
    "loopback, momentum": ("loopback", ["training.optimiser=sgd", "training.momentum=0.9"]),
    "loopback, evaluated by message": ("loopback", ["evaluation.by=message"]),
    "batched": ("batched", []),
    "batched, personal": ("batched", ["evaluation.model=personal"]),
    "cnn": ("loopback", CNN),
}


class Clock:
    """A clock that stands until it is told that time passes."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def pass_(self, seconds):
        self.seconds += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    return Stopwatch(clock)


def taken(lap):
    """The sections that took time."""
    return {name: seconds for name, seconds in lap.seconds.items() if seconds}


def functions():
    return {place: vars(owner)[name] for place in PLACES for owner, name in [find_place(place)]}


def profile_of(run):
    return json.loads((run / "profile.json").read_text())


@pytest.mark.parametrize("place", PLACES)
def test_every_place_holds_a_function_whose_calls_take_its_time(place):
    owner, name = find_place(place)
    function = vars(owner)[name]  # its own, so that it can be put back
    assert callable(function)
    assert not inspect.isgeneratorfunction(function)


def test_every_place_belongs_to_one_section():
    assert len(set(PLACES)) == len(PLACES)


def test_time_belongs_to_the_innermost_section(clock, watch):
    forward = timed(lambda: clock.pass_(2), "forward", watch)

    def deliver():
        clock.pass_(1)
        forward()
        clock.pass_(3)
        forward()

    clock.pass_(5)
    timed(deliver, "records", watch)()
    clock.pass_(6)
    lap = watch.take_lap()
    assert taken(lap) == {"records": 4, "forward": 4, "rest": 11}
    assert lap.total == 19
    assert lap.calls["forward"] == 2
    assert lap.calls["records"] == 1


def test_a_section_inside_itself_counts_once(clock, watch):
    inner = timed(lambda: clock.pass_(2), "records", watch)
    timed(lambda: (clock.pass_(1), inner()), "records", watch)()
    assert taken(watch.take_lap()) == {"records": 3}


def test_evaluation_keeps_what_it_calls(clock, watch):
    forward = timed(lambda: clock.pass_(2), "forward", watch)
    timed(lambda: (clock.pass_(1), forward()), "evaluation", watch)()
    lap = watch.take_lap()
    assert taken(lap) == {"evaluation": 3}
    assert lap.calls["forward"] == 0


def test_a_section_that_fails_ends(clock, watch):
    def fail():
        clock.pass_(2)
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        timed(fail, "data", watch)()
    clock.pass_(1)
    assert taken(watch.take_lap()) == {"data": 2, "rest": 1}


def test_a_lap_begins_where_the_last_one_ended(clock, watch):
    clock.pass_(1)
    watch.take_lap()
    timed(lambda: clock.pass_(2), "data", watch)()
    lap = watch.take_lap()
    assert (lap.total, taken(lap)) == (2, {"data": 2})


def test_functions_are_replaced_where_they_are_looked_up(monkeypatch):
    module = ModuleType("works")
    exec("def one(): return 1\nclass Work:\n def two(self): return one() + one()", vars(module))
    monkeypatch.setitem(sys.modules, "works", module)
    ten_more = {p: lambda f: lambda *a: f(*a) + 10 for p in ("works:one", "works:Work.two")}
    with replaced(ten_more):
        assert module.Work().two() == 32
    assert module.Work().two() == 2


def test_the_originals_are_back_after_an_exception():
    before, during = functions(), {}

    def interrupted():
        with take_profile(None):
            during.update(functions())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(during[place] is not before[place] for place in PLACES)
    assert functions() == before


def test_the_originals_are_back_where_one_cannot_be_replaced():
    before = functions()
    with pytest.raises(KeyError), replaced({PLACES[0]: lambda f: None, "json:nothing": id}):
        pass
    assert functions() == before


@pytest.mark.parametrize("case", RUNS)
def test_the_sections_of_a_run_add_up_to_its_rounds(tmp_path, case):
    engine, settings = RUNS[case]
    experiment = load_experiment("digits", [*SETTINGS, *settings])
    before = functions()
    simulate(experiment, engine=engine, out=tmp_path, profile=True)
    assert functions() == before
    profile = profile_of(tmp_path)
    assert (profile["engine"], profile["from-round"], profile["rounds"]) == (engine, 1, 3)
    assert (profile["first"]["rounds"], profile["others"]["rounds"]) == (1, 2)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for part, rounds in {"first": lines[:1], "others": lines[1:]}.items():
        sections, total = profile[part]["sections"], profile[part]["seconds"]
        seconds = {name: section["seconds"] for name, section in sections.items()}
        assert sum(seconds.values()) == pytest.approx(total)
        assert sum(section["share"] for section in sections.values()) == pytest.approx(1)
        assert total > sum(line["time_s"] for line in rounds)
        assert all(value > 0 for name, value in seconds.items() if name != "checkpoint")
    assert profile["first"]["sections"]["checkpoint"]["calls"] == 1


def test_calls_are_those_of_the_rounds(tmp_path):
    experiment = load_experiment("digits", [*SETTINGS, "training.epochs=2", *CNN])
    simulate(experiment, engine="loopback", out=tmp_path, profile=True)
    sections = profile_of(tmp_path)["others"]["sections"]
    assert sections["evaluation"]["calls"] == 2 * 3  # rounds, clients
    assert sections["forward"]["calls"] == sections["backward"]["calls"]
    # A step moves the parameters once; each client of a round makes an optimiser.
    assert sections["optimiser"]["calls"] == sections["backward"]["calls"] + 2 * 3
    assert sections["rest"]["calls"] is None


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_profile_changes_no_bit_of_the_run(tmp_path, engine):
    experiment = load_experiment("digits", SETTINGS)
    trunks = []
    for profile in (False, True):
        out = tmp_path / str(profile)
        simulate(experiment, engine=engine, out=out, profile=profile)
        assert (out / "profile.json").exists() == profile
        (file,) = (out / "checkpoint").glob("trunk-*.safetensors")
        trunks.append(load_file(file))
    assert all((trunks[0][name] == trunks[1][name]).all() for name in trunks[0])


def test_a_resumed_run_measures_the_rounds_of_its_sitting(tmp_path):
    simulate(load_experiment("digits", SETTINGS), engine="batched", out=tmp_path)
    more = load_experiment("digits", [*SETTINGS, "federation.rounds=5"])
    heard = []
    simulate(more, engine="batched", out=tmp_path, resume=True, profile=True, listener=heard.append)
    assert [line["round"] for line in heard] == [4, 5]
    profile = profile_of(tmp_path)
    assert (profile["from-round"], profile["rounds"]) == (4, 2)
    simulate(more, engine="batched", out=tmp_path, resume=True, profile=True)
    assert profile_of(tmp_path)["rounds"] == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"engine": "loopback", "workers": 2}, "--workers must be 1, got 2; remove one"),
        ({"engine": "flower"}, "one of loopback, batched, got 'flower'; choose one of them"),
    ],
)
def test_a_profile_needs_one_process(tmp_path, options, error):
    with pytest.raises(ConfigError, match=error):
        simulate(load_experiment("digits", SETTINGS), out=tmp_path / "run", profile=True, **options)
    assert not (tmp_path / "run").exists()


def run_command(*arguments):
    short = [part for setting in SETTINGS for part in ("--set", setting)]
    return CliRunner().invoke(app, ["simulate", *short, *map(str, arguments)])


def test_the_command_prints_the_profile_after_the_summary(tmp_path):
    result = run_command("--profile", "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1].strip() for line in result.stdout.splitlines() if "│" in line]
    assert rows[-len(SECTIONS) - 1 :] == [*SECTIONS, "round"]
    assert "mean of 2 rounds; the first, which warms up, is not among them" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("report: ")
    assert profile_of(tmp_path / "run")["engine"] == "loopback"


def test_the_profile_is_part_of_the_json(tmp_path):
    result = run_command("--profile", "--out", tmp_path / "run", "--json", "--quiet")
    assert json.loads(result.stdout)["profile"] == profile_of(tmp_path / "run")


def test_the_command_refuses_a_profile_of_workers_in_one_line(tmp_path):
    result = run_command("--profile", "--workers", 2, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --profile measures one process: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("rounds", "text"),
    [(0, "this sitting had no round left to do"), (1, "the first round of the sitting")],
)
def test_short_sittings_are_told_as_such(clock, rounds, text):
    console = Console(record=True, width=100)
    with take_profile(None, now=clock) as profile:
        for number in range(rounds):
            clock.pass_(1)
            profile.on_round({"round": number})
    print_profile({"engine": "loopback", **profile.describe()}, console)
    assert text in console.export_text()
