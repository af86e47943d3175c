"""Mixed precision: near float32, and not it; no step that float16 cannot hold."""

import logging

import pytest
import torch

from client.autograd import Taught
from client.flat import FlatParameters
from client.micro_batches import Batch
from client.precision import LARGEST, RAISED_AFTER, Backward, NotFiniteError, require_precision
from client.training import Trainer
from common.architectures.table import SHARINGS
from common.errors import ConfigError
from common.model import build_model
from common.weighting.table import WEIGHTINGS
from tests.conftest import make_client, make_experiment

SHAPES = {"x": (8,)}
ONES = {"kind": 1.0, "flag": 0.5, "size": 2.0}
COARSE = pytest.mark.parametrize("precision", ["bfloat16", "float16"])


def trainer_of(precision, trunk=None, loss=None, **training) -> Trainer:
    training = {"batch-size": 4, "lr": 0.05, "precision": precision, **training}
    experiment = make_experiment(training=training, trunk=trunk or {}, loss=loss or {})
    trainer = Trainer(experiment, SHAPES, torch.device("cpu"))
    trainer.cohorts = None
    trainer.load({}, {})
    return trainer


def trained(*settings, data=None, **training) -> Trainer:
    trainer = trainer_of(*settings, **training)
    trainer.sums = trainer.train(data or make_client(), ONES, 1)
    return trainer


def assert_near(coarse: Trainer, fine: Trainer):
    assert coarse.flat.values.dtype == torch.float32
    step = (fine.flat.values - fine.initial).norm()
    gap = (coarse.flat.values - fine.flat.values).norm()
    assert 1e-6 * step < gap < 0.05 * step  # coarser, and no more than that
    for task, sums in fine.sums.items():
        assert coarse.sums[task]["loss"] == pytest.approx(sums["loss"], rel=0.02)


@COARSE
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_every_sharing_trains_nearly_as_in_float32(precision, sharing, norm):
    trunk = {"sharing": sharing, "norm": norm, "widths": [6, 6], "dropout": 0.2}
    trunk["activation"] = "tanh"  # of ReLU, one that opens or not by rounding shows in so few rows
    # One step: rounding grows from step to step, under batch norm fastest.
    assert_near(*(trained(p, trunk, **{"batch-size": 10}) for p in (precision, "float32")))


@COARSE
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_trains_nearly_as_in_float32(precision, weighting):
    loss = {"weighting": weighting, "record": "gradients"}
    settings = {"batch-size": 10}
    assert_near(*(trained(p, {}, loss, **settings) for p in (precision, "float32")))


@COARSE
def test_pieces_clipping_and_recomputing_go_with_it(precision):
    settings = {"micro-batch": 2, "recompute-activations": True, "clip-norm": 0.3}
    found = [trained(p, {"dropout": 0.2}, **settings) for p in (precision, "float32")]
    assert_near(*found)


@COARSE
def test_evaluation_is_in_float32(precision):
    coarse, fine = trainer_of(precision), trainer_of("float32")
    assert coarse.evaluate(make_client(), "test") == fine.evaluate(make_client(), "test")


def backward_of(*, is_scaled=True):
    experiment = make_experiment()
    flat = FlatParameters(build_model(experiment, SHAPES))
    return Backward(flat, is_scaled=is_scaled), flat.shared_trunk()[0]


def half_slope(weight, size):
    """A loss whose gradient, `size` on one number, passes through float16."""
    return weight.to(torch.float16).float()[0, 0] * size


def test_a_gradient_too_small_for_float16_survives_by_its_scale():
    scaled, weight = backward_of()
    scaled.add(half_slope(weight, 2.0**-26))
    assert weight.grad[0, 0] == 2.0**-26
    plain, weight = backward_of(is_scaled=False)
    plain.add(half_slope(weight, 2.0**-26))
    assert weight.grad[0, 0] == 0


def test_a_gradient_that_overflows_is_computed_again_by_a_smaller_scale():
    backward, weight = backward_of()
    backward.add(half_slope(weight, 1.0))
    assert backward.scale == LARGEST / 2  # 65536 is more than float16 has
    backward.add(half_slope(weight, 100.0))
    assert weight.grad[0, 0] == 101.0  # and what was there stays
    assert backward.scale == 2.0**9
    assert backward.find(half_slope(weight, 200.0), [weight])[0][0, 0] == 200.0
    assert backward.scale == 2.0**8
    backward.begin()
    assert backward.scale == LARGEST


def test_the_scale_doubles_after_many_finite_gradients():
    backward, weight = backward_of()
    loss = half_slope(weight, 1e-3)
    for _ in range(RAISED_AFTER - 1):
        backward.find(loss, [weight])
    assert backward.scale == LARGEST
    assert backward.find(half_slope(weight, 0.25), [weight])[0][0, 0] == 0.25
    assert backward.scale == 2 * LARGEST


@pytest.mark.parametrize("size", [1e5, float("nan"), float("inf")])
def test_what_no_scale_makes_finite_is_told(size):
    backward, weight = backward_of()
    with pytest.raises(NotFiniteError):
        backward.add(half_slope(weight, size))


def spoilt(rows=(1,), value=1e6):
    """A client with rows that float16 cannot hold."""
    data = make_client(rows=12)
    data.train.inputs["x"][list(rows)] = value
    return data


@pytest.mark.parametrize("weighting", ["equal", "uncertainty", "gradnorm", "famo", "pcgrad"])
@pytest.mark.parametrize("size", [None, 2])
def test_a_step_that_is_not_finite_is_left_out_and_counted(weighting, size, caplog):
    caplog.set_level(logging.WARNING, "fedmtl.client")
    settings = {} if size is None else {"micro-batch": size}
    trunk = {"norm": "none" if size else "batch"}
    trainer = trained("float16", trunk, {"weighting": weighting}, data=spoilt(), **settings)
    assert "a: 1 steps left out in round 1" in caplog.text
    assert trainer.flat.values.isfinite().all()  # running statistics too
    assert not torch.equal(trainer.flat.values, trainer.initial)
    assert [sums["loss"][1] for sums in trainer.sums.values()] == [8.0] * 3
    assert all(torch.tensor(n).isfinite().all() for s in trainer.sums.values() for n in s.values())


def test_the_loss_of_a_step_that_is_left_out_is_not_remembered():
    trainer = trainer_of("float16", {}, {"scaling": "running-mean"})
    batch = Batch.of(make_client().train, None)
    for weight, is_taken in ((1e12, False), (1.0, True)):  # a finite loss, and no gradient of it
        weights = {**ONES, "size": weight}
        balance = trainer.balance(weights, {})
        assert trainer._autograd._find_gradient(batch, weights, balance, Taught()) is is_taken
        assert bool(balance.state["scale"].any()) is is_taken


def test_a_round_without_a_finite_step_leaves_everything_as_it_was(caplog):
    trunk = {"norm": "batch"}
    data = spoilt(range(12))
    data.train.inputs["x"][::2] *= -1
    trainer = trained("float16", trunk, data=data, optimiser="adam")
    assert "3 steps left out" in caplog.text
    assert torch.equal(trainer.flat.values, trainer.initial)


def test_a_device_without_a_precision_is_refused(monkeypatch):
    def refuse(device, dtype):
        raise RuntimeError("Current CUDA Device does not support bfloat16")

    monkeypatch.setattr(torch, "autocast", refuse)
    with pytest.raises(ConfigError, match=r"training\.precision must be one that device 'cpu' has"):
        require_precision("bfloat16", torch.device("cpu"))
    require_precision("float32", torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@COARSE
def test_on_a_gpu_as_well(precision):
    experiment = make_experiment(training={"precision": precision, "batch-size": 4})
    trainer = Trainer(experiment, SHAPES, torch.device("cuda"))
    trainer.load({}, {})
    trainer.train(make_client(), ONES, 1)
    assert trainer.flat.values.isfinite().all()
    assert not torch.equal(trainer.flat.values, trainer.initial)
