"""An exported model gives the numbers of the model it was made from, without fedmtl."""

import itertools
import json
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from client import export as export_module
from client.export import NEEDED, export
from client.export_check import TOLERANCE, largest_difference
from client.exported_model import ExportedModel
from client.kept_model import KeptModel
from client.model_description import describe
from client.prediction import predict
from client.training import Trainer
from common.agreement import Agreement
from common.architectures.table import SHARINGS
from common.clients import open_clients
from common.errors import ExportError
from common.fitted import Fitted
from common.losses import ROW_LOSSES
from common.scaling import Scaling
from simulations.cli import app
from simulations.kept_run import open_run
from simulations.simulate import simulate
from tests.kept_models import untrained, write_federation, write_state
from tests.raw_tables import plan, table
from tests.test_common_architectures import SHAPES, client_for, every_case, experiment_for

CPU = torch.device("cpu")
needs_onnx = pytest.mark.skipif(
    any(find_spec(package) is None for package in NEEDED), reason="needs the extra 'export'"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    simulate(write_federation(folder), engine="loopback", out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def kept(trained):
    return open_run(trained, "a")


def shared_model(sharing, place, encoder, tasks, **tables) -> tuple[KeptModel, Trainer]:
    """A model trained by a client that holds some tasks, and the trainer that holds it too."""
    experiment = experiment_for(sharing, place, encoder, **tables)
    data = client_for(encoder, tasks=tasks)
    trainer = Trainer(experiment, SHAPES[encoder], CPU)
    trainer.load({}, {})
    trainer.train(data, dict.fromkeys(experiment.tasks, 1.0), 1)
    columns = {
        name: (name,) if len(shape) == 3 else tuple(f"{name}{i}" for i in range(shape[0]))
        for name, shape in SHAPES[encoder].items()
    }
    own = {n: a for n, a in trainer.own_arrays(tasks).items() if not n.startswith("loss-memory")}
    arrays = {n: a.copy() for n, a in {**trainer.flat.read(trainer.shared), **own}.items()}
    agreement = Agreement(columns=columns, shapes=SHAPES[encoder])
    return KeptModel("run", "a", 1, experiment, agreement, Fitted(), arrays), trainer


def inputs_by_description(about, frame) -> dict[str, torch.Tensor]:
    """Make a module's inputs from a file's rows by what model.json says, and nothing else."""
    inputs = {}
    for one in about["inputs"]:
        if one["kind"] == "categorical":
            cells = {
                c: [None if pd.isna(v) else str(v) for v in frame[c]]
                for c in {place["column"] for place in one["places"]}
            }
            columns = [
                [cell == place["category"] for cell in cells[place["column"]]]
                for place in one["places"]
            ]
            inputs[one["name"]] = torch.tensor(columns).T.float()
        else:
            inputs[one["name"]] = torch.tensor(frame[one["columns"]].to_numpy(np.float64))
    return inputs


# The module --------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["a", "b"])
def test_the_module_says_of_raw_rows_what_predict_says(trained, client):
    kept = open_run(trained, client)
    raw = open_clients(kept.experiment).read(client)
    frame = pd.read_csv(f"{kept.experiment.data.path}/{client}.csv")
    about = json.loads(json.dumps(describe(kept)))
    outputs = ExportedModel(kept)(inputs_by_description(about, frame))
    predicted = predict(kept, raw, CPU, prefix="p ").columns
    assert list(outputs) == [one["name"] for one in about["outputs"]]
    for one in about["outputs"]:
        found = outputs[one["name"]].numpy()
        assert str(found.dtype) == one["dtype"]
        assert ["batch", *found.shape[1:]] == one["shape"]
        task = one["task"]
        if one["holds"] == "class" and one["kind"] != "multilabel":
            names = np.array(one["classes"])
            assert (names[found] == predicted[f"p {task}"].astype(str)).all()
        elif one["kind"] == "multiclass":
            for code, name in enumerate(one["classes"]):
                assert (found[:, code] == predicted[f"p {task}.probability.{name}"]).all()
        elif one["kind"] == "binary":
            assert (found == predicted[f"p {task}.probability"]).all()
        else:
            ending = ".probability" if one["holds"] == "probability" else ""
            alone = len(one["columns"]) == 1
            names = [task] if alone else [f"{task}.{column}" for column in one["columns"]]
            for place, name in enumerate(names):
                assert (found[:, place] == predicted[f"p {name}{ending}"]).all()


def test_the_module_standardises_images_by_channel():
    image = {"kind": "image", "columns": ["x1"], "shape": [2, 3, 3], "standardise": "client"}
    experiment = plan(inputs={"x": {**image, "scale": 2.0}})
    pixels = np.random.default_rng(0).random((8, 2, 3, 3)).astype(np.float32)
    raw = table(x1=pixels)
    scaling = Scaling(np.array([0.1, 0.2]), np.array([3.0, 4.0]))
    kept = untrained(experiment, raw, Fitted({"x": scaling}))
    outputs = ExportedModel(kept)({"x": torch.from_numpy(pixels)})
    expected = predict(kept, raw, CPU).columns["predicted.y"]
    assert (outputs["y"][:, 0].numpy() == expected).all()


@every_case
@pytest.mark.parametrize("tasks", [("kind", "flag", "size"), ("kind", "size")])
def test_a_kept_model_is_the_one_that_was_trained(sharing, place, encoder, tasks):
    trunk = {"norm": "batch", "norm-parameters": "local"}
    loss = {"scaling": "running-mean", "scope": "local"}
    kept, trainer = shared_model(sharing, place, encoder, tasks, trunk=trunk, loss=loss)
    assert kept.tasks == tasks
    data = client_for(encoder, tasks=tasks)
    with torch.inference_mode():
        outputs, _ = kept.build()(data.splits["test"].inputs, tasks)
    for task, sums in trainer.evaluate(data, "test").items():
        kind = kept.experiment.tasks[task].kind
        loss_sum = ROW_LOSSES[kind](outputs[task], data.splits["test"].targets[task]).sum()
        assert float(loss_sum) == pytest.approx(sums["loss"][0], rel=1e-5)


def test_a_whole_model_has_its_heads_in_the_trunk(tmp_path):
    from client.kept_model import open_kept

    federation = plan().federation.model_copy(update={"algorithm": "whole-model"})
    experiment = plan().model_copy(update={"federation": federation})
    kept = untrained(experiment, table())
    write_state(tmp_path, kept)
    assert open_kept(tmp_path).tasks == ("y",)
    assert open_kept(tmp_path).arrays.keys() == kept.arrays.keys()


# The files ---------------------------------------------------------------------------------------


@needs_onnx
@pytest.mark.slow
def test_both_files_give_the_numbers_of_the_model(trained, kept, tmp_path):
    import onnxruntime

    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["export", str(trained), "--client", "a", "--out", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["model.json", "model.onnx", "model.pt2"]
    about = json.loads((out / "model.json").read_text())
    assert (about["run"], about["client"], about["round"]) == (kept.run, "a", 2)
    assert about["fingerprint"] == kept.experiment.fingerprint()
    frame = pd.read_csv(f"{kept.experiment.data.path}/a.csv")
    program = torch.export.load(out / "model.pt2").module()
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for rows in (1, 7, len(frame)):
        inputs = inputs_by_description(about, frame[:rows])
        expected = ExportedModel(kept)(inputs)
        assert largest_difference(expected, program(inputs)) <= TOLERANCE
        given = session.run(names, {name: x.numpy() for name, x in inputs.items()})
        found = {n: torch.from_numpy(x) for n, x in zip(names, given, strict=True)}
        assert largest_difference(expected, found) <= TOLERANCE


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharing", "encoder", "norm"),
    [
        (*case, norm)
        for case, norm in zip(
            itertools.product(SHARINGS, SHAPES),
            itertools.cycle(["batch", "group", "layer"]),
            strict=False,
        )
    ],
)
def test_every_architecture_can_be_exported(sharing, encoder, norm, tmp_path):
    trunk = {"norm": norm, "widths": [6], **({"norm-groups": 1} if norm == "group" else {})}
    place = next(iter(SHARINGS[sharing].task_parts), None)
    kept, _ = shared_model(sharing, place, encoder, ("kind", "size"), trunk=trunk)
    assert set(export(kept, tmp_path, ("torch", "onnx"))) == {"model.pt2", "model.onnx"}


@pytest.mark.slow
def test_an_exported_file_names_no_file_of_this_machine(tmp_path):
    export(untrained(plan(), table()), tmp_path, ("torch",))
    for place in {sys.prefix, *sys.path} - {""}:
        assert place.encode() not in (tmp_path / "model.pt2").read_bytes()


@pytest.mark.slow
def test_a_file_with_other_numbers_is_refused_and_not_left(monkeypatch, tmp_path):
    kept = untrained(plan(), table())
    right = export_module.FORMATS["torch"]

    def write(*arguments):
        run = right.write(*arguments)
        return lambda batch: {name: values * 1.001 for name, values in run(batch).items()}

    wrong = export_module.Format("model.pt2", write)
    monkeypatch.setitem(export_module.FORMATS, "torch", wrong)
    with pytest.raises(ExportError, match=r"model.pt2 must give the model's numbers to 1e-05, got"):
        export(kept, tmp_path / "out", ("torch",))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_is_one_line(monkeypatch, tmp_path):
    def write(*_):
        raise RuntimeError("no such operator\nand much more")

    unable = export_module.Format("model.pt2", write)
    monkeypatch.setitem(export_module.FORMATS, "torch", unable)
    with pytest.raises(ExportError) as raised:
        export(untrained(plan(), table()), tmp_path, ("torch",))
    assert str(raised.value) == (
        "this model cannot be exported with --format torch: RuntimeError: no such operator"
    )


def test_a_package_that_is_not_there_is_told_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(ExportError) as raised:
        export(untrained(plan(), table()), tmp_path / "out", ("torch", "onnx"))
    assert str(raised.value) == (
        "model.onnx needs onnx, onnxscript, onnxruntime: pip install 'fedmtl[export]'; or choose "
        "--format torch"
    )
    assert not (tmp_path / "out").exists()


def test_a_format_that_does_not_exist_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["export", ".", "--out", str(tmp_path), "--format", "tf"])
    assert (result.exit_code, result.stderr) == (
        2, "error: --format must be torch, onnx or both, got 'tf'\n"
    )  # fmt: skip


# The comparison ----------------------------------------------------------------------------------


def test_values_are_compared_with_the_largest_of_their_column():
    one = {"y": torch.tensor([[100.0, 1.0], [0.0, 2.0]])}
    other = {"y": torch.tensor([[101.0, 1.0], [0.0, 2.5]])}
    assert largest_difference(one, other) == pytest.approx(0.25)
    assert largest_difference(one, one) == 0.0


def test_classes_may_differ_where_they_are_as_likely():
    chance = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    one = {"k": torch.tensor([0, 0]), "k.probability": chance}
    assert largest_difference(one, {**one, "k": torch.tensor([1, 0])}) == 0.0
    assert largest_difference(one, {**one, "k": torch.tensor([0, 1])}) == pytest.approx(0.8)
    two = {"f": torch.tensor([1, 0]), "f.probability": torch.tensor([0.75, 0.5])}
    assert largest_difference(two, {**two, "f": torch.tensor([1, 1])}) == 0.0
    assert largest_difference(two, {**two, "f": torch.tensor([0, 0])}) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "found",
    [{}, {"z": torch.ones(2, 1)}, {"y": torch.ones(2)}, {"y": torch.ones(2, 1).double()}],
)
def test_outputs_that_are_not_the_same_are_infinitely_unlike(found):
    assert largest_difference({"y": torch.ones(2, 1)}, found) == float("inf")


def test_a_number_that_is_none_is_no_agreement():
    nothing = {"y": torch.tensor([[float("nan")]]), "z": torch.ones(1, 1)}
    assert np.isnan(largest_difference(nothing, nothing))
