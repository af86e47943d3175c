"""Micro-batches give the gradient of the whole batch, whatever the model and the weighting."""

import itertools

import pytest
import torch

from client.micro_batches import Batch
from client.training import Trainer
from common.architectures.table import SHARINGS
from common.optimisers.table import OPTIMISERS
from common.weighting.table import WEIGHTINGS
from tests.conftest import make_client, make_experiment
from tests.test_client_training import with_labels

SHAPES = {"x": (8,)}
ONES = {"kind": 1.0, "flag": 0.5, "size": 2.0}
SHAREABLE = [name for name, sharing in SHARINGS.items() if not sharing.compares_rows]


def partly_labelled():
    """Ten rows, of which some have no label of "flag": whole pieces among them."""
    return with_labels(make_client(), "flag", torch.tensor([1, 0, 0, 0, 0, 0, 1, 1, 0, 1]) > 0)


def trained(tables, *, size, rounds=2, weighting="equal", **loss) -> Trainer:
    """Train by autograd, in batches of seven (and three) rows."""
    training = {"batch-size": 7, "epochs": 2, "balance": "none", **tables.pop("training", {})}
    if size is not None:
        training["micro-batch"] = size
    loss = {"weighting": weighting, **loss}
    experiment = make_experiment(training=training, loss=loss, **tables)
    trainer = Trainer(experiment, SHAPES, torch.device("cpu"))
    trainer.cohorts = None
    trainer.load({}, {})
    trainer.sums = [trainer.train(partly_labelled(), ONES, n) for n in range(1, rounds + 1)]
    return trainer


def assert_alike(one: Trainer, other: Trainer, tolerance=1e-5):
    torch.testing.assert_close(one.flat.values, other.flat.values, rtol=tolerance, atol=tolerance)
    assert not torch.equal(one.flat.values, one.initial)
    for mine, theirs in zip(one.sums, other.sums, strict=True):
        for task, name in ((t, n) for t in mine for n in mine[t]):
            assert mine[task][name] == pytest.approx(theirs[task][name], rel=1e-3, abs=1e-5)


def test_a_piece_counts_by_its_share_of_a_tasks_labels():
    batch = Batch.of(partly_labelled().train, 4)
    assert [part.place for part in batch.micro_batches] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert batch.counts == {"kind": 10, "flag": 4, "size": 10}
    assert [batch.share(part, "flag") for part in batch.micro_batches] == [0.25, 0.5, 0.25]
    assert [batch.share(part, "kind") for part in batch.micro_batches] == [0.4, 0.4, 0.2]


def test_no_more_rows_than_a_piece_has_are_forward_at_once(monkeypatch):
    seen = []
    forward = torch.nn.Linear.forward

    def count(layer, features):
        seen.append(len(features))
        return forward(layer, features)

    monkeypatch.setattr(torch.nn.Linear, "forward", count)
    trained({}, size=3, rounds=1)
    assert set(seen) == {3, 1}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scaling", ["none", "initial"])
def test_every_weighting_steps_as_if_the_batch_were_whole(weighting, scaling):
    settings = {"weighting": weighting, "scaling": scaling, "record": "gradients"}
    assert_alike(trained({}, size=3, **settings), trained({}, size=None, **settings), 1e-4)


@pytest.mark.parametrize("sharing", SHAREABLE)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_sharing_steps_as_if_the_batch_were_whole(sharing, dropout):
    trunk = {"widths": [6, 6], "sharing": sharing, "dropout": dropout, "norm": "layer"}
    found = [trained({"trunk": dict(trunk)}, size=size) for size in (3, None)]
    assert_alike(*found)


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
def test_every_optimiser_steps_once_a_batch(optimiser):
    training = {"optimiser": optimiser, "lr": 0.01, "clip-norm": 0.5, "l1": 0.01}
    found = [trained({"training": dict(training)}, size=size) for size in (2, None)]
    assert_alike(*found, 1e-4)


def test_a_penalty_on_parameters_counts_once():
    trunk = {"sharing": "soft", "options": {"strength": 0.5}}
    found = [trained({"trunk": dict(trunk)}, size=size) for size in (2, None)]
    assert_alike(*found)


def test_masks_of_a_second_look_are_drawn_anew():
    """FAMO computes the losses of a batch again after its step."""
    trunk = {"dropout": 0.4}
    found = [trained({"trunk": dict(trunk)}, size=s, weighting="famo") for s in (3, None)]
    assert_alike(*found)


@pytest.mark.parametrize("sharing", ["hard", "cross-stitch"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_clipped_sums_of_rows_are_the_same_in_pieces(sharing, dropout):
    pytest.importorskip("opacus")
    private = {"privacy": {"example-level": {"noise-multiplier": 0.5}}}
    shapes = itertools.product([3, None])
    found = []
    for (size,) in shapes:
        training = {"batch-size": 7, "micro-batch": size} if size else {"batch-size": 7}
        trunk = {"sharing": sharing, "dropout": dropout}
        experiment = make_experiment(training=training, trunk=trunk, **private)
        trainer = Trainer(experiment, SHAPES, torch.device("cpu"), simulated=True)
        trainer.cohorts = None
        trainer.load({}, {})
        trainer.sums = [trainer.train(partly_labelled(), ONES, 1)]
        found.append(trainer)
    assert_alike(*found)
