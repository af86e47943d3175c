"""`fedmtl privacy`, and the privacy section of a run's report."""

import json
import math
from html import escape

import pytest
from typer.testing import CliRunner

from client.place import Place
from client.privacy_ledger import PrivacyLedger
from common.experiment_file import load_experiment
from common.privacy.accounting import Event, epsilon_of
from common.privacy.assumptions import FLOATING_POINT, assumptions
from common.wire import Instruction
from simulations.cli import app
from simulations.report import write_report
from simulations.run_record import read_run
from simulations.simulate import simulate
from simulations.summary import describe_figures

SETTINGS = [
    "federation.weight-by='uniform'",
    "federation.rounds=3",
    "partition.clients=4",
    "training.epochs=1",
    "trunk.widths=[8]",
]
NOISE = "privacy.client-level.noise-multiplier=2.0"
ROWS = "privacy.example-level.noise-multiplier=2.0"
SAMPLED = [
    "federation.sampling='poisson'",
    "federation.clients-per-round=2",
    "privacy.client-level.amplification=true",
]


def fedmtl(*arguments):
    return CliRunner().invoke(app, ["privacy", *(str(a) for a in arguments)])


def planned(*arguments):
    result = fedmtl("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments):
    result = fedmtl(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def sets(*settings):
    return [part for setting in settings for part in ("--set", setting)]


def test_the_published_mnist_setting_is_planned_from_flags():
    (plan,) = planned(
        "--unit", "example", "--noise-multiplier", 1.1, "--rows", 60000, "--batch-size", 256,
        "--rounds", 60,
    )  # fmt: skip
    assert plan["releases"] == 60 * 235
    assert plan["epsilon"] == pytest.approx(2.6, abs=0.005)


@pytest.mark.parametrize(
    ("flags", "event"),
    [
        (["--clients", 100], (1.0, 20)),
        (["--clients", 100, "--clients-per-round", 10], (1.0, 20)),
        (["--clients", 100, "--clients-per-round", 10, "--amplification"], (0.1, 20)),
        (["--clients", 100, "--rounds", 7], (1.0, 7)),
        (["--unit", "example", "--rows", 100], (0.32, 20 * 4)),
        (["--unit", "example", "--rows", 100, "--epochs", 3], (0.32, 20 * 4 * 3)),
        (["--unit", "example", "--rows", 20], (1.0, 20)),
    ],
)
def test_noise_and_epsilon_are_each_others_inverse(flags, event):
    (found,) = planned(*flags, "--epsilon", 3)
    (back,) = planned(*flags, "--noise-multiplier", found["noise-multiplier"])
    assert (found["sampling"], found["releases"]) == event
    assert 2.99 < found["epsilon"] <= 3.0
    assert back["epsilon"] == pytest.approx(found["epsilon"])
    own = Event(found["noise-multiplier"], *event)
    assert found["epsilon"] == pytest.approx(epsilon_of([own], 1e-5))


def test_the_noise_on_the_trunk_is_that_of_the_mean():
    flags = ["--noise-multiplier", 2, "--max-norm", 3, "--clients", 50, "--clients-per-round", 12]
    (plan,) = planned(*flags, "--parameters", 10000)
    assert plan["noise-per-coordinate"] == pytest.approx(2 * 3 / 12)
    assert plan["noise-norm"] == pytest.approx(2 * 3 / 12 * 100)
    (local,) = planned(*flags, "--parameters", 10000, "--local-noise")
    assert local["noise-norm"] == pytest.approx(2 * 3 / 12 * 100 * math.sqrt(12))
    assert local["epsilon"] == plan["epsilon"]


def test_an_experiment_is_planned_with_its_clients_rows_and_model():
    plans = planned("digits", *sets(*SETTINGS, NOISE, ROWS, "partition.clients=5"))
    assert [plan["unit"] for plan in plans][:2] == ["client", "example"]
    assert plans[0]["divisor"] == 5
    assert {plan["parameters"] for plan in plans} == {64 * 8 + 8}
    assert plans[0]["epsilon"] == pytest.approx(epsilon_of([Event(2.0, 1.0, 3)], 1e-5))


def test_a_plan_is_what_the_run_then_costs(tmp_path):
    settings = [*SETTINGS, *SAMPLED, "privacy.client-level.epsilon=4", ROWS]
    plans = planned("digits", *sets(*settings))
    results = simulate(load_experiment("digits", settings), engine="batched", out=tmp_path / "run")
    spent = results["privacy"]["client"]
    assert spent["epsilon"] == pytest.approx(plans[0]["epsilon"])
    assert spent["noise-multiplier"] == plans[0]["noise-multiplier"]


def test_a_run_that_would_stop_early_is_told():
    result = fedmtl("plan", "digits", *sets(*SETTINGS, NOISE, "privacy.client-level.epsilon=2.5"))
    assert "would cost more than its budget of 2.5" in result.stdout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "needs --epsilon or --noise-multiplier"),
        (["--epsilon", 3], "--unit client needs --clients"),
        (["--epsilon", 3, "--unit", "example"], "needs --rows"),
        (["--epsilon", 3, "--unit", "row"], "--unit must be one of client, example"),
        (["--epsilon", 3, "--clients", 5, "--rows", 3], "--rows is of no use with --unit client"),
        (["--epsilon", 3, "--unit", "example", "--clients", 5], "--clients is of no use"),
        (["--epsilon", -3, "--clients", 5], "--epsilon must be a positive finite number"),
        (["--noise-multiplier", 0, "--clients", 5], "--noise-multiplier must be a positive"),
        (["--epsilon", 3, "--clients", 5, "--delta", 0.3], "--delta must be at most 1/5"),
        (["--epsilon", 3, "--clients", 5, "--delta", 1], "--delta must be between 0 and 1"),
        (["--epsilon", 3, "--unit", "example", "--rows", 5, "--delta", 0.2], "be below 1/5"),
        (["--epsilon", 3, "--clients", 5, "--max-norm", 0], "--max-norm must be a positive"),
        (["--epsilon", 3, "--clients", 5, "--accountant", "gdp"], "--accountant must be one of"),
        (["--epsilon", 3, "--clients", 9, "--amplification", "--local-noise"], "--amplification"),
        (["--epsilon", 3, "--clients", 9, "--set", "seed=1"], "--set and --data are for"),
        (["--epsilon", 1e-9, "--clients", 9, "--delta", 1e-9], "no noise keeps these releases"),
        (["digits", "--epsilon", 3], "--epsilon: an experiment has its own settings"),
        (["digits"], "experiment 'digits' has no budget"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(flags, told):
    assert told in refused("plan", *flags)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("private") / "run"
    settings = [*SETTINGS, NOISE, ROWS, "privacy.client-level.epsilon=50"]
    settings += ["privacy.client-level.quantile=0.5", "privacy.client-level.quantile-noise=2"]
    simulate(load_experiment("digits", settings), engine="batched", out=out)
    return out


def test_a_runs_ledgers_are_shown_by_client(run):
    result = fedmtl("ledger", run, "--json")
    clients = json.loads(result.stdout)
    assert [each["client"] for each in clients] == [f"client-{n:03d}" for n in range(4)]
    assert {each["rounds"] for each in clients} == {3}
    spent = epsilon_of([Event(2.0, 1.0, 3)], 1e-5)
    assert clients[0]["epsilon"]["client"] == pytest.approx(spent)
    shown = fedmtl("ledger", run).stdout
    assert "client-002" in shown
    assert shown.count("update: DP-SGD, clipped, noise on the sum by the server\n") == 1
    assert shown.count("sums: not protected\n") == 1


def test_every_reply_of_one_client_is_shown(run):
    shown = fedmtl("ledger", run, "--client", "client-001").stdout
    assert "client-002" not in shown
    assert shown.count("train") == 3
    assert shown.count("evaluate") == 1


def test_a_nodes_ledger_is_shown_from_its_state_folder(tmp_path):
    settings = load_experiment("digits", [*SETTINGS, NOISE])
    ledger = PrivacyLedger(
        settings, Instruction("{}", round=1, run="ward-run"), Place(), "ward", 100, tmp_path
    )
    ledger.enter("train", 10, 4)
    (told,) = json.loads(fedmtl("ledger", tmp_path, "--json").stdout)
    assert (told["client"], told["run"], told["numbers"]) == ("ward", "ward-run", 10 + 4 + 1)


def test_a_folder_without_ledgers_and_an_unknown_client_are_refused(tmp_path, run):
    assert "has neither ledgers.jsonl" in refused("ledger", tmp_path)
    assert "--client must be one of client-000" in refused("ledger", run, "--client", "nobody")


def test_the_report_shows_epsilon_over_rounds_budget_and_assumptions(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Privacy</h2>" in page
    for told in ("Epsilon, client level", "Epsilon, example level", "Clipping norm"):
        assert told in page
    assert "The dashed line is the budget, 50." in page
    assert "What these figures rest on" in page
    assert escape(FLOATING_POINT) in page


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["privacy.sums=withheld"], "figures stay with the clients"),
        (
            ["privacy.sums=noised", "privacy.sums-noise-multiplier=9", "tasks.ink.metric=mse"],
            "count every client alike: privacy.sums is 'noised'",
        ),
        (["privacy.smallest-group=12"], "sums over fewer than 12 rows stay"),
        ([], ""),
    ],
)
def test_what_became_of_figures_is_said(settings, told):
    said = describe_figures(load_experiment("digits", [*SETTINGS, NOISE, *settings]))
    assert told in said
    assert bool(said) == bool(told)


@pytest.mark.parametrize("rows", [False, True])
def test_the_report_says_that_masks_are_no_noise(tmp_path, rows):
    masks = ["privacy.secure-aggregation.max-norm=1", "federation.rounds=1"] + [ROWS] * rows
    simulate(load_experiment("digits", [*SETTINGS, *masks]), engine="batched", out=tmp_path / "run")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert ("the server saw no single one. No noise was added" in page) == (not rows)


def test_an_unfinished_run_has_its_epsilons_too(run, tmp_path):
    for name in ("experiment.toml", "metrics.jsonl", "environment.json"):
        (tmp_path / name).write_text((run / name).read_text())
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Epsilon, client level" in page
    assert "What these figures rest on" in page


def test_a_run_without_privacy_has_no_such_section(tmp_path):
    simulate(load_experiment("digits", SETTINGS), engine="batched", out=tmp_path / "run")
    assert "<h2>Privacy</h2>" not in write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert all("privacy" not in line for line in read_run(tmp_path / "run").rounds)


def test_the_summary_tells_what_was_spent(tmp_path):
    result = CliRunner().invoke(
        app, ["simulate", "digits", "-q", *sets(*SETTINGS, NOISE), "--out", str(tmp_path / "run")]
    )
    assert "privacy, client level: epsilon" in result.stdout


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ([NOISE], "The server is trusted"),
        ([NOISE, "privacy.client-level.noise='client'"], "No trust in the server is needed"),
        (
            [NOISE, "privacy.client-level.noise='shares'",
             "privacy.secure-aggregation.threshold=0.7"],
            "every client of a round adds its share",
        ),
        ([NOISE, *SAMPLED], "Who was drawn in a round is secret"),
        ([NOISE], "Who takes part in which round is public"),
        ([NOISE, "privacy.client-level.quantile=0.5"], "Andrew et al. 2021"),
        ([NOISE], "losses, metrics and their counts, which are sent as they are"),
        ([NOISE], "how many rows and labels a client has"),
        ([NOISE, "inputs.pixels.standardise='federation'"], "sums and squares of columns"),
        ([ROWS], "differ in one training row of one client"),
        ([ROWS], "Outside the budget: validation and test rows"),
        (
            [NOISE, ROWS, "privacy.sums='noised'", "privacy.sums-noise-multiplier=1",
             "tasks.ink.metric='mse'"],
            "Outside the example level's budget: losses and metrics with noise",
        ),
        ([NOISE], FLOATING_POINT),
    ],
)  # fmt: skip
def test_what_figures_rest_on_is_said_from_the_settings(settings, told):
    found = assumptions(load_experiment("digits", [*SETTINGS, *settings]))
    assert any(told in sentence for sentence in found)


@pytest.mark.parametrize(
    ("settings", "untold"),
    [
        ([NOISE, *SAMPLED], "is public"),
        ([NOISE, "privacy.sums='withheld'"], "losses, metrics"),
        ([NOISE, "privacy.sums='withheld'", "privacy.counts='withheld'"], "how many rows"),
        ([NOISE], "sums and squares of columns"),
        ([ROWS], "The server is trusted"),
    ],
)
def test_nothing_is_said_that_the_settings_exclude(settings, untold):
    found = assumptions(load_experiment("digits", [*SETTINGS, *settings]))
    assert found
    assert not any(untold in sentence for sentence in found)


def test_without_a_budget_there_is_nothing_to_rest_on():
    assert assumptions(load_experiment("digits", SETTINGS)) == []
