"""Loss weighting and gradient balancing in local training, against autograd by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

from client.batches import epoch_order, label_patterns, shuffle_key
from client.training import Trainer
from common.dataset import ClientData
from common.losses import ROW_LOSSES
from common.model import build_model
from common.weighting.scaling import SCALINGS
from common.weighting.table import WEIGHTINGS
from tests.balances import COMBINATIONS, GRADIENT_METHODS
from tests.conftest import make_client, make_experiment
from tests.test_client_training import with_labels, without_task

SHAPES = {"x": (8,)}
ONES = {"kind": 1.0, "flag": 1.0, "size": 1.0}
EVERY = [*COMBINATIONS, *((method, "none") for method in GRADIENT_METHODS)]
both_forms = pytest.mark.parametrize("form", ["stacked", "autograd"])
every = pytest.mark.parametrize(("weighting", "scaling"), EVERY)


def experiment_of(weighting="equal", training=None, **loss):
    """One step a round, unless told otherwise: ten rows in one batch."""
    training = {"batch-size": 10, "lr": 0.1, **(training or {})}
    return make_experiment(loss={"weighting": weighting, **loss}, training=training)


def trainer_of(experiment, form="stacked") -> Trainer:
    """A trainer in its stacked form, where there is one, or by autograd."""
    trainer = Trainer(experiment, SHAPES, torch.device("cpu"))
    if form == "autograd":
        trainer.cohorts = None
    trainer.load({}, {})
    return trainer


def losses_of(model, rows) -> dict[str, torch.Tensor]:
    outputs, _ = model(rows.inputs, tuple(rows.targets))
    kinds = {"kind": "multiclass", "flag": "binary", "size": "regression"}
    return {t: ROW_LOSSES[k](outputs[t], rows.targets[t]).mean() for t, k in kinds.items()}


def shuffled(data: ClientData):
    """The only batch of a first round."""
    rows = data.train
    key, patterns = shuffle_key(0, data.name), label_patterns(rows.labelled)
    order = epoch_order(len(rows), patterns, "tasks", key, 1, 0)
    return rows.select(torch.from_numpy(order))


def trained(weighting, data=None, rounds=1, **loss) -> Trainer:
    trainer = trainer_of(experiment_of(weighting, **loss))
    for number in range(1, rounds + 1):
        trainer.train(data or make_client(), ONES, number)
    return trainer


@both_forms
def test_equal_weights_measured_step_by_step_train_as_equal_weights_do(form):
    settings = {"training": {"batch-size": 4, "epochs": 2, "optimiser": "adam"}}
    plain = make_experiment(**settings)
    recorded = make_experiment(**settings, loss={"record": "gradients"})
    left, right = trainer_of(plain), trainer_of(recorded, form)
    weights = {"kind": 1.0, "flag": 0.5, "size": 2.0}
    sums = [t.train(make_client(), weights, 1) for t in (left, right)]
    torch.testing.assert_close(left.flat.values, right.flat.values, rtol=1e-5, atol=1e-6)
    for task, weight in weights.items():
        assert sums[1][task]["weight"] == [pytest.approx(6 * weight), 6.0]  # 2 epochs, 3 batches
        assert sums[0][task]["loss"] == pytest.approx(sums[1][task]["loss"])


FIRST_STEP = {  # what a first step's weights are, by paper
    "equal": lambda losses, kinds: [1.0] * 3,
    "uncertainty": lambda losses, kinds: [0.5 if k == "size" else 1.0 for k in kinds],
    "dwa": lambda losses, kinds: [1.0] * 3,
    "gradnorm": lambda losses, kinds: [1.0] * 3,
    "imtl-l": lambda losses, kinds: [1.0] * 3,
    "geometric": lambda losses, kinds: np.prod(losses) ** (1 / 3) / 3 / losses,
    "famo": lambda losses, kinds: 1 / losses / (1 / losses).sum(),
    "smooth-tchebycheff": lambda losses, kinds: 1 / losses,
}


@pytest.mark.parametrize("scaling", [name for name in SCALINGS if name != "log"])
@pytest.mark.parametrize("weighting", FIRST_STEP)
@both_forms
def test_a_step_goes_down_the_weighted_sum(weighting, scaling, form):
    experiment, data = experiment_of(weighting, scaling=scaling, record="gradients"), make_client()
    trainer, model = trainer_of(experiment, form), build_model(experiment, SHAPES)
    sums = trainer.train(data, ONES, 1)
    losses = losses_of(model, shuffled(data))
    numbers = np.array([loss.item() for loss in losses.values()])
    scales = np.ones(3) if scaling == "none" else numbers
    weights = np.array(FIRST_STEP[weighting](numbers / scales, list(losses))) / scales
    shared = [p for name, p in model.named_parameters() if name.startswith("trunk.")]
    for (task, loss), weight in zip(losses.items(), weights, strict=True):
        assert sums[task]["weight"] == [pytest.approx(weight, rel=1e-4), 1.0]
        slopes = torch.autograd.grad(loss, shared, retain_graph=True)
        norm = torch.cat([slope.reshape(-1) for slope in slopes]).norm().item()
        if weighting != "gradnorm":  # which measures the last shared layer
            assert sums[task]["norm"] == [pytest.approx(norm, rel=1e-4), 1.0]
            assert sums[task]["pull"] == [pytest.approx(norm * weight, rel=1e-4), 1.0]
    if weighting != "gradnorm":
        slopes = [torch.autograd.grad(x, shared, retain_graph=True) for x in losses.values()]
        flat = torch.stack([torch.cat([part.reshape(-1) for part in own]) for own in slopes])
        between = torch.cosine_similarity(flat[:, None], flat[None], dim=2)
        for place, task in enumerate(losses):
            others = [between[place, k].item() for k in range(len(losses)) if k != place]
            assert sums[task]["cosine"] == [pytest.approx(np.mean(others), rel=1e-3), 1.0]
    sum(w * loss for w, loss in zip(weights, losses.values(), strict=True)).backward()
    for name, parameter in model.named_parameters():
        expected = (parameter - 0.1 * parameter.grad).detach()
        found = torch.tensor(trainer.flat.read([name])[name])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def aggregator_of(method: str):
    """Torchjd's own, with our defaults."""
    made = {
        "upgrad": aggregation.UPGrad,
        "dualproj": aggregation.DualProj,
        "mgda": aggregation.MGDA,
        "pcgrad": aggregation.PCGrad,
        "gradvac": aggregation.GradVac,
        "cagrad": lambda: aggregation.CAGrad(c=0.4),
        "nash-mtl": lambda: aggregation.NashMTL(3),
        "imtl-g": aggregation.IMTLG,
        "aligned-mtl": aggregation.AlignedMTL,
        "fairgrad": lambda: aggregation.FairGrad(alpha=1.0),
        "config": aggregation.ConFIG,
        "graddrop": aggregation.GradDrop,
    }
    return made[method]()


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_the_trunk_steps_along_the_combined_gradient_and_each_head_along_its_own(
    method, monkeypatch
):
    experiment, data = experiment_of(method), make_client()
    trainer, model = trainer_of(experiment), build_model(experiment, SHAPES)
    monkeypatch.setattr("client.autograd.derive_key", lambda *_: 5)  # the round's seed
    sums = trainer.train(data, ONES, 1)
    rows = shuffled(data)
    features = model.trunk.encoder({"x": rows.inputs["x"]})
    kinds = {"kind": "multiclass", "flag": "binary", "size": "regression"}
    losses = {
        task: ROW_LOSSES[kind](model.heads[f"task-{task}"](features), rows.targets[task]).mean()
        for task, kind in kinds.items()
    }
    expected = losses_of(model, rows)
    for task, loss in losses.items():
        torch.testing.assert_close(loss, expected[task])
    shared = [p for name, p in model.named_parameters() if name.startswith("trunk.")]
    own = [list(model.heads[f"task-{task}"].parameters()) for task in losses]
    mtl_backward(list(losses.values()), features=features, tasks_params=own, shared_params=shared)
    torch.manual_seed(5)
    jac_to_grad(shared, aggregator_of(method))
    for name, parameter in model.named_parameters():
        after = (parameter - 0.1 * parameter.grad).detach()
        found = torch.tensor(trainer.flat.read([name])[name])
        torch.testing.assert_close(found, after, rtol=1e-3, atol=1e-5)
    assert all(np.isfinite(sums[task]["pull"]).all() for task in losses)


@pytest.mark.parametrize("method", ["mgda", "graddrop"])
def test_gradients_of_scaled_losses_are_recorded_as_they_are_unscaled(method):
    plain, scaled = (
        trainer_of(experiment_of(method, scaling=scaling)) for scaling in ("none", "initial")
    )
    data = make_client()
    numbers = np.array([loss.item() for loss in losses_of(plain.model, shuffled(data)).values()])
    found = [trainer.train(data, ONES, 1) for trainer in (plain, scaled)]
    for task, loss in zip(found[0], numbers, strict=True):
        assert found[1][task]["norm"] == pytest.approx(found[0][task]["norm"], rel=1e-4)
        norm, weight, pull = (found[1][task][name][0] for name in ("norm", "weight", "pull"))
        assert pull == pytest.approx(norm * weight, rel=1e-4)
        assert weight <= 1.01 * max(1.0, 1 / loss) * 3


@both_forms
def test_famo_learns_from_a_second_look_at_the_same_batch(form):
    experiment, data = experiment_of("famo"), make_client()
    trainer, model = trainer_of(experiment, form), build_model(experiment, SHAPES)
    rows = shuffled(data)
    before = losses_of(model, rows)
    sums = trainer.train(data, ONES, 1)
    model.load_state_dict(
        {n: torch.tensor(trainer.flat.read([n])[n]) for n, _ in model.named_parameters()}
    )
    after = losses_of(model, rows)
    fallen = torch.stack([before[task].log() - after[task].log() for task in before])
    slope = (fallen - fallen.mean()) / 3  # softmax of zeros has slope (I - 1/3) / 3
    for task, direction in zip(before, slope.sign().tolist(), strict=True):
        # Adam's first step is lr long, against the slope.
        assert sums[task]["state-logit"] == [pytest.approx(-0.025 * direction * 10, rel=1e-3), 10]


@both_forms
def test_gradnorm_measures_the_last_layer_that_all_tasks_share(form):
    data, norms = make_client(), {}
    for layer in ("last", "trunk"):
        experiment = experiment_of("gradnorm", options={"layer": layer})
        model = build_model(experiment, SHAPES)
        sums = trainer_of(experiment, form).train(data, ONES, 1)
        weights = [p for n, p in model.named_parameters() if n.startswith("trunk.")]
        watched = [p for p in weights if p.dim() > 1][-1:] if layer == "last" else weights
        for task, loss in losses_of(model, shuffled(data)).items():
            slopes = torch.autograd.grad(loss, watched, retain_graph=True)
            norms[task] = torch.cat([slope.reshape(-1) for slope in slopes]).norm().item()
            assert sums[task]["norm"] == [pytest.approx(norms[task], rel=1e-4), 1.0]


@every
@both_forms
def test_a_client_without_a_task_trains_as_if_nobody_had_it(weighting, scaling, form):
    data = without_task(make_client(), "flag")
    masked = with_labels(make_client(), "flag", torch.zeros(10, dtype=torch.bool))
    before = trainer_of(experiment_of(weighting, scaling=scaling), form)
    start = before.flat.read(["heads.task-flag.0.weight"])["heads.task-flag.0.weight"]
    states = []
    for client in (data, masked):
        trainer = trainer_of(experiment_of(weighting, scaling=scaling), form)
        reported = trainer.train(client, ONES, 1)
        assert set(reported.get("flag", {})) <= {"loss"}
        assert torch.isfinite(trainer.flat.values).all()
        head = trainer.flat.read(["heads.task-flag.0.weight"])["heads.task-flag.0.weight"]
        np.testing.assert_array_equal(head, start)
        states.append(trainer.flat.values.clone())
    torch.testing.assert_close(*states)


@every
@both_forms
def test_batches_without_labels_of_some_tasks_or_of_any_spoil_nothing(weighting, scaling, form):
    data = make_client()
    for number, task in enumerate(ONES):
        data = with_labels(data, task, (torch.arange(10) % 3 != number) & (torch.arange(10) > 3))
    settings = {"batch-size": 1, "balance": "none", "optimiser": "adam"}
    trainer = trainer_of(experiment_of(weighting, settings, scaling=scaling), form)
    for number in (1, 2):
        sums = trainer.train(data, ONES, number)
    assert torch.isfinite(trainer.flat.values).all()
    for task, mask in data.train.labelled.items():
        assert sums[task]["loss"][1] == mask.sum()
        if "weight" in sums[task]:
            assert sums[task]["weight"][1] == mask.sum()  # steps that taught it
            assert np.isfinite(sums[task]["weight"][0])


@every
@both_forms
def test_one_round_is_a_matter_of_seed_client_and_round_alone(weighting, scaling, form):
    results = []
    for disturbance in (0, 1):
        torch.manual_seed(disturbance)
        training = {"batch-size": 4}
        trainer = trainer_of(experiment_of(weighting, training, scaling=scaling), form)
        trainer.train(make_client("other", seed=disturbance), ONES, 3)
        trainer.load({}, {})  # whoever trained before leaves nothing behind
        trainer.train(make_client(), ONES, 1)
        results.append(trainer.flat.values.clone())
    assert torch.equal(*results)


@both_forms
def test_what_a_client_keeps_to_itself_comes_back_with_its_heads(form):
    experiment = experiment_of("uncertainty", scope="local")
    data, trainer = make_client(), trainer_of(experiment, form)
    sums = trainer.train(data, ONES, 1)
    assert not any(name.startswith("state-") for name in sums["kind"])
    own = {name: array.copy() for name, array in trainer.own_arrays(data.tasks).items()}
    shared = trainer.flat.read(trainer.shared)
    trainer.train(data, ONES, 2)
    once = trainer.flat.values.clone()
    trainer.load({}, {})  # another client in between
    trainer.train(make_client("b", seed=3), ONES, 1)
    trainer.load(shared, own)
    trainer.train(data, ONES, 2)
    assert torch.equal(trainer.flat.values, once)
    trainer.load(shared, {n: a for n, a in own.items() if n.startswith("heads.")})
    trainer.train(data, ONES, 2)
    assert not torch.equal(trainer.flat.values, once)


@both_forms
def test_a_shared_memory_is_where_a_round_starts_from(form):
    experiment, data = experiment_of("uncertainty"), make_client()
    memory = {task: {"log-variance": 1.0} for task in ONES}
    sums = trainer_of(experiment, form).train(data, ONES, 1, memory)
    factors = {"kind": 1.0, "flag": 1.0, "size": 0.5}
    for task, factor in factors.items():
        assert sums[task]["weight"] == [pytest.approx(factor * np.exp(-1.0)), 1.0]


def test_a_task_that_a_round_does_not_teach_is_not_reported():
    data = without_task(make_client(), "flag")
    sums = trainer_of(experiment_of("uncertainty")).train(data, ONES, 1)
    assert set(sums) == {"kind", "size"}


@pytest.mark.filterwarnings("ignore:.*autocast:UserWarning")
@pytest.mark.parametrize("weighting", [n for n in WEIGHTINGS if n not in ("equal", "manual")])
def test_training_under_autocast_is_training_in_coarser_numbers(weighting):
    experiment, data = experiment_of(weighting), make_client()
    # The stacked form writes into buffers of one type.
    plain, coarse = trainer_of(experiment, "autograd"), trainer_of(experiment, "autograd")
    plain.train(data, ONES, 1)
    with torch.autocast("cpu", torch.bfloat16):
        coarse.train(data, ONES, 1)
    step = (plain.flat.values - plain.initial).norm()
    assert (coarse.flat.values - plain.flat.values).norm() < 0.2 * step


@pytest.mark.parametrize(("weighting", "scaling"), COMBINATIONS)
def test_both_forms_take_the_same_steps_and_learn_the_same(weighting, scaling):
    data = with_labels(make_client(), "flag", torch.arange(10) % 3 > 0)
    training = {"batch-size": 4, "epochs": 2}
    found = []
    for form in ("stacked", "autograd"):
        trainer = trainer_of(experiment_of(weighting, training, scaling=scaling), form)
        trainer.train(data, ONES, 1)
        memory = {task: {} for task in ONES}
        found.append((trainer.train(data, ONES, 2, memory), trainer.flat.values.clone()))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
    for task, sums in found[0][0].items():
        for name, numbers in sums.items():
            assert found[1][0][task][name] == pytest.approx(numbers, rel=1e-3, abs=1e-5)


def test_garbage_of_an_unlabelled_row_reaches_no_weight():
    data = make_client()
    mask = torch.arange(10) % 2 == 0
    poisoned = with_labels(data, "size", mask)
    poisoned.train.targets["size"][~mask] = float("nan")
    for weighting in ("gradnorm", "famo", "mgda"):
        trainer = trained(weighting, replace(poisoned), rounds=2, record="gradients")
        assert torch.isfinite(trainer.flat.values).all()


def test_cross_entropy_here_is_pytorchs():
    """The oracle above uses our row losses; they are PyTorch's."""
    rows = shuffled(make_client())
    model = build_model(experiment_of(), SHAPES)
    outputs, _ = model(rows.inputs, tuple(rows.targets))
    losses = losses_of(model, rows)
    torch.testing.assert_close(
        losses["kind"], F.cross_entropy(outputs["kind"], rows.targets["kind"])
    )
    torch.testing.assert_close(losses["size"], F.mse_loss(outputs["size"], rows.targets["size"]))
