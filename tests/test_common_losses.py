"""Losses: by hand, and a task without a label pulls on nothing."""

import math

import pytest
import torch

from common.errors import ShapeError
from common.losses import ROW_LOSSES, combine_losses


def test_cross_entropy_of_equal_logits_is_the_log_of_the_classes():
    losses = ROW_LOSSES["multiclass"](torch.zeros(2, 4), torch.tensor([0, 3]))
    torch.testing.assert_close(losses, torch.full((2,), math.log(4)))


def test_binary_and_multilabel_of_zero_logits_are_log_two():
    half = torch.full((1,), math.log(2))
    torch.testing.assert_close(ROW_LOSSES["binary"](torch.zeros(1, 1), torch.ones(1)), half)
    torch.testing.assert_close(ROW_LOSSES["multilabel"](torch.zeros(1, 3), torch.ones(1, 3)), half)


def test_regression_is_the_mean_over_outputs_of_the_squared_error():
    losses = ROW_LOSSES["regression"](torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))
    assert losses.tolist() == [5.0]  # (1 + 9) / 2


def test_the_loss_is_the_weighted_sum_over_present_tasks():
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert combine_losses(losses, {"a": 1.0, "b": 10.0, "absent": 99.0}).item() == 32.0


def test_no_present_task_is_refused():
    with pytest.raises(ShapeError, match="no task"):
        combine_losses({}, {"a": 1.0})
