"""Predictions are those that the federation measured, whichever file they come from and go to."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from client.answers import read_output
from client.kept_model import open_kept
from client.prediction import (
    Predictions,
    describe_cover,
    describe_gaps,
    name_columns,
    predict,
)
from client.row_files import read_rows, write_predictions
from common.clients import open_clients
from common.dataset import TargetScale
from common.encoding import encode, encode_rows
from common.errors import CheckpointError, ConfigError, DataError, ShapeError
from common.experiment import Experiment
from common.fitted import Fitted
from common.metrics import METRICS, metric_sums
from common.scaling import Scaling
from common.sections.rows import Task
from common.splits import split_rows
from common.tables import ClientTable
from simulations.cli import app
from simulations.kept_run import open_run
from simulations.simulate import simulate
from tests.kept_models import make_frame, untrained, write_federation, write_state
from tests.raw_tables import encode_alone, plan, table, text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder of two trained clients."""
    folder = tmp_path_factory.mktemp("trained")
    simulate(write_federation(folder), engine="loopback", out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def kept(trained):
    return open_run(trained, "a")


@pytest.fixture
def fedmtl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def new_rows(tmp_path):
    path = tmp_path / "new.csv"
    make_frame(20, 0).to_csv(path, index=False)
    return path


def error_of(result):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", ["predict", "export"])
def test_help_imports_no_heavy_library(command):
    code = (
        "import sys; from typer.testing import CliRunner; from simulations.cli import app; "
        f"result = CliRunner().invoke(app, [{command!r}, '--help']); assert not result.exit_code; "
        "print(*{'torch', 'flwr', 'pandas', 'pydantic', 'numpy', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Fitted scalings ---------------------------------------------------------------------------------


def test_scalings_read_back_to_the_last_bit():
    rng = np.random.default_rng(0)
    scaling = Scaling(
        rng.normal(size=50) * 10.0 ** rng.integers(-30, 30, 50), rng.random(50) + 1e-9
    )
    read = Fitted.from_json(Fitted({"x": scaling}, {"y": scaling}).to_json())
    for one in (read.inputs["x"], read.targets["y"]):
        assert one.mean.tobytes() == scaling.mean.tobytes()
        assert one.deviation.tobytes() == scaling.deviation.tobytes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"inputs": {}, "targets": []}',
        '{"inputs": {"x": {"mean": [1.0]}}, "targets": {}}',
        '{"inputs": {"x": {"mean": [1.0], "deviation": [0.0]}}, "targets": {}}',
        '{"inputs": {"x": {"mean": [1.0], "deviation": [1.0, 1.0]}}, "targets": {}}',
        '{"inputs": {"x": {"mean": [NaN], "deviation": [1.0]}}, "targets": {}}',
    ],
)
def test_what_is_no_record_of_scalings_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 (of JSON's or of ours)
        Fitted.from_json(text)


@pytest.mark.parametrize("standardise", ["none", "client", "federation"])
@pytest.mark.parametrize("missing", ["refuse", "mean", "zero", "drop-row"])
def test_only_what_the_client_fits_is_kept(standardise, missing):
    inputs = {"x": {"columns": ["x*"], "standardise": standardise, "missing": missing}}
    fitted = encode_alone(table(), plan(inputs=inputs)).fitted
    owns = standardise == "client" or (standardise == "none" and missing == "mean")
    assert set(fitted.inputs) == ({"x"} if owns else set())
    assert not fitted.targets


# Encoding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["a", "b"])
def test_new_rows_are_encoded_as_held_out_rows_are(trained, client):
    kept = open_run(trained, client)
    raw = open_clients(kept.experiment).read(client)
    data = encode(raw, kept.experiment, kept.agreement)
    fitted = Fitted.from_json(data.fitted.to_json())
    rows = encode_rows(raw, kept.experiment, kept.agreement, fitted)
    for split, index in split_rows(raw, kept.experiment).items():
        for name, values in data.splits[split].inputs.items():
            assert torch.equal(values, rows.inputs[name][torch.from_numpy(index)])


def test_targets_and_other_columns_are_not_read(kept):
    frame = make_frame(10, 0)
    columns = {"stranger": text(*"abcdefghij"), "x9": np.full(10, 7.0)}
    columns |= {c: frame[c].to_numpy() for c in ("x0", "x1", "x2", "w", "side")}
    columns["town"] = text(*[None if pd.isna(t) else t for t in frame["town"]])
    wrong = {**columns, "size": text(*["unknown"] * 10), "kind": text(*["?"] * 10)}
    one, other = (predict(kept, ClientTable("a", c), CPU).columns for c in (columns, wrong))
    for name in one:
        assert (one[name] == other[name]).all()


def test_rows_that_the_experiment_drops_get_no_prediction():
    experiment = plan(inputs={"x": {"columns": ["x1"], "missing": "drop-row"}})
    kept = untrained(experiment, table())
    predictions = predict(kept, table(x1=[1.0, np.nan, 3.0]), CPU)
    assert predictions.usable.tolist() == [True, False, True]
    assert len(predictions.columns["predicted.y"]) == 2
    assert predictions.notes == (
        "1 row with empty cells in the inputs: predictions are empty there",
    )
    nothing = predict(kept, table(x1=[np.nan, np.nan]), CPU)
    assert len(nothing.columns["predicted.y"]) == 0


def test_empty_cells_that_the_experiment_refuses_are_counted():
    kept = untrained(plan(), table())
    with pytest.raises(DataError, match="got empty cells in 1 of 3 rows"):
        predict(kept, table(x1=[1.0, np.nan, 3.0]), CPU)


def test_a_column_that_is_lacking_is_named():
    kept = untrained(plan(inputs={"x": {"columns": ["x*"]}}), table(x1=[1.0, 2.0], x2=[1.0, 2.0]))
    with pytest.raises(DataError, match=r"lacks 1 of the columns of inputs\.x: 'x2'"):
        predict(kept, table(x1=[1.0]), CPU)


def test_a_category_that_training_did_not_know_counts_as_none():
    experiment = plan(inputs={"c": {"kind": "categorical", "columns": ["c"]}})
    kept = untrained(experiment, table(c=text(*"uvuvuv")))
    rows = encode_rows(table(c=text("u", "z")), experiment, kept.agreement, kept.fitted)
    assert rows.inputs["c"].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    (note,) = predict(kept, table(c=text("u", "z")), CPU).notes
    assert note == (
        "column 'c' (inputs.c) has a category that training did not know in 1 row; "
        "it counts as none"
    )


# Answers -----------------------------------------------------------------------------------------


def test_answers_are_in_the_target_s_unit():
    scale = TargetScale(torch.tensor([2.0]), torch.tensor([3.0]))
    output = torch.tensor([[1.0], [0.0]])
    assert read_output(Task(kind="regression"), output, scale).value.tolist() == [[5.0], [2.0]]
    task = Task(kind="regression", transform="log1p", standardise="client")
    value = read_output(task, output, scale).value
    np.testing.assert_allclose(value.numpy(), np.expm1([[5.0], [2.0]]))


@pytest.mark.parametrize(("standardise", "tasks"), [("none", ("y",)), ("client", ())])
def test_a_task_is_not_answered_in_a_unit_that_nobody_knows(standardise, tasks):
    """As of a client without labels of its own, where heads travel."""
    experiment = plan(tasks={"y": {"kind": "regression", "standardise": standardise}})
    assert untrained(experiment, table()).tasks == tasks
    scaling = Fitted(targets={"y": Scaling(np.zeros(1), np.ones(1))})
    assert untrained(experiment, table(), scaling).tasks == ("y",)


@pytest.mark.parametrize(("algorithm", "notes"), [("fedala", 1), ("ditto", 0), ("joint", 0)])
def test_a_mixture_that_a_prediction_cannot_learn_anew_is_told(algorithm, notes):
    experiment = plan()
    federation = experiment.federation.model_copy(update={"algorithm": algorithm})
    experiment = experiment.model_copy(update={"federation": federation})
    told = list(describe_gaps(untrained(experiment, table())))
    assert len(told) == notes
    assert all("mixed as last learned" in note for note in told)


NOISE = {"noise-multiplier": 1.0}


@pytest.mark.parametrize(
    ("privacy", "algorithm", "told"),
    [
        ({}, "joint", 0),
        ({"client-level": NOISE}, "joint", 1),
        ({"client-level": NOISE}, "whole-model", 0),
        ({"example-level": NOISE}, "joint", 0),
        ({"example-level": {**NOISE, "covers": "trunk"}}, "fedbabu", 1),
    ],
)
def test_heads_that_no_noise_covers_are_told_of(privacy, algorithm, told):
    content = plan().model_dump(mode="json", by_alias=True)
    content["federation"] |= {"algorithm": algorithm, "weight-by": "uniform"}
    experiment = Experiment.model_validate({**content, "privacy": privacy})
    assert len(list(describe_cover(untrained(experiment, table())))) == told


def test_columns_are_named_after_task_and_class(kept):
    outputs = {"kind": 3, "stage": 3, "flag": 1, "side-effect": 1, "marks": 2, "size": 1}
    outputs |= {"place": 2, "cost": 1}
    named = {}
    for task, width in outputs.items():
        answer = read_output(kept.experiment.tasks[task], torch.eye(width), None)
        named[task] = dict(name_columns(kept.experiment, task, answer))
    assert list(named["kind"]) == [
        "kind",
        *(f"kind.probability.{c}" for c in ("low", "mid", "high")),
    ]
    assert named["kind"]["kind"].tolist() == ["low", "mid", "high"]
    assert list(named["stage"]) == ["stage", *(f"stage.probability.{c}" for c in range(3))]
    assert named["stage"]["stage"].tolist() == [0, 1, 2]
    assert list(named["flag"]) == ["flag", "flag.probability"]
    assert named["flag"]["flag"].tolist() == [1]
    assert named["side-effect"]["side-effect"].tolist() == ["yes"]
    assert list(named["marks"]) == [
        "marks.m1", "marks.m1.probability", "marks.m2", "marks.m2.probability"
    ]  # fmt: skip
    assert list(named["size"]) == ["size"]
    assert list(named["place"]) == ["place.p1", "place.p2"]


# The federation's own figures --------------------------------------------------------------------


def figure_from(frame, experiment, task):
    """Compute a task's metric from the columns of a file of predictions, and nothing else."""
    settings, targets = experiment.tasks[task], list(experiment.targets(task))
    frame = frame[frame[targets].notna().all(axis=1)]
    if settings.kind == "regression":
        names = [task] if len(targets) == 1 else [f"{task}.{c}" for c in targets]
        output = frame[[f"predicted.{n}" for n in names]].to_numpy(np.float64)
        truth = frame[targets].to_numpy(np.float64)
        if settings.transform == "log1p":
            output, truth = np.log1p(output), np.log1p(truth)
        sums = metric_sums(
            settings.metric_name, settings.kind, torch.tensor(output), torch.tensor(truth), None
        )
        return METRICS[settings.metric_name].figure(sums)
    if settings.kind == "multilabel":
        chances = frame[[f"predicted.{task}.{c}.probability" for c in targets]].to_numpy()
        output, truth = (
            torch.tensor(chances).logit(),
            torch.tensor(frame[targets].to_numpy()).float(),
        )
    elif settings.kind == "binary":
        names = settings.classes or (False, True)
        output = torch.tensor(frame[f"predicted.{task}.probability"].to_numpy()).logit()[:, None]
        truth = torch.tensor((frame[targets[0]] == names[1]).to_numpy()).float()
        decided = frame[f"predicted.{task}"]
        assert (
            (decided == (names[1] if settings.classes else 1)) == (output[:, 0] > 0).numpy()
        ).all()
    else:
        names = list(settings.classes) if isinstance(settings.classes, tuple) else [0, 1, 2]
        output = torch.tensor(np.stack([frame[f"predicted.{task}"] == n for n in names], 1)).float()
        truth = torch.tensor([names.index(c) for c in frame[targets[0]]])
    sums = metric_sums(settings.metric_name, settings.kind, output, truth, None)
    return METRICS[settings.metric_name].figure(sums)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("client", ["a", "b"])
def test_a_client_s_test_rows_have_the_metric_that_the_federation_reports(
    trained, fedmtl, tmp_path, client, suffix
):
    kept = open_run(trained, client)
    raw = open_clients(kept.experiment).read(client)
    frame = pd.read_csv(f"{kept.experiment.data.path}/{client}.csv", dtype={"id": str})
    frame = frame.iloc[split_rows(raw, kept.experiment)["test"]]
    if suffix == "csv":
        frame.to_csv(tmp_path / "rows.csv", index=False)
    else:
        frame.to_parquet(tmp_path / "rows.parquet")
    result = fedmtl(
        "predict", trained, "--client", client, "--rows", f"rows.{suffix}", "--out", f"p.{suffix}"
    )
    assert result.exit_code == 0, result.output
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}[suffix]
    predicted = read(tmp_path / f"p.{suffix}")
    results = json.loads((trained / "results.json").read_text())
    reported = results["clients"][client]["tasks"]
    assert set(reported) == set(kept.tasks)
    for task, figures in reported.items():
        metric = kept.experiment.tasks[task].metric_name
        exact = kept.experiment.tasks[task].kind in ("multiclass", "binary", "multilabel")
        found = figure_from(predicted, kept.experiment, task)
        assert found == pytest.approx(figures["test"][metric], rel=0 if exact else 1e-5), task


def test_a_task_that_the_client_lacks_is_left_out_and_said(trained, fedmtl, new_rows, tmp_path):
    result = fedmtl("predict", trained, "--client", "b", "--rows", new_rows, "--out", "p.csv")
    assert "client 'b' has no head for task 'kind', or no labels" in result.stderr
    columns = pd.read_csv(tmp_path / "p.csv").columns
    assert not [c for c in columns if c.startswith("predicted.kind")]
    assert "predicted.stage" in columns


# Files -------------------------------------------------------------------------------------------


def test_all_cells_of_a_csv_file_stay_as_they_were_spelt(trained, fedmtl, new_rows, tmp_path):
    fedmtl("predict", trained, "--client", "a", "--rows", new_rows, "--out", "p.csv")
    before, after = new_rows.read_text().splitlines(), (tmp_path / "p.csv").read_text().splitlines()
    assert len(before) == len(after)
    assert all(new.startswith(old + ",") for old, new in zip(before, after, strict=True))


def test_csv_and_parquet_say_the_same(trained, fedmtl, new_rows, tmp_path):
    pd.read_csv(new_rows, dtype={"id": str}).to_parquet(tmp_path / "new.parquet")
    frames = []
    for rows in ("new.csv", "new.parquet"):
        for out, read in (("p.csv", pd.read_csv), ("p.parquet", pd.read_parquet)):
            result = fedmtl("predict", trained, "--client", "a", "--rows", rows, "--out", out)
            assert result.exit_code == 0, result.output
            frame = read(tmp_path / out)
            frames.append(frame[[c for c in frame if c.startswith("predicted.")]])
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0], check_dtype=False, rtol=1e-6)


def test_a_file_of_images_alone_is_written_with_a_row_for_each(tmp_path):
    np.savez(tmp_path / "new.npz", pixels=np.zeros((3, 8, 8), np.float32))
    rows = read_rows(tmp_path / "new.npz")
    found = Predictions({"predicted.t": np.array([2, 0, 1])}, np.ones(3, dtype=bool), ())
    write_predictions(rows, found, tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().split() == ["predicted.t", "2", "0", "1"]


def test_named_rows_of_a_parquet_file_keep_their_names(trained, fedmtl, tmp_path):
    frame = make_frame(8, 0).set_index("id")
    frame.to_parquet(tmp_path / "new.parquet")
    for out in ("p.parquet", "p.csv"):
        fedmtl("predict", trained, "--client", "a", "--rows", "new.parquet", "--out", out)
    assert list(pd.read_parquet(tmp_path / "p.parquet").index) == list(frame.index)
    assert list(pd.read_csv(tmp_path / "p.csv", dtype={"id": str})["id"]) == list(frame.index)


def test_dropped_rows_are_empty_in_their_places(fedmtl, tmp_path):
    tasks = {"y": {"kind": "binary", "classes": ["no", "yes"]}}
    experiment = plan(inputs={"x": {"columns": ["x1"], "missing": "drop-row"}}, tasks=tasks)
    raw = table(x1=[1.0, 2.0, 3.0, 4.0], y=text("no", "yes", "no", "yes"))
    write_state(tmp_path / "state", untrained(experiment, raw))
    (tmp_path / "new.csv").write_text("x1,y\n1,no\n?,yes\n3,no\n")
    for out, read in (("p.csv", pd.read_csv), ("p.parquet", pd.read_parquet)):
        fedmtl("predict", "state", "--rows", "new.csv", "--out", out)
        empty = read(tmp_path / out)[["predicted.y", "predicted.y.probability"]].isna()
        assert empty.to_numpy().tolist() == [[False] * 2, [True] * 2, [False] * 2]


@pytest.mark.parametrize(
    ("rows", "out", "error"),
    [
        ("no.csv", "p.csv", "--rows must be a file, got 'no.csv', which is none"),
        ("new.txt", "p.csv", "--rows must be a .csv, .parquet, .npz file, got 'new.txt'"),
        ("new.csv", "p.xlsx", "--out must be a .csv or .parquet file, got 'p.xlsx'"),
        ("new.csv", "no/p.csv", "--out must be in a folder that exists, got 'no/p.csv'"),
        ("new.csv", "./new.csv", "--out must be another file than --rows, got 'new.csv' for both"),
    ],
)
def test_files_are_checked_first(fedmtl, new_rows, tmp_path, rows, out, error):
    (tmp_path / "new.txt").touch()
    assert error_of(fedmtl("predict", ".", "--rows", rows, "--out", out)) == f"error: {error}"


@pytest.mark.parametrize("device", ["gpu", "xpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(trained, fedmtl, new_rows, device):
    arguments = ["predict", trained, "--client", "a", "--rows", new_rows, "--out", "p.csv"]
    line = error_of(fedmtl(*arguments, "--device", device))
    assert line.startswith("error: --device must be ")
    assert f"got '{device}'" in line


def test_names_that_clash_are_refused(trained, fedmtl, new_rows, tmp_path):
    arguments = ["predict", trained, "--client", "a", "--rows", new_rows, "--out", "p.csv"]
    line = error_of(fedmtl(*arguments, "--prefix", ""))
    assert line.startswith("error: --prefix must keep predictions apart from all other columns")
    assert not (tmp_path / "p.csv").exists()
    assert fedmtl(*arguments, "--prefix", "my ").exit_code == 0
    assert "my kind" in pd.read_csv(tmp_path / "p.csv").columns


# Folders -----------------------------------------------------------------------------------------


def test_a_node_s_state_predicts_as_the_simulation_does(kept, fedmtl, new_rows, tmp_path):
    write_state(tmp_path / "state", kept, seen=2, generations=(1, 2, 3))
    read = open_kept(tmp_path / "state")
    assert (read.run, read.client, read.round, read.tasks) == (kept.run, "a", 2, kept.tasks)
    raw = open_clients(kept.experiment).read("a")
    one, other = (predict(model, raw, CPU).columns for model in (kept, read))
    assert list(one) == list(other)
    for name in one:
        assert (one[name] == other[name]).all()
    result = fedmtl("predict", "state", "--rows", new_rows, "--out", "p.csv")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"p.csv: 20 of 20 rows predicted by run {kept.run}, client 'a', trunk of round 2\n"
    )


@pytest.mark.parametrize(
    ("generations", "chosen"), [((2, 3), 3), ((3, 4), 3), ((1, 2), 2), ((4,), 4), ((4, 5), 4)]
)
def test_heads_are_those_that_belong_to_the_trunk(kept, tmp_path, generations, chosen):
    place = write_state(tmp_path, kept, seen=3, generations=generations)
    right = {n: a for n, a in kept.arrays.items() if n.startswith("heads.")}
    from safetensors.numpy import load_file, save_file

    path = place / f"own-{chosen:08d}.safetensors"
    save_file({n: right.get(n, a) for n, a in load_file(path).items()}, path)
    for name, array in open_kept(tmp_path).arrays.items():
        assert (array == kept.arrays[name]).all()


def test_a_run_and_a_client_must_be_named_where_there_are_several(kept, fedmtl, new_rows, tmp_path):
    for run, client in (("r1", "a"), ("r1", "b c"), ("r2", "a")):
        write_state(tmp_path / "state", dataclasses.replace(kept, run=run, client=client))
    arguments = ["predict", "state", "--rows", new_rows, "--out", "p.csv"]
    assert error_of(fedmtl(*arguments)) == (
        "error: state holds 3 models; name one: --run r1 --client 'a'; --run r1 --client 'b c'; "
        "--run r2 --client 'a'"
    )
    assert error_of(fedmtl(*arguments, "--client", "a")) == (
        "error: state holds 2 models; name one: --run r1 --client 'a'; --run r2 --client 'a'"
    )
    assert error_of(fedmtl(*arguments, "--run", "r3")).startswith(
        "error: state holds no model of run 'r3'; there are --run r1 --client 'a'; "
    )
    assert fedmtl(*arguments, "--run", "r2").exit_code == 0


def damage_json(place):
    (place / "run.json").write_text("{")


def damage_trunk(place):
    (place / "trunk.safetensors").write_bytes(b"no")


def forget_scalings(place):
    (place / "fitted.json").unlink()


def forget_heads(place):
    for path in place.glob("own-*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damage_json, "run.json cannot be read (JSONDecodeError)"),
        (damage_trunk, "cannot be read (SafetensorError"),
        (forget_scalings, "cannot be read (FileNotFoundError"),
        (forget_heads, "has no heads yet: the client has finished no round"),
    ],
)
def test_a_state_that_cannot_be_read_is_one_line(kept, tmp_path, damage, error):
    damage(write_state(tmp_path, kept))
    with pytest.raises(CheckpointError) as raised:
        open_kept(tmp_path)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_parameters_that_are_missing_or_strange_are_named(kept):
    name = next(n for n in kept.arrays if n.startswith("trunk."))
    some = {n: a for n, a in kept.arrays.items() if n != name}
    with pytest.raises(CheckpointError, match="1 parameters of the model are not there: 'trunk"):
        dataclasses.replace(kept, arrays=some).build()
    with pytest.raises(ShapeError, match="is none of this experiment's model"):
        dataclasses.replace(kept, arrays={**some, name: np.zeros(1, np.float32)}).build()


def test_folders_that_hold_no_model_say_what_to_give(trained, fedmtl, new_rows, tmp_path):
    files = ["--rows", new_rows, "--out", "p.csv"]
    assert "got neither" in error_of(fedmtl("predict", "no", *files))
    (tmp_path / "runs").mkdir()
    assert "holds no trained model" in error_of(fedmtl("predict", ".", *files))
    line = error_of(fedmtl("predict", trained, *files))
    assert "--client must name one of the 2 clients that took part, got nothing" in line
    assert "remove --run" in error_of(fedmtl("predict", trained, *files, "--run", "x"))
    assert "remove --data" in error_of(fedmtl("predict", ".", *files, "--data", "x"))


def test_a_server_s_run_folder_has_no_heads(trained, tmp_path):
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    manifest = tmp_path / "run" / "checkpoint" / "checkpoint.json"
    content = json.loads(manifest.read_text())
    content["files"] = {"trunk": content["files"]["trunk"]}
    manifest.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="holds no client's heads, which stay with"):
        open_run(tmp_path / "run", "a")


def test_prefixes_keep_names_apart():
    kept = untrained(plan(), table())
    with pytest.raises(ConfigError, match="choose another --prefix"):
        predict(kept, table(), CPU, prefix="")
