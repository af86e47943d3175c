"""Clients that a comparison holds out: none of their rows is seen until they are newcomers."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from common.clients import open_clients
from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from simulations.baselines import read_clients
from simulations.cli import app
from simulations.compare import FEDERATED, compare
from simulations.compare_variants import compare_variants
from simulations.comparison_page import make_page, read_records
from simulations.holdout import Holdout, divide, parse_holdout
from simulations.holdout_figures import fit_newcomers
from simulations.newcomers import ALL
from simulations.newcomers_table import newcomer_cells, newcomer_headings
from simulations.simulate import simulate
from simulations.variants import plan_variants
from tests.kept_models import make_frame, write_federation

QUICK = [
    "federation.rounds=1",
    "training.batch-size=64",
    "partition.clients=4",
    "trunk.widths=[8]",
]
CONTENDERS = ["heads", "fine-tuned", "alone"]


def digits(*settings):
    return load_experiment("digits", [*QUICK, *settings])


def test_a_trace_of_a_held_out_client_goes_with_it():
    trace = ["client,from-round,to-round", "client-001,1,1", "client-002,1,9"]
    experiment = digits(f"federation.availability={trace}")
    rest, _ = divide(experiment, Holdout(names=("client-001",)))
    assert rest.federation.availability == (trace[0], trace[2])
    rest, _ = divide(experiment, Holdout(names=("client-001", "client-002")))
    assert rest.federation.availability == ()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two seeds of four clients, one of them held out."""
    out = tmp_path_factory.mktemp("holdout") / "out"
    return compare(digits(), range(2), out, holdout=parse_holdout("1", "20")), out


# The option --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows", "expected"),
    [
        ("0.25", "", Holdout(share=0.25)),
        ("3", "20,5,all", Holdout(count=3, rows=(5, 20, None))),
        ("a, b", "7", Holdout(names=("a", "b"), rows=(7, None))),
        ("7,", "", Holdout(names=("7",))),
    ],
)
def test_the_option_is_a_share_a_number_or_names(text, rows, expected):
    assert parse_holdout(text, rows) == expected


@pytest.mark.parametrize("text", ["0", "1.5", "-2", "nan", "inf", ",", "1e3"])
def test_other_forms_are_refused(text):
    with pytest.raises(ConfigError, match=r"--holdout-clients must be a share"):
        parse_holdout(text)


@pytest.mark.parametrize("rows", ["0", "x", "5,5", "-1"])
def test_rows_must_be_numbers(rows):
    with pytest.raises(ConfigError, match=r"--holdout-rows"):
        parse_holdout("2", rows)


def test_a_seed_draws_the_same_clients_again_and_another_seed_others():
    names = [f"c{i}" for i in range(30)]
    half = Holdout(share=0.5)
    drawn = [half.draw(names, seed) for seed in range(20)]
    assert drawn == [half.draw(names[::-1], seed)[::-1] for seed in range(20)]
    assert {len(own) for own in drawn} == {15}
    assert len(set(drawn)) == 20
    assert len(Holdout(share=0.001).draw(names, 0)) == 1
    assert Holdout(names=("c7", "c2")).draw(names, 3) == ("c2", "c7")


@pytest.mark.parametrize("held_out", [Holdout(count=4), Holdout(share=0.99), Holdout(names="abcd")])
def test_somebody_must_be_left(held_out):
    with pytest.raises(ConfigError, match=r"at most 3 of 4 can be held out, got 4"):
        held_out.draw(["a", "b", "c", "d"], 0)


def test_unknown_names_and_too_few_clients_are_told_before_anything_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.compare.compare_once", pytest.fail)
    with pytest.raises(ConfigError, match=r"must name clients of the data, got 'me'; there are 4"):
        compare(digits(), [0], tmp_path / "out", holdout=Holdout(names=("me",)))
    few = digits("federation.clients-per-round=4")
    with pytest.raises(ConfigError, match=r"clients-per-round must be at most 3"):
        compare(few, [0], tmp_path / "out", holdout=Holdout(count=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("partition", ["iid", pytest.param("dirichlet", marks=pytest.mark.slow)])
def test_the_rows_and_tasks_of_the_others_stay_as_they_were(partition):
    experiment = digits(
        f"partition.kind={partition}",
        *(["partition.by=digit"] if partition != "iid" else []),
        "partition.task-skew=rotate",
        "partition.tasks-per-client=2",
    )
    rest, held_out = divide(experiment, Holdout(count=2))
    everybody, others = open_clients(experiment), open_clients(rest)
    assert sorted([*held_out, *others.names]) == sorted(everybody.names)
    for name in others.names:
        before, after = everybody.read(name).columns, others.read(name).columns
        assert before.keys() == after.keys()
        assert all((before[key] == after[key]).all() for key in before)


# What a federation sees --------------------------------------------------------------------------


def write_three(folder, third):
    """Write the files of a, b and c; the content of the third is given."""
    folder.mkdir()
    experiment = write_federation(folder, data={"unusable": "leave-out"})
    (folder / "data/c.csv").write_text(third)
    return experiment


@pytest.mark.slow
def test_what_a_held_out_client_holds_changes_nothing_in_any_contender(tmp_path):
    contents = {
        "like-the-others": make_frame(60, 2).to_csv(index=False),
        "enormous": make_frame(60, 3).assign(w=1e30, x0=-1e30, town="abroad").to_csv(index=False),
        "no-table": "nothing\n",
    }
    found = {}
    for name, third in contents.items():
        experiment = write_three(tmp_path / name, third)
        out = tmp_path / name / "out"
        found[name] = compare(experiment, [0], out, holdout=Holdout(names=("c",)))
        run = out / "seed-0/joint"
        results = json.loads((run / "results.json").read_text())
        checkpoint = json.loads((run / "checkpoint/checkpoint.json").read_text())
        assert list(results["clients"]) == ["a", "b"]
        assert results["warnings"] == []
        rest, _ = divide(experiment, Holdout(names=("c",)))
        _, agreement = read_clients(rest)
        assert json.loads(checkpoint["agreement"]) == json.loads(agreement.to_json())
        assert "abroad" not in checkpoint["agreement"]
    first, *others = ({**c, "contenders": dict(c["contenders"])} for c in found.values())
    for other in others:
        assert repr(other["contenders"]) == repr(first["contenders"])
    trunks = {name: c["newcomers"]["trunks"][FEDERATED] for name, c in found.items()}
    assert trunks["like-the-others"]["left-out"] == {"0": {}}
    assert trunks["like-the-others"]["rows"][ALL]["clients"] == [1]
    for name, reason in [("enormous", "category"), ("no-table", "no rows")]:
        assert reason in trunks[name]["left-out"]["0"]["c"]
        assert trunks[name]["rows"][ALL]["clients"] == [0]
        heads = trunks[name]["rows"][ALL]["contenders"]["heads"]
        assert math.isnan(heads["tasks"]["size"]["mean"])


def test_no_message_goes_to_a_held_out_client_and_none_comes(tmp_path, monkeypatch):
    from simulations.loopback import LoopbackGrid

    asked = []
    make = LoopbackGrid.__init__

    def note(self, app, names, *rest):
        asked.append(tuple(names))
        make(self, app, names, *rest)

    monkeypatch.setattr(LoopbackGrid, "__init__", note)
    compare(digits(), [0], tmp_path / "out", holdout=Holdout(names=("client-002",)))
    assert asked
    assert set(asked) == {("client-000", "client-001", "client-003")}


# The figures -------------------------------------------------------------------------------------


def test_the_newcomers_are_beside_the_contenders(compared):
    comparison, out = compared
    assert json.loads((out / "comparison.json").read_text())["newcomers"].keys() == {
        "contenders",
        "trunks",
    }
    (trunk,) = comparison["newcomers"]["trunks"]
    summary = comparison["newcomers"]["trunks"][trunk]
    assert trunk == FEDERATED
    assert list(summary["rows"]) == ["20", ALL]
    assert {len(names) for names in summary["clients"].values()} == {1}
    for own in summary["rows"].values():
        assert own["clients"] == [1, 1]
        assert list(own["contenders"]) == CONTENDERS
        assert own["contenders"]["alone"]["delta-m"]["mean"] == 0
        for figures in own["contenders"].values():
            assert len(figures["tasks"]["digit"]["seeds"]) == 2
    assert summary["fits"] == 2 * 2  # seeds, numbers of rows
    assert "newcomers" in json.loads((out / "seed-1/comparison.json").read_text())


def test_a_newcomers_figures_are_those_of_personalising_it(compared):
    comparison, out = compared
    summary = comparison["newcomers"]["trunks"][FEDERATED]
    (name,) = summary["clients"]["0"]
    result = CliRunner().invoke(
        app,
        ["personalize", str(out / "seed-0/joint"), "--client", name, "--rows", "20", "--json"],
    )
    lines = json.loads(result.stdout)["results"]
    for line in lines:
        figures = summary["rows"]["20"]["contenders"][line["contender"]]["tasks"]
        for task, metric in comparison["metrics"].items():
            assert line["tasks"][task][metric] == pytest.approx(figures[task]["seeds"][0])


def test_terminal_and_page_show_a_line_per_contender_and_number_of_rows(compared):
    comparison, out = compared
    lines = list(newcomer_cells(comparison))
    assert [names[0] for names, _ in lines] == ["20"] * 3 + [ALL] * 3
    assert newcomer_headings(comparison) == ["rows", "fitted"]
    page = make_page(digits(), comparison, read_records(comparison, out))
    assert "<h2>Newcomers</h2>" in page
    for (_, line), cells in lines:
        assert line in page
        assert cells[0][0] in page


def test_every_variant_has_a_line(tmp_path):
    plan = plan_variants("digits", ["training.lr=0.01,0.02"], QUICK, with_yardstick=False)
    comparison = compare_variants(
        plan, range(1), tmp_path / "out", holdout=parse_holdout("0.5", "10,5000")
    )
    trunks = comparison["newcomers"]["trunks"]
    assert list(trunks) == ["training.lr=0.01", "training.lr=0.02"]
    held_out = [own["clients"] for own in trunks.values()]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]["0"]) == 2
    lines = list(newcomer_cells(comparison))
    assert [names for names, _ in lines] == [
        [rows, lr] for rows in ("10", "5000", ALL) for lr in ("0.01", "0.02")
    ]
    assert [cells[0][0] == "-" for _, cells in lines] == [False] * 2 + [True] * 2 + [False] * 2
    for name in trunks:
        folder = comparison["contenders"][name]["folder"]
        results = json.loads((tmp_path / "out/seed-0" / folder / "results.json").read_text())
        assert not set(results["clients"]) & set(held_out[0]["0"])


def test_yardsticks_leave_the_held_out_clients_out_too(tmp_path):
    plan = plan_variants("digits", ["training.lr=0.01"], QUICK)
    held_out = Holdout(names=("client-001",))
    with_rest = compare_variants(plan, [0], tmp_path / "held-out", holdout=held_out)
    rest = ["client-000", "client-002", "client-003"]
    plan = plan_variants("digits", ["training.lr=0.01"], [*QUICK, f"data.clients={rest}"])
    alone = compare_variants(plan, [0], tmp_path / "rest")
    for name, contender in alone["contenders"].items():
        assert with_rest["contenders"][name]["tasks"] == contender["tasks"]


def test_without_the_option_nothing_is_said_of_newcomers(tmp_path):
    comparison = compare(digits(), [0], tmp_path / "out")
    assert "newcomers" not in comparison
    assert list(newcomer_cells(comparison)) == []
    page = make_page(digits(), comparison, read_records(comparison, tmp_path / "out"))
    assert "Newcomers" not in page


def test_a_trunk_without_layers_has_no_newcomers(tmp_path):
    experiment = digits("trunk.widths=[]")
    with pytest.raises(ConfigError, match=r"--holdout-clients needs a trunk"):
        compare(experiment, [0], tmp_path / "out", holdout=Holdout(count=1))


def test_rows_without_clients_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare", "digits", "--holdout-rows", "5"])
    assert result.exit_code == 2
    assert "--holdout-rows needs --holdout-clients" in result.stderr


def write_subspace(folder, clients=14, rows=120, wide=20, narrow=2):
    """Write clients whose targets follow from the same two directions, each in its own way."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(wide, narrow))
    for number in range(clients):
        x = rng.normal(size=(rows, wide))
        y = x @ directions @ rng.normal(size=narrow) + 0.1 * rng.normal(size=rows)
        columns = {f"x{i}": x[:, i] for i in range(wide)}
        pd.DataFrame({**columns, "y": y}).to_csv(folder / f"c{number}.csv", index=False)


@pytest.mark.slow
def test_few_rows_are_enough_on_a_trunk_that_found_what_clients_share(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_subspace(data)
    experiment = Experiment.model_validate(
        {
            "name": "subspace",
            "data": {"source": "folder", "path": str(data)},
            "inputs": {"x": {"columns": ["x*"]}},
            "tasks": {"y": {"kind": "regression", "metric": "r2"}},
            "trunk": {"widths": [2], "activation": "none"},
            "training": {"optimiser": "adam", "lr": 0.01, "epochs": 2, "device": "cpu"},
            "federation": {"rounds": 150},
        }
    )
    rest, held_out = divide(experiment, Holdout(count=2))
    simulate(rest, engine="batched", out=tmp_path / "run")
    found = fit_newcomers(rest, tmp_path / "run", held_out, Holdout(rows=(6, None)))
    few, whole = found.figures["6"], found.figures[ALL]
    # Six rows cannot tell twenty weights; they can tell two.
    assert few["heads"]["y"] > 0.99 > 0.5 > few["alone"]["y"]
    assert few["heads"]["y"] > few["fine-tuned"]["y"] > few["alone"]["y"]
    assert min(whole["alone"]["y"], whole["heads"]["y"]) > 0.99
