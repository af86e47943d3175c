"""fedmtl evaluate, from a run's folder to its page."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from typer.testing import CliRunner

from common.errors import FedMTLError
from common.experiment_file import load_experiment
from common.metrics import METRICS
from simulations.cli import app
from simulations.evaluation.answers import answer_all, open_ended
from simulations.evaluation.evaluate import evaluate
from simulations.evaluation.files import write_evaluation
from simulations.evaluation.page import make_page
from simulations.kept_federation import KeptFederation
from simulations.simulate import simulate
from tests.recorded import SMALL

runner = CliRunner()

ODD = """
name = "odd"
[data]
source = "folder"
path = "{data}"
test = 0.25
validation = 0.25
unusable = "leave-out"
unseen-classes = "keep"
[inputs.x]
columns = ["x*"]
[tasks.colour]
kind = "multiclass"
classes = ["red", "<b>green</b>", "blue", "never"]
metric = "f1"
[tasks.one]
kind = "binary"
metric = "auroc"
[tasks.tags]
kind = "multilabel"
target = ["tag-a", "tag-b"]
[tasks.size]
kind = "regression"
transform = "log1p"
standardise = "client"
metric = "rmse"
[tasks.ghost]
kind = "binary"
[trunk]
widths = [6]
[training]
lr = 0.05
[federation]
rounds = 2
"""


def write_clients(folder, rows=(24, 16, 12, 2)):
    """Clients with tasks of all kinds: a class that never comes, a task of one class."""
    folder.mkdir()
    for number, count in enumerate(rows):
        generator = np.random.default_rng(number)
        x = generator.normal(size=(count, 3))
        frame = pd.DataFrame(x, columns=["x0", "x1", "x2"])
        frame["colour"] = np.array(["red", "<b>green</b>", "blue"])[(x[:, :2] > 0).sum(1)]
        frame["one"] = 1
        frame["tag-a"], frame["tag-b"] = (x[:, 2] > 0).astype(int), (x[:, 0] > 0.5).astype(int)
        frame["size"] = np.exp(x[:, 1])
        frame.loc[0, "size"] = np.nan
        if number == 1:
            frame = frame.drop(columns=["tag-a", "tag-b"])
        if number == 3:  # too few rows for one of validation: nobody's ghost is seen
            frame["ghost"] = 1
        frame.to_csv(folder / f"site{number}.csv", index=False)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "digits"
    simulate(load_experiment("digits", SMALL), engine="loopback", out=folder)
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    place = tmp_path_factory.mktemp("odd")
    write_clients(place / "data")
    (place / "odd.toml").write_text(ODD.format(data=place / "data"))
    experiment = load_experiment(str(place / "odd.toml"))
    simulate(experiment, engine="loopback", out=place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled") / "run"
    settings = [*SMALL, "federation.clients-per-round=2"]
    simulate(load_experiment("digits", settings), engine="loopback", out=folder)
    return folder


def of_run(folder, split, task):
    return json.loads((folder / "results.json").read_text())["final"][split]["tasks"][task]


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("name", ["digits", "odd", "sampled"])
def test_figures_are_those_of_the_run(request, name, split):
    folder = request.getfixturevalue(name)
    found = evaluate(folder, split)
    for task, own in found["tasks"].items():
        if not own["rows"]:
            assert task == "ghost"
            continue
        told = of_run(folder, split, task)
        assert own["rows"] == told["examples"]
        expected = np.nan if told[own["metric"]] is None else told[own["metric"]]
        assert own["figure"] == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert not [note for note in found["notes"] if "results.json:" in note]


def test_the_confusion_adds_up_to_the_accuracy_of_the_run(digits):
    found = evaluate(digits)
    for task in ("digit", "parity"):
        counts = np.array(found["tasks"][task]["confusion"][0]["rows"])
        told = of_run(digits, "test", task)
        assert counts.sum() == told["examples"]
        assert np.trace(counts) / counts.sum() == pytest.approx(told["accuracy"])


def test_every_client_has_the_figure_that_the_run_has_of_it(digits):
    clients = json.loads((digits / "results.json").read_text())["clients"]
    for task, own in evaluate(digits)["tasks"].items():
        told = {n: c["tasks"][task]["test"][own["metric"]] for n, c in clients.items()}
        found = {n: c["figure"] for n, c in own["fairness"]["clients"].items()}
        assert found == pytest.approx(told, rel=1e-5)


def test_areas_of_a_run_are_those_of_scikit_learn(digits):
    answers = [client.tasks["digit"] for client in answer_all(open_ended(digits), "test")]
    truth = np.concatenate([own.truth for own in answers])
    probability = np.concatenate([own.probability for own in answers])
    found = evaluate(digits)["tasks"]["digit"]
    areas = [one["roc"]["auc"] for one in found["curves"]]
    expected = metrics.roc_auc_score(truth, probability, multi_class="ovr", average=None)
    np.testing.assert_allclose(areas, expected)
    told = of_run(digits, "test", "digit")["accuracy"]
    assert METRICS["accuracy"].figure([np.trace(found["confusion"][0]["rows"]), len(truth)]) == told


def test_classes_that_never_come_and_tasks_of_nobody_are_ordinary(odd):
    tasks = evaluate(odd, "validation")["tasks"]
    assert [one["name"] for one in tasks["colour"]["curves"] if not one["roc"]] == ["never"]
    assert tasks["one"]["curves"][0]["roc"] is None
    assert tasks["one"]["fairness"]["counted"] == 0
    assert [one["name"] for one in tasks["tags"]["confusion"]] == ["tags.tag-a", "tags.tag-b"]
    assert "site1" not in tasks["tags"]["fairness"]["clients"]
    assert (tasks["ghost"]["rows"], tasks["ghost"]["figure"]) == (0, None)


def test_clients_without_rows_are_counted(odd):
    found = evaluate(odd, "validation")
    assert found["notes"] == [
        "1 client without labelled validation rows, in no figure.",
        "Task size: residuals and skill are in the target's own unit, rmse is in that of transform "
        "'log1p'.",
        "Task ghost: nobody has labelled validation rows.",
    ]
    assert found["clients"] == 4


def test_clients_that_were_never_asked_answer_with_new_heads(sampled):
    found = evaluate(sampled)
    never = 10 - len(open_ended(sampled).kept.own)
    assert never >= 6
    assert found["clients"] == 10
    assert found["notes"] == [
        f"{never} clients took part in no round: here and in results.json they answer with heads "
        "as they were initialised."
    ]


def test_the_files_hold_all_figures(odd, tmp_path):
    told = runner.invoke(app, ["evaluate", str(odd), "--out", str(tmp_path), "--split", "test"])
    assert told.exit_code == 0, told.output
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["split"] == "test"
    with open(tmp_path / "evaluation" / "test-colour-confusion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["rows"]) for row in rows) == figures["tasks"]["colour"]["rows"]
    assert {row["true"] for row in rows} == {"red", "<b>green</b>", "blue", "never"}
    made = {path.stem.removeprefix("test-") for path in (tmp_path / "evaluation").iterdir()}
    classes = {"clients", "confusion", "roc", "precision-recall", "calibration"}
    assert {f"colour-{what}" for what in classes} <= made
    assert {"balance", "size-residuals", "size-predicted-against-true", "ghost-clients"} <= made


def test_the_page_draws_every_task_and_escapes_names(odd):
    page = make_page(evaluate(odd, "validation"))
    body = page[: page.index('id="charts"')]
    assert all(f"<h2>{task}</h2>" in body for task in ("colour", "one", "tags", "size", "ghost"))
    assert "Nobody has labelled rows of this task." in body
    assert "Confusion: tags.tag-b" in body
    assert "<b>green</b>" not in page
    assert "&lt;b&gt;green" in page.replace("\\u003c", "<")


def poison(monkeypatch, *clients):
    """Let models of these clients, or of all, say no numbers."""
    whole = KeptFederation.arrays_of

    def arrays_of(kept, client):
        arrays = whole(kept, client)
        is_poisoned = client in clients or not clients
        return {n: a * np.nan for n, a in arrays.items()} if is_poisoned else arrays

    monkeypatch.setattr(KeptFederation, "arrays_of", arrays_of)


def test_answers_that_are_no_numbers_are_left_out_of_curves(digits, monkeypatch):
    rows = json.loads((digits / "results.json").read_text())["clients"]["client-000"]["examples"]
    poison(monkeypatch, "client-000")
    found = evaluate(digits)
    parity, ink = found["tasks"]["parity"], found["tasks"]["ink"]
    assert parity["unanswered"] == ink["unanswered"] == rows["test"]
    curve = parity["curves"][0]
    assert curve["positives"] + curve["negatives"] == parity["rows"] - rows["test"]
    assert sum(ink["residuals"][0]["histogram"]["rows"]) == ink["rows"] - rows["test"]
    assert np.sum(parity["confusion"][0]["rows"]) == parity["rows"]
    assert ink["fairness"]["counted"] == 9
    told = f"Task ink: the model's answer to {rows['test']} rows is no number: these are left out"
    assert any(note.startswith(told) for note in found["notes"])


def test_a_model_that_says_no_number_at_all_has_a_page(digits, monkeypatch, tmp_path):
    poison(monkeypatch)
    paths = write_evaluation(evaluate(digits), tmp_path)
    assert json.loads(paths[0].read_text())["tasks"]["ink"]["figure"] is None
    assert "The model says no number about any row of this task." in paths[1].read_text()


def test_figures_of_a_private_run_are_told_to_be_uncovered(tmp_path):
    settings = [*SMALL, "privacy.client-level.noise-multiplier=1", "federation.weight-by=uniform"]
    simulate(load_experiment("digits", settings), engine="loopback", out=tmp_path / "run")
    notes = evaluate(tmp_path / "run")["notes"]
    assert any("the run's epsilon does not cover them" in note for note in notes)
    assert not any("in results.json: other models" in note for note in notes)


def test_counts_that_were_withheld_are_not_held_against_the_rows(tmp_path):
    settings = [
        *SMALL, "privacy.client-level.noise-multiplier=1", "federation.weight-by=uniform",
        "privacy.counts=withheld", "privacy.sums=withheld",
    ]  # fmt: skip
    simulate(load_experiment("digits", settings), engine="loopback", out=tmp_path / "run")
    assert evaluate(tmp_path / "run")["rows"] == 360


def test_what_the_run_measured_otherwise_is_told(tmp_path):
    settings = [*SMALL, "evaluation.model=personal"]
    simulate(load_experiment("digits", settings), engine="loopback", out=tmp_path / "run")
    first, *others = evaluate(tmp_path / "run")["notes"]
    assert first.startswith("The run measured trunks after local epochs")
    assert others[0].startswith("Task digit: accuracy is ")


def test_a_deployed_run_is_refused(digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    path = run / "checkpoint" / "checkpoint.json"
    content = json.loads(path.read_text())
    files = {role: name for role, name in content["files"].items() if role == "trunk"}
    path.write_text(json.dumps({**content, "files": files}))
    with pytest.raises(FedMTLError, match="holds no client's heads, which stay with the clients"):
        evaluate(run)


def test_a_run_that_has_not_ended_is_refused(digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    (run / "results.json").unlink()
    with pytest.raises(FedMTLError, match=r"must be a run that ended.* --resume"):
        evaluate(run)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ((24, 16), "lacks 'site2', 'site3'; give the run's own data with --data"),
        ((40, 16, 12, 2), "client 'site0' must have the run's 6 test rows, got 10"),
    ],
)
def test_other_data_is_refused(odd, tmp_path, rows, told):
    write_clients(tmp_path / "other", rows)
    with pytest.raises(FedMTLError, match=told):
        evaluate(odd, data=str(tmp_path / "other"))


def test_values_that_changed_are_told(odd, tmp_path):
    write_clients(tmp_path / "other")
    frame = pd.read_csv(tmp_path / "other" / "site0.csv")
    frame["size"] *= 3
    frame.to_csv(tmp_path / "other" / "site0.csv", index=False)
    notes = evaluate(odd, data=str(tmp_path / "other"))["notes"]
    assert any(note.startswith("Task size: rmse is ") for note in notes)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--split", "train"], "error: --split must be test or validation, got 'train'"),
        (["--data", "/nowhere/at/all"], "error: "),
    ],
)
def test_bad_input_is_one_line(odd, words, line):
    told = runner.invoke(app, ["evaluate", str(odd), *words])
    assert told.exit_code == 2
    assert told.stderr.startswith(line)
    assert told.stderr.count("\n") == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    told = runner.invoke(app, ["evaluate", str(tmp_path)])
    assert told.exit_code == 2
    assert "is no run folder" in told.stderr
