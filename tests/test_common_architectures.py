"""Laws that hold for every sharing architecture, with either encoder, wherever tasks' parts are."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.stacked_model import find_obstacle
from client.training import Trainer
from common.agreement import Description
from common.architectures.table import SHARINGS
from common.dataset import ClientData, Rows
from common.experiment_file import load_experiment
from common.losses import ROW_LOSSES
from common.model import build_model
from common.sharing import shared_names, task_of
from common.wire import pack_arrays, pack_sums, unpack_arrays
from server.roster import Roster
from server.strategy import make_strategy
from tests.conftest import make_client, make_experiment

TASKS = ("kind", "flag", "size")
WEIGHTS = {"kind": 1.0, "flag": 0.5, "size": 2.0}
SHAPES = {"mlp": {"x": (8,)}, "cnn": {"x": (1, 2, 4), "y": (8,)}}
IMAGE = {"kind": "image", "columns": ["x"], "shape": [1, 2, 4]}
INPUTS = {"mlp": {}, "cnn": {"x": IMAGE, "y": {"columns": ["y*"]}}}
OTHERS = [name for name in SHARINGS if name != "hard"]
CASES = [
    (sharing, place, encoder)
    for sharing, encoder in itertools.product(SHARINGS, SHAPES)
    for place in SHARINGS[sharing].task_parts or (None,)
]
every_case = pytest.mark.parametrize(("sharing", "place", "encoder"), CASES)


def experiment_for(sharing, place, encoder, tasks=TASKS, trunk=None, **tables):
    settings = {"sharing": sharing, "architecture": encoder, "widths": [6, 5], **(trunk or {})}
    if place:
        settings["task-parts"] = place
    if encoder == "cnn":
        settings["channels"] = [3, 4]
    whole = make_experiment(trunk=settings, inputs=INPUTS[encoder], **tables)
    chosen = {task: whole.tasks[task] for task in tasks}
    return whole.model_copy(update={"tasks": chosen})


def client_for(encoder, name="a", rows=10, seed=0, tasks=TASKS) -> ClientData:
    data = make_client(name, rows, seed)

    def shape(rows: Rows) -> Rows:
        x = rows.inputs["x"]
        inputs = {"x": x.view(-1, 1, 2, 4), "y": x.flip(1)} if encoder == "cnn" else {"x": x}
        kept = [{t: part[t] for t in tasks} for part in (rows.targets, rows.labelled)]
        return Rows(inputs, *kept)

    return replace(data, splits={split: shape(rows) for split, rows in data.splits.items()})


def unlabel(data: ClientData, *tasks: str) -> ClientData:
    rows = data.train
    none = torch.zeros(len(rows), dtype=torch.bool)
    masked = Rows(rows.inputs, rows.targets, {**rows.labelled, **dict.fromkeys(tasks, none)})
    return replace(data, splits={**data.splits, "train": masked})


def trainer_for(experiment, encoder) -> Trainer:
    trainer = Trainer(experiment, SHAPES[encoder], torch.device("cpu"))
    trainer.load({}, {})
    return trainer


def values_of(trainer: Trainer) -> dict[str, np.ndarray]:
    return trainer.flat.read(trainer.flat.layout.slices)


def moved(trainer: Trainer, data: ClientData) -> set[str]:
    """Names of the parameters that training moves."""
    before = values_of(trainer)
    trainer.train(data, WEIGHTS, 1)
    after = values_of(trainer)
    assert all(np.isfinite(values).all() for values in after.values())
    return {name for name in before if (before[name] != after[name]).any()}


@every_case
def test_features_and_gradients_are_finite_for_any_set_of_tasks(sharing, place, encoder):
    model = build_model(experiment_for(sharing, place, encoder), SHAPES[encoder])
    rows = client_for(encoder).train
    for count in (1, 2, 3):
        for tasks in itertools.combinations(TASKS, count):
            labelled = {t: torch.arange(len(rows)) % (i + 2) == 0 for i, t in enumerate(tasks)}
            features = model.trunk(rows.inputs, tasks)
            assert list(features) == list(tasks)
            assert all(f.shape == (len(rows), model.trunk.width) for f in features.values())
            outputs, penalty = model(rows.inputs, tasks, labelled)
            total = sum(output.square().mean() for output in outputs.values())
            model.zero_grad()
            (total if penalty is None else total + penalty).backward()
            slopes = [p.grad for p in model.parameters() if p.grad is not None]
            assert all(torch.isfinite(slope).all() for slope in slopes)


@every_case
@pytest.mark.parametrize("lacking", ["unlabelled", "absent"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_tasks_own_parts_move_only_when_it_is_taught(sharing, place, encoder, lacking, optimiser):
    training = {"optimiser": optimiser, "lr": 0.01, "weight-decay": 0.1}
    trainer = trainer_for(experiment_for(sharing, place, encoder, training=training), encoder)
    if lacking == "absent":
        data = client_for(encoder, tasks=("flag",))
    else:
        data = unlabel(client_for(encoder), "kind", "size")
    names = moved(trainer, data)
    assert {task_of(name) for name in names} <= {None, "flag"}
    taught = {name for name in trainer.flat.layout.slices if task_of(name) == "flag"}
    assert {name for name in taught if "bias" not in name} <= names


@every_case
def test_the_order_of_tasks_changes_nothing_for_a_task(sharing, place, encoder):
    trained = []
    for tasks in (TASKS, TASKS[::-1]):
        trainer = trainer_for(experiment_for(sharing, place, encoder, tasks), encoder)
        trainer.train(client_for(encoder, tasks=tasks), WEIGHTS, 1)
        trained.append(values_of(trainer))
    assert trained[0].keys() == trained[1].keys()
    for name, values in trained[0].items():
        np.testing.assert_allclose(values, trained[1][name], rtol=1e-4, atol=1e-6)


@every_case
def test_a_task_more_leaves_the_first_parameters_of_the_others(sharing, place, encoder):
    fewer, more = (
        dict(
            build_model(
                experiment_for(sharing, place, encoder, tasks), SHAPES[encoder]
            ).named_parameters()
        )
        for tasks in (("kind", "size"), TASKS)
    )
    assert fewer.keys() <= more.keys()
    alike = [name for name, values in fewer.items() if values.shape == more[name].shape]
    assert all(torch.equal(fewer[name], more[name]) for name in alike)
    # Other shapes have only weights between tasks: of stitches, and the discriminator's.
    unlike = fewer.keys() - set(alike)
    assert all(".units." in name or "discriminator" in name for name in unlike)


def step_by_hand(experiment, encoder, data: ClientData) -> dict[str, np.ndarray]:
    """Plain PyTorch: one gradient step of a fresh model, on what the client's tasks may move."""
    model = build_model(experiment, SHAPES[encoder])
    parameters, rows = dict(model.named_parameters()), data.train
    outputs, penalty = model(rows.inputs, tuple(rows.targets), rows.labelled)
    loss = sum(
        WEIGHTS[t] * ROW_LOSSES[experiment.tasks[t].kind](outputs[t], rows.targets[t]).mean()
        for t in outputs
    )
    slopes = torch.autograd.grad(
        loss if penalty is None else loss + penalty, [*parameters.values()], allow_unused=True
    )
    stepped = {}
    for (name, value), slope in zip(parameters.items(), slopes, strict=True):
        moves = slope is not None and task_of(name) in (None, *data.tasks)
        lr = experiment.training.lr
        stepped[name] = (value - lr * slope if moves else value).detach().numpy()
    return stepped


@every_case
def test_one_round_equals_one_by_hand(sharing, place, encoder):
    training = {"batch-size": 50, "lr": 0.1}
    experiment = experiment_for(sharing, place, encoder, training=training)
    clients = [
        client_for(encoder, "anna", rows=6, seed=1, tasks=("kind", "flag")),
        client_for(encoder, "bert", rows=18, seed=2, tasks=("flag",)),
    ]
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    roster = Roster(
        experiment,
        node_ids={"anna": 5, "bert": 6},
        descriptions={
            d.name: Description(client=d.name, labelled=dict.fromkeys(d.tasks, len(d.train)))
            for d in clients
        },
        _by_id={5: "anna", 6: "bert"},
    )
    trainer = trainer_for(experiment, encoder)
    sent = trainer.flat.read(trainer.shared)
    strategy = make_strategy(experiment, roster, pack_arrays(sent))
    list(strategy.configure_train(1, pack_arrays(sent), ConfigRecord(), None))
    replies, own = [], {}
    for data in clients:
        trainer.load(sent, {})
        trainer.train(data, WEIGHTS, 1)
        content = {
            "arrays": pack_arrays(trainer.flat.read(trainer.shared)),
            "metrics": pack_sums(len(data.train), {}),
        }
        asked = Message(RecordDict(), roster.node_ids[data.name], "train")
        replies.append(Message(RecordDict(content), reply_to=asked))
        own[data.name] = trainer.flat.read(trainer.own_names(data.tasks))
    trunk = unpack_arrays(strategy.aggregate_train(1, replies)[0])
    expected = {data.name: step_by_hand(experiment, encoder, data) for data in clients}
    shares = {"anna": 0.25, "bert": 0.75}  # 6 and 18 rows
    first = dict(build_model(experiment, SHAPES[encoder]).named_parameters())
    for name, values in trunk.items():
        by_task = {"kind": {"anna": 1.0}, "size": {}}.get(task_of(name), shares)
        mean = sum(share * expected[client][name] for client, share in by_task.items())
        if not by_task:
            mean = first[name].detach().numpy()
        np.testing.assert_allclose(values, mean, rtol=1e-4, atol=1e-6)
    for client, arrays in own.items():
        for name, values in arrays.items():
            np.testing.assert_allclose(values, expected[client][name], rtol=1e-4, atol=1e-6)


@every_case
def test_what_travels_is_what_the_place_of_tasks_parts_says(sharing, place, encoder):
    experiment = experiment_for(sharing, place, encoder)
    names = [name for name, _ in build_model(experiment, SHAPES[encoder]).named_parameters()]
    trunk = [name for name in names if name.startswith("trunk.")]
    mine = [name for name in trunk if "task-" in name]
    travelling = shared_names(names, experiment)
    assert travelling == [name for name in trunk if place == "shared" or name not in mine]
    assert travelling
    assert bool(mine) == bool(SHARINGS[sharing].task_parts)
    default = experiment_for(sharing, None, encoder)
    if place in (None, *SHARINGS[sharing].task_parts[:1]):
        assert shared_names(names, default) == travelling
    whole = experiment_for(sharing, None, encoder, federation={"algorithm": "whole-model"})
    assert shared_names(names, whole) == names


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("encoder", SHAPES)
def test_dropout_depends_on_seed_client_and_round_alone(sharing, encoder):
    results = []
    for disturbance in (0, 1):
        torch.manual_seed(disturbance)
        trunk = {"dropout": 0.5, "norm": "layer"}
        experiment = experiment_for(sharing, None, encoder, trunk=trunk)
        trainer = trainer_for(experiment, encoder)
        trainer.train(client_for(encoder), WEIGHTS, 1)
        results.append(trainer.flat.values.clone())
    assert torch.equal(*results)


@every_case
def test_a_tasks_parameters_lie_in_three_stretches_at_most(sharing, place, encoder):
    """So a step takes few operations: the trunk's parts, the head's weight, its bias."""
    layout = trainer_for(experiment_for(sharing, place, encoder), encoder).flat.layout
    assert all(len(places) <= 3 for places in layout.segments.values())


@pytest.mark.parametrize("sharing", OTHERS)
def test_only_hard_sharing_has_a_stacked_form(sharing):
    assert "no stacked form" in find_obstacle(experiment_for(sharing, None, "mlp"))


@pytest.mark.parametrize("sharing", OTHERS)
def test_what_cannot_work_is_refused_in_a_line(sharing):
    def refusal(**tables):
        with pytest.raises(ValueError, match="trunk") as told:
            experiment_for(sharing, None, "mlp", **tables)
        return str(told.value)

    assert "trunk.widths must not be empty" in refusal(trunk={"widths": []})
    assert "trunk.options.nonsense" in refusal(trunk={"options": {"nonsense": 1}})
    one = make_experiment().model_dump(by_alias=True)
    one |= {"tasks": {"flag": {"kind": "binary"}}, "trunk": {"sharing": sharing}}
    with pytest.raises(ValueError, match="at least 2 tasks"):
        type(make_experiment()).model_validate(one)


@pytest.mark.parametrize(
    ("trunk", "federation", "reason"),
    [
        ({"task-parts": "home"}, {}, "is for trunk.sharing 'soft'"),
        ({"sharing": "soft", "task-parts": "home"}, {}, "must be 'shared'"),
        ({"sharing": "cross-stitch", "task-parts": "home"}, {}, "must be 'shared'"),
        (
            {"sharing": "mmoe", "task-parts": "home"},
            {"algorithm": "whole-model"},
            "is for a federation.algorithm that shares the trunk",
        ),
    ],
)
def test_a_place_for_tasks_parts_that_means_nothing_is_refused(trunk, federation, reason):
    with pytest.raises(ValueError, match=f"trunk.task-parts {reason}"):
        make_experiment(trunk=trunk, federation=federation)


@every_case
def test_every_task_reaches_the_last_layer_that_all_share(sharing, place, encoder):
    if not SHARINGS[sharing].has_common_parts:
        for loss in ({"weighting": "gradnorm"}, {"record": "gradients"}):
            with pytest.raises(ValueError, match="parameters that all tasks share"):
                experiment_for(sharing, place, encoder, loss=loss)
        return
    trainer = trainer_for(experiment_for(sharing, place, encoder), encoder)
    (weight,) = trainer.flat.last_shared_layer()
    for output in trainer.model(client_for(encoder).train.inputs, TASKS)[0].values():
        (slope,) = torch.autograd.grad(output.square().mean(), [weight], retain_graph=True)
        assert slope.abs().sum() > 0


PAGE = (Path(__file__).parent.parent / "docs" / "architectures.md").read_text()


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_page_has_a_section_and_the_right_counts_of_every_architecture(sharing):
    experiment = load_experiment("digits", [f"trunk.sharing={sharing}"])
    model = build_model(experiment, {"pixels": (1, 8, 8)})
    counts = {n: p.numel() for n, p in model.named_parameters() if n.startswith("trunk.")}
    sent = sum(counts[name] for name in shared_names(counts, experiment))
    assert f"| `{sharing}` | {sent:,} | {sum(counts.values()) - sent:,} |" in PAGE
    (section,) = [part for part in PAGE.split("\n## ") if part.startswith(f"{sharing}\n")]
    assert "**Shared**" in section
    assert ("`home` by default" in section) == ("home" in SHARINGS[sharing].task_parts)
