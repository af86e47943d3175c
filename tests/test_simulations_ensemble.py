"""`fedmtl ensemble`: which rows it is judged on, what it averages, and what it refuses."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import tensor
from typer.testing import CliRunner

from client.prediction import predict, predict_together
from common.clients import open_clients
from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from common.model import build_model
from common.sections.rows import Task
from common.splits import split_rows
from common.tables import ClientTable
from simulations.cli import app
from simulations.ensembles.ensemble import make_ensemble
from simulations.ensembles.figures import judge, sign_of, weigh
from simulations.ensembles.members import open_member, open_snapshot_members
from simulations.ensembles.rows import share_rows
from simulations.ensembles.votes import Ballot, Poll, average_models, poll_clients, poll_runs
from simulations.simulate import simulate
from tests.kept_models import TASKS, make_experiment, make_frame, write_federation

CPU = torch.device("cpu")


def train(experiment: Experiment, out, engine="batched", **changes):
    given = {**experiment.model_dump(mode="json", by_alias=True), **changes}
    simulate(Experiment.model_validate(given), engine=engine, out=out)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of one split by seeds of their own, and one, `other`, that splits by its seed."""
    folder = tmp_path_factory.mktemp("ensemble")
    experiment = write_federation(folder, data={"seed": 7})
    made = {f"run-{seed}": train(experiment, folder / f"run-{seed}", seed=seed) for seed in (0, 1)}
    data = {**experiment.model_dump(mode="json", by_alias=True)["data"], "seed": None}
    return {**made, "other": train(experiment, folder / "other", seed=5, data=data)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two runs whose rows are dealt to three clients and split by unlike seeds."""
    folder = tmp_path_factory.mktemp("digits")
    settings = ["partition.clients=3", "federation.rounds=1", "training.epochs=1"]
    return [
        train(load_experiment("digits", settings, seed=seed), folder / f"digits-{seed}")
        for seed in (0, 1)
    ]


@pytest.fixture
def fedmtl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def error_of(result):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def final_figures(run):
    return json.loads((run / "results.json").read_text())["final"]


def test_no_member_has_trained_on_a_row_that_the_ensemble_is_tested_on(runs):
    members = [open_member(runs[name]) for name in ("run-0", "other")]
    shared = share_rows(members)
    splits = [
        {
            client: split_rows(open_clients(member.experiment).read(client), member.experiment)
            for client in "ab"
        }
        for member in members
    ]
    for client in "ab":
        tested, judged = (set(shared.numbers[s][client]) for s in ("test", "validation"))
        assert tested == set.intersection(*(set(own[client]["test"]) for own in splits))
        for own in splits:
            assert not tested & {*own[client]["train"], *own[client]["validation"]}
            assert not judged & {*own[client]["train"], *own[client]["test"]}
    # A test that kept all test rows of the first run would have leaked: some are trained on.
    leaked = [set(splits[0][c]["test"]) & set(splits[1][c]["train"]) for c in "ab"]
    assert any(leaked)
    assert 0 < shared.count("test") < min(shared.held["test"]) == 24


def test_rows_are_told_apart_by_pixels_however_they_were_dealt(digits):
    members = [open_member(folder) for folder in digits]
    shared = share_rows(members)
    trained = [
        {
            image.tobytes()
            for name, own in member.clients.items()
            for image in member.table(name).columns["pixels"][own.splits["train"]]
        }
        for member in members
    ]
    assert 10 < shared.count("test") < 100  # of 360: a third of a fifth
    for client, numbers in shared.numbers["test"].items():
        found = [
            member.table(client).columns["pixels"][np.searchsorted(member.numbers[client], numbers)]
            for member in members
        ]
        np.testing.assert_array_equal(*found)
        for images in trained:
            assert not images & {image.tobytes() for image in found[0]}


def test_the_figures_say_how_many_rows_are_left(digits):
    figures = make_ensemble(digits)
    left = figures["rows"]["test"]["shared"]
    assert figures["tasks"]["digit"]["test"]["rows"] == left
    assert any(
        f"only {left} test rows of the 360 that each run has" in note for note in figures["notes"]
    )


def test_every_member_scores_what_its_run_measured(runs):
    folders = [runs["run-0"], runs["run-1"]]
    figures = make_ensemble(folders)
    assert list(figures["tasks"]) == list(TASKS)
    assert not [note for note in figures["notes"] if note.startswith("only")]
    for folder in folders:
        for split in ("validation", "test"):
            for task, measured in final_figures(folder)[split]["tasks"].items():
                found, metric = figures["tasks"][task], figures["tasks"][task]["metric"]
                assert found["members"][str(folder)][split] == pytest.approx(
                    measured[metric], rel=1e-4
                ), task
                assert found[split]["rows"] == measured["examples"]
    for found in figures["tasks"].values():
        alone = [member["test"] for member in found["members"].values()]
        assert found["test"]["mean"] == pytest.approx(sum(alone) / 2)


def test_the_heads_of_every_client_vote_on_every_row(runs):
    member = open_member(runs["run-0"])
    rows = share_rows([member])
    polls = poll_clients(member, rows)
    assert polls["kind"].members == ("a",)  # b does not hold the task
    poll = polls["place"]
    assert poll.members == ("a", "b")
    table = member.table("a")
    numbers = rows.numbers["test"]["a"]
    told = predict(
        member.model("b"),
        ClientTable("a", {k: v[numbers] for k, v in table.columns.items()}),
        CPU,
    )
    (ballot,) = [b for b in poll.ballots["test"] if b.client == "a"]
    np.testing.assert_allclose(ballot.votes[1][:, 0], told.columns["predicted.place.p1"], rtol=1e-5)
    assert not torch.allclose(ballot.votes[0], ballot.votes[1])


def test_over_clients_own_is_what_the_run_measured(runs):
    figures = make_ensemble([runs["run-0"]], by="clients")
    measured = final_figures(runs["run-0"])["test"]["tasks"]
    for task, found in figures["tasks"].items():
        assert found["test"]["own"] == pytest.approx(measured[task][found["metric"]], rel=1e-4)
    assert any("heads stay with their clients" in note for note in figures["notes"])


def test_runs_vote_with_the_heads_of_the_rows_own_client(runs):
    members = [open_member(runs[name]) for name in ("run-0", "run-1")]
    rows = share_rows(members)
    (ballot,) = [b for b in poll_runs(members, rows)["place"].ballots["test"] if b.client == "b"]
    for vote, member in zip(ballot.votes, members, strict=True):
        numbers = rows.numbers["test"]["b"]
        columns = {k: v[numbers] for k, v in member.table("b").columns.items()}
        told = predict(member.model("b"), ClientTable("b", columns), CPU)
        np.testing.assert_allclose(vote[:, 1], told.columns["predicted.place.p2"], rtol=1e-5)


def one_ballot(target, votes):
    ballot = Ballot("a", target, tensor(votes).double())
    names = tuple("abc"[: len(votes)])
    return Poll(names, {"validation": [ballot], "test": [ballot]})


def test_probabilities_are_averaged_and_not_decisions():
    # Two of three members say 0, narrowly; the mean of 0.4, 0.4 and 0.9 says 1.
    poll = one_ballot(tensor([1]), [[0.4], [0.4], [0.9]])
    found = judge("t", Task(kind="binary"), poll, "equal", by_clients=False)["test"]
    assert (found["mean"], found["ensemble"]) == (pytest.approx(1 / 3), 1.0)
    assert found["gain"] == pytest.approx(2 / 3)
    assert (found["best"], found["best-member"], found["gain-over-best"]) == (1.0, "c", 0.0)


def test_classes_are_chosen_by_the_mean_of_probabilities():
    votes = [[[0.5, 0.4, 0.1]], [[0.0, 0.4, 0.6]]]  # 0 and 2; the mean says 1
    found = judge(
        "t", Task(kind="multiclass", classes=3), one_ballot(tensor([1]), votes), "equal",
        by_clients=False,
    )  # fmt: skip
    assert (found["test"]["mean"], found["test"]["ensemble"]) == (0.0, 1.0)


def test_a_lower_error_is_a_gain():
    poll = one_ballot(tensor([[0.0], [0.0]]), [[[1.0], [1.0]], [[-3.0], [-3.0]]])
    found = judge("t", Task(kind="regression"), poll, "equal", by_clients=False)["test"]
    assert (found["mean"], found["ensemble"], found["best"]) == (2.0, 1.0, 1.0)
    assert (found["gain"], found["gain-over-best"]) == (1.0, 0.0)


def test_values_are_averaged_in_the_targets_own_unit():
    # Costs 1 and 3 average to 2, and log(1 + 2) is the target; their logarithms would not.
    target = tensor([[np.log(3.0)]])
    poll = one_ballot(target, [[[1.0]], [[3.0]]])
    task = Task(kind="regression", transform="log1p")
    assert judge("t", task, poll, "equal", by_clients=False)["test"]["ensemble"] == pytest.approx(
        0.0, abs=1e-9
    )


def test_members_weigh_by_the_inverse_of_their_validation_losses():
    poll = one_ballot(tensor([[0.0]]), [[[1.0]], [[2.0]]])  # squared errors 1 and 4
    weights = weigh("t", Task(kind="regression"), poll, "validation")
    np.testing.assert_allclose(weights, [0.8, 0.2])
    found = judge("t", Task(kind="regression"), poll, "validation", by_clients=False)
    assert found["test"]["ensemble"] == pytest.approx(1.2)
    assert found["members"]["a"]["weight"] == pytest.approx(0.8)


def test_a_member_that_diverged_has_no_weight():
    poll = one_ballot(tensor([[0.0]]), [[[1.0]], [[float("nan")]]])
    found = judge("t", Task(kind="regression"), poll, "validation", by_clients=False)
    assert found["test"]["ensemble"] == 1.0


def test_weights_need_validation_rows():
    ballot = Ballot("a", tensor([1]), tensor([[0.5], [0.5]]))
    with pytest.raises(ConfigError, match="got 0 with a label of task 'size'"):
        weigh(
            "size", Task(kind="binary"), Poll(("a", "b"), {"validation": [], "test": [ballot]}),
            "validation",
        )  # fmt: skip


def test_one_data_seed_holds_rows_fixed_while_the_model_changes():
    fixed = [load_experiment("digits", ["data.seed=3"], seed=seed) for seed in (0, 1)]
    tables = [open_clients(experiment).read("client-004") for experiment in fixed]
    np.testing.assert_array_equal(*[own.columns["pixels"] for own in tables])
    splits = [split_rows(own, e)["test"] for own, e in zip(tables, fixed, strict=True)]
    np.testing.assert_array_equal(*splits)
    shapes = {"pixels": (1, 8, 8)}
    first, second = (next(build_model(e, shapes).parameters()) for e in fixed)
    assert not torch.equal(first, second)
    alone = load_experiment("digits", seed=3)
    np.testing.assert_array_equal(
        open_clients(alone).read("client-004").columns["pixels"], tables[0].columns["pixels"]
    )


def test_a_data_seed_that_draws_nothing_is_refused():
    settings = ["data.seed=1", "data.validation=0", "data.test=0"]
    with pytest.raises(ConfigError, match=r"data.seed must be left out, got 1"):
        load_experiment("school", settings)


def test_the_command_writes_what_it_prints(fedmtl, runs, tmp_path):
    result = fedmtl("ensemble", runs["run-0"], runs["run-1"], "--out", "made", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert json.loads((tmp_path / "made" / "ensemble.json").read_text()) == figures
    assert [run["seed"] for run in figures["runs"]] == [0, 1]
    table = fedmtl("ensemble", runs["run-0"], runs["run-1"], "--weights", "validation").stdout
    assert "ensemble over runs" in table
    assert "by the inverse of their validation losses" in " ".join(table.split())


def test_what_cannot_vote_is_refused_in_a_line(fedmtl, runs, digits, tmp_path):
    one, two = runs["run-0"], runs["run-1"]
    assert "two runs or more, got 1; train another" in error_of(fedmtl("ensemble", one))
    assert "one run, got 2 runs" in error_of(fedmtl("ensemble", one, two, "--by", "snapshots"))
    assert "no snapshot of another round" in error_of(fedmtl("ensemble", one, "--by", "snapshots"))
    assert "one run, got 2 runs" in error_of(fedmtl("ensemble", one, two, "--by", "clients"))
    assert "--by must be one of" in error_of(fedmtl("ensemble", one, two, "--by", "rounds"))
    assert "--weights must be one of" in error_of(fedmtl("ensemble", one, two, "--weights", "x"))
    assert "the same settings, seed and round" in error_of(fedmtl("ensemble", one, one))
    assert "got data.source 'digits'" in error_of(fedmtl("ensemble", one, digits[0]))
    assert "no run folder" in error_of(fedmtl("ensemble", one, tmp_path))


def test_runs_of_other_tasks_or_partitions_are_refused(fedmtl, runs, digits, tmp_path):
    copy = shutil.copytree(runs["run-1"], tmp_path / "other-metric")
    experiment = load_experiment(str(copy / "experiment.toml"), ["tasks.place.metric=rmse"])
    retrained = train(experiment, tmp_path / "retrained")
    assert "got tasks.place.metric 'rmse'" in error_of(fedmtl("ensemble", runs["run-0"], retrained))
    settings = ["partition.clients=4", "federation.rounds=1", "training.epochs=1"]
    dealt = train(load_experiment("digits", settings), tmp_path / "dealt")
    assert "got partition.clients '4'" in error_of(fedmtl("ensemble", digits[0], dealt))


def test_runs_without_shared_test_rows_heads_or_an_end_are_refused(fedmtl, runs, tmp_path):
    copy = shutil.copytree(runs["run-1"], tmp_path / "cut")
    (copy / "results.json").unlink()
    assert "must be a finished run" in error_of(fedmtl("ensemble", runs["run-0"], copy))
    (copy / "results.json").write_text("{}")
    manifest = copy / "checkpoint" / "checkpoint.json"
    content = json.loads(manifest.read_text())
    content["files"] = {k: v for k, v in content["files"].items() if "clients" not in k}
    manifest.write_text(json.dumps(content))
    assert "holds no client's heads" in error_of(fedmtl("ensemble", runs["run-0"], copy))
    settings = ["data.test=0"]
    experiment = load_experiment(str(runs["run-0"] / "experiment.toml"), settings)
    untested = train(experiment, tmp_path / "untested")
    assert "with test rows, got none in" in error_of(fedmtl("ensemble", runs["run-0"], untested))


def test_predict_averages_over_run_folders(fedmtl, runs, tmp_path):
    make_frame(20, 0).to_csv(tmp_path / "new.csv", index=False)
    for name, folders in {
        "both": [runs["run-0"], runs["run-1"]], "0": [runs["run-0"]], "1": [runs["run-1"]],
    }.items():  # fmt: skip
        result = fedmtl(
            "predict", *folders, "--client", "a", "--rows", "new.csv", "--out", f"{name}.csv"
        )
        assert result.exit_code == 0, result.output
    both, first, second = (pd.read_csv(tmp_path / f"{n}.csv") for n in ("both", "0", "1"))
    for column in ("cost", "place.p1", "flag.probability", "kind.probability.mid"):
        column = f"predicted.{column}"
        assert not np.allclose(first[column], second[column])
        np.testing.assert_allclose(both[column], (first[column] + second[column]) / 2, rtol=1e-4)
    decided = (both["predicted.flag.probability"] > 0.5).astype(int)
    assert (both["predicted.flag"] == decided).all()
    classes = [f"predicted.kind.probability.{name}" for name in ("low", "mid", "high")]
    likeliest = both[classes].idxmax(axis=1).str.removeprefix("predicted.kind.probability.")
    assert (both["predicted.kind"] == likeliest).all()


@pytest.fixture(scope="module")
def kept_rounds(tmp_path_factory):
    """A run of four rounds that kept the second and third."""
    folder = tmp_path_factory.mktemp("snapshots")
    settings = {"rounds": 4, "snapshot-every": 1, "snapshots": 3}
    return train(write_federation(folder), folder / "run", federation=settings)


def test_a_snapshot_is_the_run_that_ended_there(kept_rounds, tmp_path):
    experiment = load_experiment(str(kept_rounds / "experiment.toml"))
    short = train(experiment, tmp_path / "short", federation={"rounds": 3})
    snapshots = open_snapshot_members(kept_rounds)
    assert [member.name for member in snapshots] == ["round 2", "round 3", "round 4"]
    ended = open_member(short)
    for client in "ab":
        one, other = snapshots[1].model(client), ended.model(client)
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])


def test_snapshots_vote_beside_their_last_and_their_mean(kept_rounds):
    figures = make_ensemble([kept_rounds], by="snapshots")
    measured = final_figures(kept_rounds)["test"]["tasks"]
    members = open_snapshot_members(kept_rounds)
    polls = poll_runs(members, share_rows(members))
    for task, found in figures["tasks"].items():
        told, metric = found["test"], found["metric"]
        assert list(found["members"]) == ["round 2", "round 3", "round 4"]
        assert told["last"] == found["members"]["round 4"]["test"]
        assert told["last"] == pytest.approx(measured[task][metric], rel=1e-4)
        settings = members[0].experiment.tasks[task]
        plain = judge(task, settings, polls[task], "equal", by_clients=False)
        assert told["ensemble"] == plain["test"]["ensemble"]
        gain = sign_of(settings) * (told["ensemble"] - told["last"])
        assert told["gain-over-last"] == pytest.approx(gain)


def test_the_one_model_has_the_mean_of_all_parameters(kept_rounds):
    models = [member.model("a") for member in open_snapshot_members(kept_rounds)]
    mean = average_models(models)
    for name, array in mean.arrays.items():
        stack = np.stack([model.arrays[name] for model in models])
        np.testing.assert_allclose(array, stack.mean(0), rtol=1e-5, atol=1e-7)
        assert array.dtype == models[0].arrays[name].dtype
    assert any(not np.allclose(mean.arrays[n], models[-1].arrays[n]) for n in mean.arrays)


def test_predict_averages_over_snapshots(fedmtl, kept_rounds, tmp_path):
    make_frame(20, 0).to_csv(tmp_path / "new.csv", index=False)
    command = ["predict", kept_rounds, "--client", "a", "--rows", "new.csv", "--snapshots"]
    result = fedmtl(*command, "--out", "out.csv")
    assert result.exit_code == 0, result.output
    models = [member.model("a") for member in open_snapshot_members(kept_rounds)]
    frame = make_frame(20, 0)
    table = ClientTable("a", {name: frame[name].to_numpy() for name in frame})
    told = predict_together(models, table, CPU).columns["predicted.place.p1"]
    written = pd.read_csv(tmp_path / "out.csv")["predicted.place.p1"]
    np.testing.assert_allclose(written, told, rtol=1e-4)


def test_predict_refuses_to_average_a_model_with_itself(fedmtl, runs):
    one = runs["run-0"]
    assert "name each folder once" in error_of(
        fedmtl("predict", one, one, "--client", "a", "--rows", "x.csv", "--out", "out.csv")
    )


def test_predict_refuses_models_of_other_tasks(runs):
    model = open_member(runs["run-0"]).model("a")
    tasks = {**TASKS, "place": {"kind": "regression", "target": ["p2", "p1"]}}
    turned = dataclasses.replace(model, experiment=make_experiment(tasks=tasks))
    table = ClientTable("a", open_member(runs["run-0"]).table("a").columns)
    with pytest.raises(ConfigError, match=r"same tasks, got tasks\.place"):
        predict_together([model, turned], table, CPU)


def test_runs_that_share_no_test_row_are_refused(fedmtl, digits, tmp_path):
    settings = ["partition.clients=3", "federation.rounds=1", "data.test=0.001", "data.seed=9"]
    few = train(load_experiment("digits", settings, seed=9), tmp_path / "few")
    told = error_of(fedmtl("ensemble", digits[0], few))
    assert "got 0 shared of 360, 3 test rows" in told
    assert "seed 0, 9: train runs that have one data.seed" in told


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from typer.testing import CliRunner; from simulations.cli import app; "
        "result = CliRunner().invoke(app, ['ensemble', '--help']); assert not result.exit_code; "
        "print(*{'torch', 'flwr', 'pandas', 'pydantic', 'numpy', 'onnx'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_clients_that_took_part_in_no_round_have_no_say(tmp_path):
    settings = ["partition.clients=4", "federation.clients-per-round=2", "federation.rounds=1"]
    settings += ["data.seed=0"]
    folders = [
        train(load_experiment("digits", settings, seed=seed), tmp_path / f"part-{seed}")
        for seed in (0, 1)
    ]
    members = [open_member(folder) for folder in folders]
    assert [len(member.without_heads) for member in members] == [2, 2]
    both = set(members[0].clients) & set(members[1].clients)
    figures = make_ensemble(folders)
    assert figures["rows"]["test"]["shared"] == 90 * len(both) > 0
    assert f"2 clients of {folders[0]} took part in no round, and have no say" in figures["notes"]
