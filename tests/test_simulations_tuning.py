"""Tuning: spaces and objectives as read, searches on made-up trials by hand, small real ones."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from common.errors import CheckpointError, ConfigError
from common.experiment_file import dump_experiment, load_experiment
from simulations.cli import app
from simulations.simulate import simulate
from simulations.tuning import search as module
from simulations.tuning import trial as trial_module
from simulations.tuning.charts import front_charts, history_chart, place, slice_charts
from simulations.tuning.objectives import Objective, parse_objectives, require_same_measure
from simulations.tuning.outcome import read_test, summarise, write_outcome
from simulations.tuning.page import write_tuning_page
from simulations.tuning.search import Search, locked, run_search, start_search
from simulations.tuning.space import Choice, Range, grid_points, parse_space, read_space
from simulations.tuning.study import open_study
from simulations.tuning.table import no_better, notes_of, print_outcome
from simulations.tuning.trial import Job, Outcome, PrunedError, Pruner, do_trial

pytest.importorskip("optuna")

QUICK = ["federation.rounds=2", "partition.clients=2", "trunk.widths=[8]", "training.epochs=1"]
RATES = {"training.lr": "[0.01, 0.02, 0.03]"}


def digits(*overrides):
    return dump_experiment(load_experiment("digits", [*QUICK, *overrides]))


def made_up(job):
    """Lower rates are better by loss, higher ones by accuracy; seeds differ by 0.02."""
    rate = float(job.settings.get("training.lr", "0.02"))
    figures = {"loss": rate, "digit/accuracy": 10 * rate, "parity/accuracy": 0.5}
    return Outcome([[figures[o.name] + 0.02 * s for o in job.objectives] for s in job.seeds])


@pytest.fixture
def trials_made_up(monkeypatch):
    monkeypatch.setattr(module, "do_trial", made_up)


def start(out, **options):
    given = {"space": RATES, "sampler": "grid", "trials": 3, "prune": "none", **options}
    start_search(Search(digits(), **given), out)
    return out


def listed(tuning):
    return [t.params["training.lr"] for t in tuning.study.get_trials() if t.values]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("log:0.001..0.1", Range(0.001, 0.1, True)),
        ("1..4", Range(1, 4)),
        ("0..0.5", Range(0, 0.5)),
        ("-1e-2..+1", Range(-0.01, 1)),
        ("[[32], [64, 32]]", Choice(("[32]", "[64, 32]"))),
        ('["adam", "sgd"]', Choice(('"adam"', '"sgd"'))),
        ("[true, false]", Choice(("true", "false"))),
    ],
)
def test_values_are_a_range_or_a_list(text, means):
    assert parse_space({"training.lr": text}) == {"training.lr": means}


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("training.lr", "0.1", "got 0.1; for one value, take --set"),
        ("training.lr", "0.2..0.1", "LOW must be below HIGH"),
        ("training.lr", "log:0..0.1", "above 0 by logarithm"),
        ("training.lr", "[0.1]", "two values or more"),
        ("training.lr", "[0.1, 0.1]", "each once"),
        ("training.lr", "fast", "must be LOW..HIGH, log:LOW..HIGH or a list"),
        ("training.optimiser", "[adam, sgd]", "needs quotes"),
        ("training.optimiser", "adam,sgd", 'has brackets, as in ["a", "b"]'),
        ("trunk.widths", "[32],[64,32]", "has brackets, as in [[32], [64, 32]]"),
        ("seed", "0..9", "--seeds N"),
        ("data.validation", "0.1..0.3", "decides the rows"),
        ("partition.clients", "2..9", "decides the rows"),
        ("privacy.client-level.epsilon", "1..9", "less privacy would always win"),
    ],
)
def test_what_cannot_be_tuned_is_told_in_one_line(key, text, told):
    with pytest.raises(ConfigError, match="--space") as raised:
        parse_space({key: text})
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_says_what_options_say(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text(
        'training.lr = "log:0.001..0.1"\n[trunk]\nwidths = [[32], [64, 32]]\n'
        '[federation]\nstrategy = ["mean", "median"]\n'
    )
    options = [
        "training.lr=log:0.001..0.1",
        "trunk.widths=[[32],[64,32]]",
        'federation.strategy=["mean","median"]',
    ]
    assert parse_space(read_space([str(file)])) == parse_space(read_space(options))


def test_a_table_is_a_value_like_another():
    space = parse_space(read_space(['trunk=[{widths=[8]}, {widths=[16], activation="tanh"}]']))
    assert [p["trunk"] for p in grid_points(space)] == [
        "{widths = [8]}",
        '{widths = [16], activation = "tanh"}',
    ]


@pytest.mark.parametrize(
    "options", [["nowhere.toml"], ["training.lr=1..2", "training.lr=3..4"], []]
)
def test_an_option_that_is_no_space_is_refused(options):
    with pytest.raises(ConfigError, match="--space"):
        read_space(options)


def test_a_grid_takes_every_combination_and_no_endless_range():
    space = parse_space({"training.epochs": "1..2", "trunk.widths": "[[8],[4]]"})
    assert [list(p.values()) for p in grid_points(space)] == [
        [1, "[8]"], [1, "[4]"], [2, "[8]"], [2, "[4]"],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"grid needs a list of values for training\.lr"):
        next(grid_points(parse_space({"training.lr": "0.1..0.2"})))
    with pytest.raises(ConfigError, match="at most 10000 combinations, got 1000000000"):
        next(grid_points(parse_space({"training.epochs": "1..1000000000"})))


def test_objectives_are_figures_of_the_experiment():
    experiment = load_experiment("digits")
    names = ["loss", "digit/accuracy", "ink/r2", "ink/loss"]
    assert [o.name for o in parse_objectives(names, experiment)] == names
    assert [o.is_maximised for o in parse_objectives(names, experiment)] == [0, 1, 1, 0]
    for wrong in (["digit/f1"], ["accuracy"], ["loss", "loss"]):
        with pytest.raises(ConfigError, match="--objective"):
            parse_objectives(wrong, experiment)


def test_the_loss_of_other_weights_is_not_compared_a_metric_is():
    base = load_experiment("digits")
    other = load_experiment("digits", ["tasks.ink.weight=0.5", "loss.weighting=manual"])
    require_same_measure(other, base, [Objective("accuracy", "digit")])
    with pytest.raises(ConfigError, match=r"tasks\.ink\.weight must be the same"):
        require_same_measure(other, base, [Objective("loss")])
    metric = load_experiment("digits", ["tasks.ink.metric=mae"])
    with pytest.raises(ConfigError, match=r"tasks\.ink\.metric must be the same"):
        require_same_measure(metric, base, [Objective("accuracy", "digit")])


@pytest.mark.slow
@pytest.mark.usefixtures("trials_made_up")
def test_the_best_trial_is_the_one_of_best_mean_over_seeds(tmp_path):
    outcome = write_outcome(run_search(start(tmp_path / "out", seeds=2)))
    assert outcome["best"]["number"] == 0
    assert outcome["best"]["settings"] == {"training.lr": "0.01"}
    loss = outcome["trials"][0]["values"]["loss"]
    assert loss["seeds"] == pytest.approx([0.01, 0.03])
    assert loss["mean"] == pytest.approx(0.02)
    assert outcome["own-settings"]["values"]["loss"]["mean"] == pytest.approx(0.03)
    assert json.loads((tmp_path / "out" / "tune.json").read_text())["front"] == [0]
    best = load_experiment(str(tmp_path / "out" / "best.toml"))
    assert best == load_experiment("digits", [*QUICK, "training.lr=0.01"])


@pytest.mark.usefixtures("trials_made_up")
def test_own_settings_that_no_trial_beats_are_told(tmp_path):
    worse = {"training.lr": "[0.02, 0.05]"}
    outcome = write_outcome(run_search(start(tmp_path / "a", space=worse)))
    assert no_better(outcome)
    console = Console(width=200, record=True)
    with console.capture() as capture:
        print_outcome(outcome, console)
    assert "own settings are as good by validation as every trial" in capture.get()
    assert not no_better(write_outcome(run_search(start(tmp_path / "b"))))


@pytest.mark.usefixtures("trials_made_up")
def test_several_objectives_have_a_front_and_a_file_for_each_trial_of_it(tmp_path):
    out = start(tmp_path / "out", objectives=["loss", "digit/accuracy", "parity/accuracy"])
    outcome = write_outcome(run_search(out))
    assert outcome["front"] == [0, 1, 2]  # what is gained by loss is lost by accuracy
    assert sorted(p.name for p in (out / "front").iterdir()) == [
        f"trial-000{number}.toml" for number in range(3)
    ]
    assert len(list(front_charts(outcome))) == 3


@pytest.mark.usefixtures("trials_made_up")
def test_the_front_of_two_is_drawn_with_the_beaten_behind_it(tmp_path, monkeypatch):
    def one_is_beaten(job):
        figures = {"0.01": [1.0, 0.5], "0.02": [2.0, 0.4], "0.03": [3.0, 0.9]}
        return Outcome([figures[job.settings.get("training.lr", "0.02")]])

    monkeypatch.setattr(module, "do_trial", one_is_beaten)
    out = start(tmp_path / "out", objectives=["loss", "digit/accuracy"])
    (chart,) = front_charts(write_outcome(run_search(out)))
    beaten, front, own = chart.traces
    assert (beaten["x"], beaten["y"]) == ([2.0], [0.4])
    assert (front["x"], front["y"], front["line"]) == ([1.0, 3.0], [0.5, 0.9], {"shape": "hv"})
    assert (own["x"], own["y"]) == ([2.0], [0.4])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_an_interrupted_search_goes_on_as_it_would_have(sampler, tmp_path, monkeypatch):
    space = RATES if sampler == "grid" else {"training.lr": "0.01..0.05"}
    options = {"sampler": sampler, "trials": 14 if sampler == "tpe" else 3, "space": space}
    monkeypatch.setattr(module, "do_trial", made_up)
    whole = run_search(start(tmp_path / "whole", **options))

    def interrupt(job):
        if job.number == 1:
            raise KeyboardInterrupt
        return made_up(job)

    out = start(tmp_path / "cut", **options)
    monkeypatch.setattr(module, "do_trial", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_search(out)
    monkeypatch.setattr(module, "do_trial", made_up)
    resumed = run_search(out)
    assert len(listed(resumed)) == options["trials"]
    assert sorted(listed(resumed)[:10]) == sorted(listed(whole)[:10])  # those that TPE draws evenly
    trials = summarise(resumed)["trials"]
    assert [t["number"] for t in trials if t["state"] == "fail"] == [1]
    assert [t["again"] for t in trials if "again" in t] == [1]
    again = next(t for t in trials if "again" in t)
    assert again["settings"] == trials[1]["settings"]


@pytest.mark.slow
@pytest.mark.usefixtures("trials_made_up")
def test_a_search_that_is_done_does_nothing_more_unless_asked(tmp_path, monkeypatch):
    out = start(tmp_path / "out", sampler="random", space={"training.lr": "0.01..0.05"})
    first = listed(run_search(out))
    monkeypatch.setattr(module, "do_trial", None)
    assert listed(run_search(out)) == first
    monkeypatch.setattr(module, "do_trial", made_up)
    monkeypatch.setattr("simulations.cli_tune.run", lambda *_, **__: None)
    result = CliRunner().invoke(app, ["tune", "--resume", str(out), "--trials", "5"])
    assert result.exit_code == 0, result.output
    more = listed(run_search(out))
    assert more[:3] == first
    assert len(set(more)) == 5


@pytest.mark.slow
def test_tpe_draws_near_good_trials(tmp_path, monkeypatch):
    def valley(job):
        rate = float(job.settings.get("training.lr", "0.5"))
        return Outcome([[abs(rate - 0.7) for _ in job.objectives]])

    monkeypatch.setattr(module, "do_trial", valley)
    space, distances = {"training.lr": "0.01..1.0"}, {}
    for sampler in ("tpe", "random"):
        out = start(tmp_path / sampler, sampler=sampler, space=space, trials=40)
        late = listed(run_search(out))[20:]
        distances[sampler] = sum(abs(rate - 0.7) for rate in late) / len(late)
    assert distances["tpe"] < 0.8 * distances["random"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sampler": "best"}, "--sampler must be one of tpe, random, grid, got 'best'"),
        ({"prune": "often"}, "--prune must be one of median, none"),
        ({"prune": "median", "objectives": ["loss", "ink/r2"]}, "with several objectives"),
        ({"objectives": ["digit/mae"]}, "--objective must be one of"),
    ],
)
def test_a_search_that_cannot_be_done_leaves_no_folder(options, told, tmp_path):
    with pytest.raises(ConfigError) as raised:
        start(tmp_path / "out", **options)
    assert told in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_key_that_does_not_exist_is_told_before_anything_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIED", 2)
    with pytest.raises(ConfigError, match="none of 2 settings drawn from it is valid") as raised:
        start(tmp_path / "out", space={"training.lrr": "1..2"})
    assert "training.lrr" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_tuning_without_validation_figures_is_refused(tmp_path):
    for setting, told in (
        ("data.validation=0", "data.validation must be above 0"),
        ("privacy.sums=withheld", "privacy.sums must not be 'withheld'"),
    ):
        extra = (
            ["privacy.client-level.noise-multiplier=1", "federation.weight-by=uniform"]
            if "privacy" in setting
            else []
        )
        with pytest.raises(ConfigError, match=told):
            start_search(Search(digits(setting, *extra), RATES, sampler="grid"), tmp_path / "out")


def test_two_processes_do_not_search_in_one_folder(tmp_path):
    out = start(tmp_path / "out")
    with locked(out), pytest.raises(CheckpointError, match="in use"):
        run_search(out)


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a b?c#d%41{e}"
    folder.mkdir()
    open_study(folder, [Objective("loss")])
    assert (folder / "tune.sqlite").is_file()


def test_another_folder_is_no_search(tmp_path):
    with pytest.raises(CheckpointError, match="no folder of a tuning"):
        run_search(tmp_path)


def test_a_file_that_is_no_study_is_one_line(tmp_path):
    out = start(tmp_path / "out")
    (out / "tune.sqlite").write_text("not a database" * 100)
    with pytest.raises(CheckpointError, match=r"tune\.sqlite cannot be used"):
        run_search(out)


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = CliRunner().invoke(app, ["tune", "--space", "training.lr=1..2"])
    assert result.exit_code == 2
    assert result.output.strip() == (
        "error: fedmtl tune needs Optuna, which is not installed: pip install 'fedmtl[tune]'"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--resume", "x", "--seeds", "2"], "give only --trials, --jobs or --track"),
        (["--sampler", "grid", "--trials", "3", "--space", "training.epochs=1..2"], "--trials is"),
        ([], "--space must name a setting"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, told):
    result = CliRunner().invoke(app, ["tune", *options])
    assert result.exit_code == 2
    assert told in result.output


class Spy:
    def __init__(self, stops_at):
        self.stops_at, self.reported = stops_at, {}

    def report(self, value, step):
        self.reported[step] = value

    def should_prune(self):
        return max(self.reported) >= self.stops_at


def test_a_pruned_run_ends_at_its_round_and_leaves_what_it_did(tmp_path):
    spy = Spy(stops_at=1)
    with pytest.raises(PrunedError, match="stopped after round"):
        simulate(
            load_experiment("digits", [*QUICK, "federation.rounds=9"]),
            engine="batched",
            out=tmp_path / "run",
            listener=Pruner(spy, Objective("loss")),
        )
    lines = [json.loads(t) for t in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shown = {e["trunk-round"]: e["validation"]["loss"] for e in (x["evaluation"] for x in lines)}
    assert spy.reported == shown
    assert max(spy.reported) == 1
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.tuning.study.STARTUP", 1)
    monkeypatch.setattr("simulations.tuning.study.WARMUP", 0)
    out = tmp_path / "out"
    lr = {"training.lr": "[0.01, 0.0000001]"}
    text = digits("federation.rounds=3")
    start_search(Search(text, lr, sampler="grid", prune="median", trials=2), out)
    good, bad = summarise(run_search(out))["trials"]
    assert (good["state"], bad["state"]) == ("complete", "pruned")
    assert "worse than the median" in bad["reason"]
    assert not bad["values"]


def job_of(tmp_path, settings):
    base = tmp_path / "experiment.toml"
    base.write_text(digits())
    return Job(0, settings, base, tmp_path / "trial", range(2), [Objective("loss")])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"trunk.sharing": '"nonsense"'}, "trunk.sharing"),
        ({"training.lr": "-1.0"}, "training.lr"),
        ({"loss.weighting": "manual", "tasks.ink.weight": "0.5"}, "must be the same in all trials"),
    ],
)
def test_settings_that_cannot_run_are_pruned_with_their_reason(settings, told, tmp_path):
    outcome = do_trial(job_of(tmp_path, settings))
    assert told in outcome.reason
    assert "\n" not in outcome.reason
    assert outcome.values == []


def test_a_trial_that_breaks_is_pruned_without_the_text_of_the_error(tmp_path, monkeypatch):
    def run(*_, **__):
        raise RuntimeError("row 7 is 0.123")

    monkeypatch.setattr(trial_module, "simulate_tracked", run)
    reason = do_trial(job_of(tmp_path, {"trunk.widths": "[8, 4]"})).reason
    assert reason.startswith("it broke with a RuntimeError; to see where: fedmtl simulate ")
    assert reason.endswith("--set 'trunk.widths=[8, 4]'")
    assert "0.123" not in reason


def test_a_disk_that_is_full_ends_the_search_and_prunes_nothing(tmp_path, monkeypatch):
    def run(*_, **__):
        raise CheckpointError("no space left")

    monkeypatch.setattr(trial_module, "simulate_tracked", run)
    with pytest.raises(CheckpointError, match="no space left"):
        do_trial(job_of(tmp_path, {}))


@pytest.mark.usefixtures("trials_made_up")
def test_under_privacy_it_is_told_that_budgets_add_up(tmp_path):
    outcome = write_outcome(run_search(start(tmp_path / "out")))
    assert not any("epsilon" in note for note in notes_of(outcome))
    assert any("their budgets add up" in note for note in notes_of({**outcome, "private": True}))


def test_a_trial_is_read_at_the_round_of_lowest_validation_loss(tmp_path, monkeypatch):
    def run(experiment, *_):
        best = {"validation": {"loss": 1.0 + experiment.seed}}
        return {"best": best, "final": {"validation": {"loss": 7.0}}}

    monkeypatch.setattr(trial_module, "simulate_tracked", run)
    assert do_trial(job_of(tmp_path, {})).values == [[1.0], [2.0]]
    monkeypatch.setattr(
        trial_module, "simulate_tracked", lambda *_, **__: {"best": None, "final": {}}
    )
    assert "no figure" in do_trial(job_of(tmp_path, {})).reason


def test_charts_place_values_on_their_axis():
    axis, places = place(Choice(("[8]", "[16]")), ["[16]", "[8]"])
    assert (axis["ticktext"], places) == (["[8]", "[16]"], [1.0, 0.0])
    assert place(Choice(('"relu"', '"tanh"')), [])[0]["ticktext"] == ["relu", "tanh"]
    assert place(Range(0.1, 1.0, log=True), ["0.5"]) == ({"type": "log"}, [0.5])


def test_a_search_without_any_figure_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "do_trial", lambda job: Outcome(reason="it diverged"))
    with pytest.raises(ConfigError, match="no trial came to a figure, such as: it diverged"):
        write_outcome(run_search(start(tmp_path / "out")))
    assert (tmp_path / "out" / "tune.json").is_file()


@pytest.mark.slow
def test_a_real_search_over_architectures_has_its_files_and_its_page(tmp_path):
    out = tmp_path / "out"
    space = {
        "trunk.widths": "[[8], [8, 4]]",
        "trunk.norm": '["none", "layer"]',
        "trunk.sharing": '["hard", "nonsense"]',
    }
    start_search(Search(digits(), space, sampler="grid", prune="none", trials=8), out)
    tuning = run_search(out)
    outcome = write_outcome(tuning)
    states = [t["state"] for t in outcome["trials"]]
    assert (states.count("complete"), states.count("pruned")) == (4, 4)
    assert all("trunk.sharing" in t["reason"] for t in outcome["trials"] if t["reason"])
    best = outcome["best"]
    (figures,) = read_test(out, best["number"], range(1))
    assert {t: s["mean"] for t, s in best["test"].items()} == figures
    own = best["own-settings"]["digit"]["mean"]
    assert best["gain"]["digit"]["mean"] == pytest.approx(figures["digit"] - own)
    results = simulate(
        load_experiment(str(out / "best.toml")), engine="batched", out=tmp_path / "again"
    )
    again = (results["best"] or results["final"])["validation"]["loss"]
    assert again == pytest.approx(outcome["trials"][best["number"]]["values"]["loss"]["mean"])
    page = write_tuning_page(tuning.experiment, outcome, out).read_text()
    assert page.count("nonsense") >= 4
    assert (page.count(">done<"), page.count(">complete<")) == (4, 0)
    history = history_chart(outcome, outcome["objectives"][0])
    assert history.layout["xaxis"]["dtick"] == 1  # there is no trial 0.5
    assert len(list(slice_charts(outcome, outcome["objectives"][0]))) == 3


CLI = "from simulations.cli import app; app()"


@pytest.mark.slow
def test_a_killed_search_goes_on_and_parallel_trials_are_all_done(tmp_path):
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-c", CLI, "tune"),
        *("digits", "--space", "training.lr=0.01..0.05", "--sampler", "random", "--trials", "5"),
        *(word for setting in QUICK for word in ("--set", setting)),
        *("--jobs", "2", "--out", str(out)),
    ]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("trials/0*/seed-0")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "tune.json").exists()
    result = CliRunner().invoke(app, ["tune", "--resume", str(out), "--jobs", "2", "--json"])
    assert result.exit_code == 0, result.output
    trials = json.loads((out / "tune.json").read_text())["trials"]
    lost = [t for t in trials if t["state"] == "fail"]
    done = [t for t in trials if t["state"] == "complete"]
    assert len(done) == 5
    assert 1 <= len(lost) <= 2
    assert len({t["settings"]["training.lr"] for t in done}) == 5


@pytest.mark.slow
def test_an_interrupted_search_leaves_what_is_done_and_resumes_to_the_same_end(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = [
        *("tune", "digits", "--space", "training.lr=log:0.001..0.05", "--trials", "6"),
        *(word for setting in QUICK for word in ("--set", setting)),
    ]
    assert CliRunner().invoke(app, [*command, "--out", str(whole)]).exit_code == 0
    process = subprocess.Popen(
        [sys.executable, "-c", CLI, *command, "--out", str(out)],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "trials" / "0002").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130, told
    assert f"What is done so far: {out / 'tune.html'}" in told
    assert told.endswith(f"Go on with: fedmtl tune --resume {out}\n")
    left = json.loads((out / "tune.json").read_text())
    assert 2 <= sum(t["state"] == "complete" for t in left["trials"]) < 6
    assert load_experiment(str(out / "best.toml")).training.lr == float(
        left["best"]["settings"]["training.lr"]
    )
    assert "not done" in (out / "tune.html").read_text()
    assert CliRunner().invoke(app, ["tune", "--resume", str(out)]).exit_code == 0
    ended = [json.loads((folder / "tune.json").read_text()) for folder in (out, whole)]
    ours, theirs = (
        [(t["settings"], t["state"], t["values"]) for t in end["trials"] if t["state"] != "fail"]
        for end in ended
    )
    assert ours == theirs
    assert ended[0]["best"]["test"] == ended[1]["best"]["test"]
