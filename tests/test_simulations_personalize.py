"""`fedmtl personalize`: what it says, what it leaves behind, and what it refuses."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from client.kept_model import open_kept
from common.clients import open_clients
from common.preparation import prepare
from common.wire import FloatArray
from simulations.cli import app
from simulations.kept_trunk import open_trunk
from simulations.simulate import simulate
from tests.kept_models import TASKS, make_frame, write_federation

NEWCOMERS = {"c": 2, "d": 3}


def write_newcomers(data):
    for name, seed in NEWCOMERS.items():
        make_frame(80, seed).to_csv(data / f"{name}.csv", index=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of two clients; two others came into its folder of data since."""
    folder = tmp_path_factory.mktemp("personalise")
    simulate(write_federation(folder), engine="loopback", out=folder / "run")
    write_newcomers(folder / "data")
    return folder / "run"


@pytest.fixture
def fedmtl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def done(result):
    assert result.exit_code == 0, result.output
    return result


def error_of(result):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def trunk_on_disk(folder) -> dict[str, FloatArray]:
    (path,) = (folder / "checkpoint").glob("trunk-*.safetensors")
    return load_file(path)


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from typer.testing import CliRunner; from simulations.cli import app; "
        "result = CliRunner().invoke(app, ['personalize', '--help']); assert not result.exit_code; "
        "print(*{'torch', 'flwr', 'pandas', 'pydantic', 'numpy', 'onnx'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_a_table_by_numbers_of_rows_and_nothing_is_written(fedmtl, run, tmp_path):
    before = contents(run)
    figures = json.loads(
        done(
            fedmtl("personalize", run, "--client", "c", "--rows", "4,all", "--epochs", 3, "--json")
        ).stdout
    )
    assert contents(run) == before
    assert list(tmp_path.iterdir()) == []
    asked = [(line["rows"], line["contender"]) for line in figures["results"]]
    train = figures["rows"]["train"]
    contenders = ["heads", "fine-tuned", "alone"]
    assert asked == [(n, c) for n in (4, train) for c in contenders]
    assert (figures["client"], figures["epochs"], figures["patience"]) == ("c", 3, None)
    for line in figures["results"]:
        assert set(line["tasks"]) <= set(TASKS)
        assert all(count <= line["rows"] for count in line["labelled"].values())
        assert 1 <= line["epochs"] <= line["epochs-done"] == line["epochs-limit"]
    # 52 rows make 7 steps of 8 an epoch, 4 rows make one.
    assert [line["epochs-limit"] for line in figures["results"]] == [21] * 3 + [3] * 3
    assert train == 52


def test_the_table_says_how_the_contenders_were_made_comparable(fedmtl, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = done(fedmtl("personalize", run, "--client", "c", "--epochs", 2)).stdout
    words = " ".join(told.split())
    for part in (
        "newcomer 'c'",
        "heads, trunk frozen",
        "heads and trunk from it",
        "all from scratch",
        "All contenders alike: the same rows, batches and settings, at most 2 epochs",
        "lowest loss on the client's 12 validation rows",
        "after round 2",
    ):
        assert part in words


def test_the_kept_model_is_the_runs_trunk_and_predicts_what_was_measured(fedmtl, run, tmp_path):
    figures = json.loads(
        done(
            fedmtl(
                "personalize", run, "--client", "c", "--rows", "20,all,9", "--epochs", 8,
                "--json", "--out", "mine",
            )
        ).stdout
    )  # fmt: skip
    assert json.loads((tmp_path / "mine/personalized.json").read_text()) == figures
    trunk, kept = trunk_on_disk(run), open_kept(tmp_path / "mine")
    for name, array in trunk.items():
        assert kept.arrays[name].tobytes() == array.tobytes()
    assert kept.tasks == tuple(figures["metrics"])

    experiment = open_trunk(run).experiment
    table = open_clients(experiment).read("c")
    test = prepare(table, experiment).splits["test"]
    frame = make_frame(80, NEWCOMERS["c"]).iloc[test]
    frame.to_csv("test.csv", index=False)
    done(fedmtl("predict", "mine", "--rows", "test.csv", "--out", "predicted.csv"))
    predicted = pd.read_csv("predicted.csv")
    (line,) = (
        x
        for x in figures["results"]
        if x["rows"] == figures["rows"]["train"] and x["contender"] == "heads"
    )
    hits = (predicted["predicted.kind"] == predicted["kind"]).mean()
    assert line["tasks"]["kind"]["accuracy"] == pytest.approx(hits)
    errors = (predicted["predicted.size"] - predicted["size"]).dropna()
    assert line["tasks"]["size"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-4)


def test_a_newcomer_is_encoded_by_what_the_runs_clients_agreed_on(fedmtl, run, tmp_path):
    done(fedmtl("personalize", run, "--client", "c", "--epochs", 1, "--out", "mine"))
    kept, checkpoint = open_kept(tmp_path / "mine"), run / "checkpoint/checkpoint.json"
    agreed = json.loads(json.loads(checkpoint.read_text())["agreement"])
    assert json.loads(kept.agreement.to_json()) == agreed
    experiment = open_trunk(run).experiment
    source = open_clients(experiment)
    w = []
    for name in "ab":
        prepared = prepare(source.read(name), experiment)
        w.append(prepared.train(prepared.inputs["w"].values))
    assert agreed["scalings"]["w"]["mean"] == [pytest.approx(np.nanmean(np.concatenate(w)))]


def test_the_test_rows_do_not_depend_on_the_seed_but_the_heads_do(fedmtl, run):
    def figures(*more):
        arguments = ("--client", "c", "--rows", "10", "--epochs", 2, "--json", *more)
        return json.loads(done(fedmtl("personalize", run, *arguments)).stdout)

    first, again, other = figures(), figures("--seed", "0"), figures("--seed", "5")
    assert first["results"] == again["results"]
    assert first["rows"] == other["rows"]
    assert first["results"] != other["results"]


def test_training_settings_can_be_overridden_and_no_others(fedmtl, run):
    arguments = ("personalize", run, "--client", "c", "--epochs", 1, "--json")
    plain = json.loads(done(fedmtl(*arguments)).stdout)["results"]
    faster = json.loads(done(fedmtl(*arguments, "--set", "training.lr=0.3")).stdout)["results"]
    assert plain != faster
    line = error_of(fedmtl(*arguments, "--set", "trunk.widths=[3]"))
    assert "--set must name a setting of [training], got 'trunk.widths=[3]'" in line
    line = error_of(fedmtl(*arguments, "--set", "training.schedule=cosine"))
    assert "--set must name a setting of the fit, got 'training.schedule=cosine'" in line


def test_a_participant_is_refused_unless_asked_for(fedmtl, run):
    line = error_of(fedmtl("personalize", run, "--client", "a"))
    assert "got 'a', which took part in run" in line
    assert "--allow-participant" in line
    done(fedmtl("personalize", run, "--client", "a", "--epochs", 1, "--allow-participant"))


def as_a_server_leaves_it(run, copy):
    """A copy of a run folder without what only a simulation keeps of its clients."""
    shutil.copytree(run, copy)
    manifest = copy / "checkpoint/checkpoint.json"
    progress = json.loads(manifest.read_text())
    progress["files"] = {"trunk": progress["files"]["trunk"]}
    manifest.write_text(json.dumps(progress))
    for path in (copy / "checkpoint").glob("clients-*"):
        path.unlink()
    return copy


def test_a_deployed_run_tells_who_took_part_once_it_has_ended(fedmtl, run, tmp_path):
    copy = as_a_server_leaves_it(run, tmp_path / "copy")
    arguments = ("personalize", copy, "--epochs", 1, "--client")
    assert "got 'a', which took part" in error_of(fedmtl(*arguments, "a"))
    done(fedmtl(*arguments, "c"))
    (copy / "results.json").unlink()
    words = " ".join(done(fedmtl(*arguments, "a")).stdout.split())
    assert "The run folder does not tell who took part" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "got nothing; there are 2 newcomers: 'c', 'd'"),
        (("--client", "z"), "got 'z'; there are 2 newcomers"),
        (("--client", "c", "--rows", "5000"), "--rows must be at most"),
        (("--client", "c", "--rows", "5,none"), "--rows must be numbers of training rows"),
        (("--client", "c", "--rows", "0"), "--rows must be numbers of training rows"),
        (("--client", "c", "--rows", "5,5"), "--rows names a number of rows twice"),
        (("--client", "c", "--data", "nowhere"), "data.path"),
    ],
)
def test_bad_options_get_one_line(fedmtl, run, arguments, message):
    assert message in error_of(fedmtl("personalize", run, *arguments))


def test_bad_folders_get_one_line(fedmtl, run, tmp_path):
    assert "no run folder" in error_of(fedmtl("personalize", tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoint")
    assert "no checkpoint" in error_of(fedmtl("personalize", copy, "--client", "c"))
    line = error_of(fedmtl("personalize", run, "--client", "c", "--out", copy))
    assert "exists and is not empty" in line
    (tmp_path / "file").touch()
    arguments = ("personalize", run, "--client", "c", "--epochs", 1, "--out", "file/mine")
    assert "--out file/mine cannot be written" in error_of(fedmtl(*arguments))


def other_data(tmp_path, frame):
    folder = tmp_path / "other"
    folder.mkdir()
    frame.to_csv(folder / "new.csv", index=False)
    return folder


def test_data_of_its_own_needs_no_name(fedmtl, run, tmp_path):
    folder = other_data(tmp_path, make_frame(50, 7))
    figures = json.loads(
        done(fedmtl("personalize", run, "--data", folder, "--epochs", 1, "--json")).stdout
    )
    assert figures["client"] == "new"


def test_columns_that_do_not_fit_the_trunk_get_one_line(fedmtl, run, tmp_path):
    frame = make_frame(50, 7)
    for change, message in [
        (frame.drop(columns="x2"), "differ from those of the other clients: lacks 'x2'"),
        (frame.assign(town="abroad"), "a category that is not known"),
        (frame.drop(columns="w"), "inputs.w"),
        (frame.drop(columns=list({*frame.columns} - {"x0", "x1", "x2", "w", "town", "side"})),
         "must have a label for some task"),
        (frame[:2], "must have test rows to compare on, got none of 2"),
    ]:  # fmt: skip
        folder = other_data(tmp_path, change)
        assert message in error_of(fedmtl("personalize", run, "--data", folder)), message
        shutil.rmtree(folder)


def test_a_task_that_the_newcomer_lacks_is_left_out(fedmtl, run, tmp_path):
    folder = other_data(tmp_path, make_frame(50, 7).drop(columns=["kind", "p1", "p2"]))
    figures = json.loads(
        done(
            fedmtl("personalize", run, "--data", folder, "--epochs", 1, "--json", "--out", "mine")
        ).stdout
    )
    assert set(TASKS) - set(figures["metrics"]) == {"kind", "place"}
    assert open_kept(tmp_path / "mine").tasks == tuple(figures["metrics"])


def test_the_kept_model_does_not_tell_when_which_client_was_there(fedmtl, tmp_path):
    """As a node's own folder, which has of a trace what the server sent: a digest."""
    trace = ["client,from-round,to-round", "b,2,77"]
    federation = {"rounds": 1, "availability": trace}
    made = write_federation(tmp_path, federation=federation)
    simulate(made, engine="loopback", out=tmp_path / "run")
    write_newcomers(tmp_path / "data")
    out = tmp_path / "kept"
    done(fedmtl("personalize", tmp_path / "run", "--client", "c", "--epochs", 1, "--out", out))
    assert open_kept(out).experiment.fingerprint() == made.fingerprint()
    assert b"b,2,77" not in b"".join(contents(out).values())


def test_a_weighting_that_learns_is_said_to_be_the_federations(fedmtl, tmp_path):
    loss = {"weighting": "uncertainty"}
    simulate(write_federation(tmp_path, loss=loss), engine="loopback", out=tmp_path / "run")
    write_newcomers(tmp_path / "data")
    told = done(fedmtl("personalize", tmp_path / "run", "--client", "c", "--epochs", 1)).stdout
    assert "Every task has weight 1 here" in " ".join(told.split())


def test_a_run_whose_clients_share_no_trunk_is_refused(fedmtl, tmp_path):
    settings = {"trunk": {"widths": []}, "federation": {"rounds": 1, "algorithm": "whole-model"}}
    experiment = write_federation(tmp_path, data={"unusable": "leave-out"}, **settings)
    for path in (tmp_path / "data").glob("b.csv"):
        shutil.copy(tmp_path / "data/a.csv", path)
    simulate(experiment, engine="loopback", out=tmp_path / "run")
    write_newcomers(tmp_path / "data")
    line = error_of(fedmtl("personalize", tmp_path / "run", "--client", "c"))
    assert "has no trunk for a newcomer" in line
