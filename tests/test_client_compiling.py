"""A compiled step trains as an uncompiled one does; what cannot be compiled is told in a line."""

import logging

import pytest
import torch

from client.compiling import Compiled
from client.training import Trainer
from common.errors import ConfigError
from tests.conftest import make_client, make_experiment

# PyTorch's compiler uses what PyTorch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
SHAPES = {"x": (8,)}
WEIGHTS = {"kind": 1.0, "flag": 0.5, "size": 2.0}


def trained(norm: str, *, compiled: bool, stacked: bool, weighting="equal", **own) -> torch.Tensor:
    training = {"optimiser": "adam", "lr": 0.01, "batch-size": 4, "compile": compiled, **own}
    trunk = {"widths": [6, 5], "norm": norm}
    if not stacked:
        training["optimiser"] = "asgd"  # which has no stacked form
    experiment = make_experiment(training=training, trunk=trunk, loss={"weighting": weighting})
    trainer = Trainer(experiment, SHAPES, torch.device("cpu"))
    assert stacked or trainer.cohorts is None
    trainer.load({}, {})
    trainer.train(make_client(rows=11), WEIGHTS, 1)
    return trainer.flat.values


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_compiled_step_trains_as_an_uncompiled_one(norm, stacked, caplog):
    caplog.set_level(logging.INFO, "fedmtl.client")
    ours = trained(norm, compiled=True, stacked=stacked)
    theirs = trained(norm, compiled=False, stacked=stacked)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert "torch.compile: the" in caplog.text
    assert "to compile" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["uncertainty", "famo", "gradnorm", "mgda"])
def test_every_kind_of_weighting_trains_compiled(weighting):
    ours = trained("none", compiled=True, stacked=True, weighting=weighting)
    theirs = trained("none", compiled=False, stacked=True, weighting=weighting)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_setting_is_named(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/compiler"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    compiled = Compiled(lambda values: (values * 2).relu().sum(), "a sum")
    with pytest.raises(ConfigError, match=r"training\.compile must be false.*compiler"):
        compiled(torch.ones(3))


COARSE = {
    "bfloat16": {"precision": "bfloat16"},
    "float16, micro-batches": {"precision": "float16", "micro-batch": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", COARSE)
def test_precisions_and_pieces_train_compiled(settings):
    """Fused operations round less often: the two agree to the precision's own rounding."""
    own = COARSE[settings]
    ours, theirs = (
        trained("layer", compiled=compiled, stacked=False, **own) for compiled in (True, False)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
    assert not torch.equal(theirs, trained("layer", compiled=False, stacked=False))


def test_a_process_may_compile_many_models():
    """Beyond the limit, PyTorch goes on uncompiled."""
    from torch._dynamo import config

    Compiled(lambda values: values, "nothing")
    assert config.recompile_limit >= 64
