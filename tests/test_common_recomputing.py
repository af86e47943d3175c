"""Activations that are computed twice change no step, and are not kept."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from client.training import Trainer
from common.architectures.table import SHARINGS
from common.encoder import Encoder
from common.model import build_model
from tests.conftest import make_client, make_experiment

SHAPES = {"x": (8,)}
ONES = {"kind": 1.0, "flag": 0.5, "size": 2.0}


def trained(trunk, *, again, loss=None, shapes=SHAPES, data=None, **training) -> Trainer:
    training = {"batch-size": 4, "epochs": 2, "recompute-activations": again, **training}
    experiment = make_experiment(training=training, trunk=trunk, loss=loss or {})
    trainer = Trainer(experiment, shapes, torch.device("cpu"))
    trainer.cohorts = None
    trainer.load({}, {})
    for number in (1, 2):
        trainer.train(data or make_client(), ONES, number)
    return trainer


def assert_same(trunk, **more):
    twice, once = (trained(dict(trunk), again=again, **more) for again in (True, False))
    assert torch.equal(twice.flat.values, once.flat.values)
    assert not torch.equal(once.flat.values, once.initial)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_every_sharing_takes_the_same_steps_to_the_last_bit(sharing, norm):
    """The masks of dropout are the same again, and running statistics move once."""
    assert_same(
        {"widths": [6, 6, 6, 6, 6], "sharing": sharing, "norm": norm, "dropout": 0.3}
        | ({"norm-groups": 2} if norm == "group" else {})
    )


@pytest.mark.parametrize("weighting", ["uncertainty", "gradnorm", "famo", "pcgrad"])
def test_several_backward_passes_compute_again_each_time(weighting):
    assert_same({"widths": [6, 6, 6], "dropout": 0.3}, loss={"weighting": weighting})


def test_pieces_of_a_batch_are_computed_again_by_themselves():
    assert_same({"widths": [6, 6, 6], "dropout": 0.3}, **{"micro-batch": 3})


def kept_bytes(model, inputs, tasks) -> int:
    """Count what is in memory between forward and backward, the outputs included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        outputs, _ = model(inputs, tasks)
    sum(output.sum() for output in outputs.values()).backward()
    return sum(event.self_cpu_memory_usage for event in record.events())


def test_a_deep_trunk_keeps_what_stands_between_its_stretches():
    """Nine layers of 32 for 64 rows: three stretches, so three vectors a row and no more."""
    trunk = {"widths": [32] * 9, "activation": "tanh"}
    kept = {}
    for again in (True, False):
        experiment = make_experiment(trunk=trunk, training={"recompute-activations": again})
        model = build_model(experiment, SHAPES).train()
        kept[again] = kept_bytes(model, {"x": torch.randn(64, 8)}, ("kind",))
    row = 64 * 32 * 4
    assert kept[False] >= 9 * row
    assert 3 * row <= kept[True] <= 4 * row


def test_an_encoder_of_another_kind_names_its_stages_only():
    class Halves(Encoder):
        """Halves its inputs, twice; counts how often."""

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.stage_shapes, self.width, self.calls = [((2,),), ((2,),)], 2, []
            self.weight = torch.nn.Parameter(torch.tensor(0.5))

        def compute_stage(self, stage, state, inputs):
            self.calls.append(stage)
            return ((state[0] if state else inputs["x"]) * self.weight,)

        def finish(self, state, inputs):
            return state[0]

    encoder = Halves()
    encoder.recomputes = True
    features = encoder.train()({"x": torch.tensor([[4.0, 8.0]])})
    assert features.tolist() == [[1.0, 2.0]]
    assert encoder.calls == [0, 1]
    features.sum().backward()
    assert encoder.weight.grad == 12.0  # d/dw 12 w^2
    assert encoder.calls == [0, 1, 1, 0]
    encoder.eval()({"x": torch.tensor([[4.0, 8.0]])}).sum().backward()
    assert encoder.calls == [0, 1, 1, 0, 0, 1]  # evaluation computes once
