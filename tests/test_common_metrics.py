"""Metrics: sums add up to the figure of all rows together, and agree with torchmetrics."""

import math

import pytest
import torch
import torchmetrics.functional as tm

from common.dataset import TargetScale
from common.metrics import METRICS, add_sums, grouped_metric_sums, metric_sums
from common.sections.rows import METRICS_OF_KIND

TABLE = [(kind, metric) for kind, metrics in METRICS_OF_KIND.items() for metric in metrics]


def rows_of(kind: str, count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    width = {"multiclass": 4, "binary": 1, "multilabel": 3, "regression": 2}[kind]
    output = torch.randn(count, width, generator=generator)
    if kind == "multiclass":
        return output, torch.randint(0, 4, (count,), generator=generator)
    if kind == "binary":
        return output, torch.randint(0, 2, (count,), generator=generator).float()
    if kind == "multilabel":
        return output, torch.randint(0, 2, (count, 3), generator=generator).float()
    return output, output + torch.randn(count, 2, generator=generator)


@pytest.mark.parametrize(("kind", "metric"), TABLE)
def test_sums_have_the_length_they_announce(kind, metric):
    output, target = rows_of(kind, 9, 0)
    sums = metric_sums(metric, kind, output, target, None)
    assert len(sums) == METRICS[metric].length(output.shape[1])


@pytest.mark.parametrize(("kind", "metric"), [pair for pair in TABLE if pair[1] != "auroc"])
def test_two_clients_sums_give_the_figure_of_their_rows_together(kind, metric):
    parts = [rows_of(kind, 30, 1), rows_of(kind, 50, 2)]
    added = add_sums(*(metric_sums(metric, kind, *part, None) for part in parts))
    together = metric_sums(
        metric, kind, *(torch.cat(tensors) for tensors in zip(*parts, strict=True)), None
    )
    figure = METRICS[metric].figure
    assert figure(added) == pytest.approx(figure(together), rel=1e-9)


@pytest.mark.parametrize(("kind", "metric"), TABLE)
def test_figures_agree_with_torchmetrics(kind, metric):
    output, target = rows_of(kind, 200, 3)
    ours = METRICS[metric].figure(metric_sums(metric, kind, output, target, None))
    task = {"task": kind, "num_classes": 4, "num_labels": 3}
    truth = target.long() if kind != "regression" else target
    scores = output[:, 0].sigmoid() if kind == "binary" else output
    if kind == "multilabel":
        scores = output.sigmoid()
    expected = {
        "accuracy": lambda: tm.accuracy(scores, truth, **task, average="micro"),
        "f1": lambda: tm.f1_score(
            scores, truth, **task, average="macro" if kind != "binary" else "micro"
        ),
        "auroc": lambda: tm.auroc(scores, truth, task="binary"),
        "mse": lambda: tm.mean_squared_error(output, target),
        "rmse": lambda: tm.mean_squared_error(output, target, squared=False),
        "mae": lambda: tm.mean_absolute_error(output, target),
        "r2": lambda: tm.r2_score(output, target),
    }[metric]()
    assert ours == pytest.approx(float(expected), rel=1e-5)


def test_a_client_with_one_class_has_no_auroc_and_does_not_dilute_the_mean():
    one_class = metric_sums("auroc", "binary", torch.randn(5, 1), torch.ones(5), None)
    both = metric_sums(
        "auroc", "binary", torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0]), None
    )
    assert METRICS["auroc"].figure(add_sums(one_class, both)) == 1.0
    assert math.isnan(METRICS["auroc"].figure(one_class))


def test_a_standardised_target_is_measured_in_its_own_unit():
    scale = TargetScale(mean=torch.tensor([100.0]), deviation=torch.tensor([10.0]))
    sums = metric_sums("mae", "regression", torch.tensor([[1.0]]), torch.tensor([[0.5]]), scale)
    assert METRICS["mae"].figure(sums) == 5.0  # 110 against 105


@pytest.mark.parametrize(("kind", "metric"), TABLE)
@pytest.mark.parametrize("counts", [[7, 0, 30, 1], [0, 0]])
def test_many_clients_at_once_have_the_sums_that_each_has_alone(kind, metric, counts):
    parts = [rows_of(kind, count, seed) for seed, count in enumerate(counts)]
    output, target = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = torch.randperm(len(owners), generator=torch.Generator().manual_seed(0))
    grouped = grouped_metric_sums(
        metric, kind, output[order], target[order], owners[order], len(counts)
    )
    for own, (client_output, client_target) in zip(grouped, parts, strict=True):
        alone = [0.0] * METRICS[metric].length(output.shape[1])
        if len(client_output):
            alone = metric_sums(metric, kind, client_output, client_target, None)
        assert own.tolist() == pytest.approx(alone, rel=1e-12)
