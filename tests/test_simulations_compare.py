"""The comparison: its arithmetic by hand, its contenders on the same splits."""

import json
import math
from dataclasses import replace

import pytest
import torch

from client.training import Trainer
from common.agreement import Agreement
from common.architectures.table import SHARINGS
from common.errors import CheckpointError, ConfigError
from common.experiment_file import load_experiment
from simulations import baselines
from simulations.baselines import (
    only_task,
    pool,
    train_centralised,
    train_local,
    train_single_task,
    validation_loss,
)
from simulations.compare import FEDERATED, ORDER, WHOLE_MODEL, compare
from simulations.gains import delta_m
from tests.conftest import make_client, make_experiment

MANUAL = {"loss": {"weighting": "manual"}, "federation": {"rounds": 2}}
QUICK = ["federation.rounds=2", "partition.clients=2", "trunk.widths=[8]"]


def test_delta_m_by_hand():
    experiment = make_experiment()  # accuracy, accuracy, rmse: the last is better low
    yardstick = {"kind": 0.5, "flag": 0.8, "size": 2.0}
    figures = {"kind": 0.6, "flag": 0.8, "size": 1.0}
    # (+20 % + 0 % + 50 %) / 3
    assert delta_m(experiment, figures, yardstick) == pytest.approx(70 / 3)
    assert delta_m(experiment, yardstick, yardstick) == 0.0


def test_every_contender_is_compared_on_the_same_test_rows(tmp_path):
    result = compare(load_experiment("digits", QUICK), range(2), tmp_path / "out")
    assert list(result["contenders"]) == list(ORDER)
    for contender in result["contenders"].values():
        assert set(contender["tasks"]) == {"digit", "parity", "ink"}
        assert all(len(task["seeds"]) == 2 for task in contender["tasks"].values())


def test_a_folder_that_exists_is_refused_before_anything_trains(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr("simulations.compare.compare_once", pytest.fail)
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(CheckpointError, match="choose another --out"):
            compare(load_experiment("digits", QUICK), [0], out)


def test_the_whole_model_needs_every_task_everywhere(tmp_path):
    settings = [*QUICK, "partition.task-skew=rotate", "partition.tasks-per-client=2"]
    result = compare(load_experiment("digits", settings), [0], tmp_path / "out")
    assert WHOLE_MODEL not in result["contenders"]


def test_task_parts_are_for_the_federated_trunk_and_a_task_alone_shares_with_nobody(tmp_path):
    settings = [*QUICK, "trunk.sharing=cgc", "trunk.task-parts=shared"]
    result = compare(load_experiment("digits", settings), [0], tmp_path / "out")
    assert list(result["contenders"]) == list(ORDER)
    plain = compare(load_experiment("digits", QUICK), [0], tmp_path / "hard")
    alone = "single-task local"
    assert result["contenders"][alone] == plain["contenders"][alone]


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_pooled_model_judges_a_client_with_one_task_as_one_with_all(sharing):
    experiment = make_experiment(trunk={"sharing": sharing}, federation={"rounds": 1})
    agreement = Agreement(columns={"x": tuple("abcdefgh")}, shapes={"x": (8,)})
    whole = make_client("a")
    part = replace(only_task(whole, "flag"), name="b")
    with_none_to_train = {**part.splits, "train": part.train.select(slice(0, 0))}
    clients = [whole, replace(part, splits=with_none_to_train)]
    sums = train_centralised(experiment, agreement, clients)
    for figures, alone in zip(
        sums["a"]["test"]["flag"].values(), sums["b"]["test"]["flag"].values(), strict=True
    ):
        assert alone == pytest.approx(figures)


def test_a_model_without_a_trunk_has_nothing_to_federate_but_the_whole(tmp_path):
    settings = [*QUICK, "trunk.widths=[]", "federation.algorithm=whole-model"]
    result = compare(load_experiment("digits", settings), [0], tmp_path / "out")
    assert list(result["contenders"]) == [name for name in ORDER if name != FEDERATED]


def test_seeds_in_processes_give_what_seeds_in_turn_give(tmp_path):
    experiment = load_experiment("digits", QUICK)
    in_turn = compare(experiment, range(2), tmp_path / "a")
    assert compare(experiment, range(2), tmp_path / "b", jobs=2) == in_turn


def test_pooling_keeps_every_row_and_masks_what_a_client_lacks():
    whole, partial = make_client("a"), only_task(make_client("b", seed=1), "flag")
    pooled = pool([whole, partial]).train
    assert len(pooled) == 20
    assert pooled.labelled["flag"].sum() == 20
    assert pooled.labelled["size"].tolist() == [True] * 10 + [False] * 10


def test_one_task_keeps_only_its_labelled_rows():
    data = make_client()
    data.train.labelled["flag"][:4] = False
    single = only_task(data, "flag")
    assert single.tasks == ("flag",)
    assert len(single.train) == 6
    torch.testing.assert_close(single.train.inputs["x"], data.train.inputs["x"][4:])


def test_the_validation_loss_weighs_rows_not_clients():
    sums = [
        {"validation": {"flag": {"loss": [1.0, 1.0]}}},
        {"validation": {"flag": {"loss": [9.0, 3.0]}, "size": {"loss": [4.0, 2.0]}}},
    ]
    # 2 * (1 + 9) / 4 + 3 * 4 / 2
    assert validation_loss(sums, {"flag": 2.0, "size": 3.0}) == 11.0


def agreed(clients):
    shapes = {"x": (8,)}
    return Agreement(columns={"x": tuple(clients[0].train.inputs)}, shapes=shapes)


def test_alone_a_task_trains_alike_whatever_its_weight_among_others():
    clients = [make_client()]
    results = [
        train_single_task(make_experiment(tasks=weights, **MANUAL), agreed(clients), clients)
        for weights in ({}, {"size": {"kind": "regression", "weight": 0.01}})
    ]
    assert results[0] == results[1]


def test_a_model_that_diverges_is_read_before_it_does(monkeypatch):
    losses = iter([2.0, 1.0, float("nan"), float("nan")])
    monkeypatch.setattr(baselines, "validation_loss", lambda *_: next(losses))
    counts = iter(range(99))
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: next(counts) // 2 + 1)
    experiment = make_experiment(federation={"rounds": 4})
    clients = [make_client()]
    sums = train_local(experiment, agreed(clients), clients)
    assert sums["a"] == {"validation": 2, "test": 2}  # of the second round


def test_without_validation_rows_patience_does_not_stop_training():
    data = make_client()
    data.splits["validation"] = data.splits["validation"].select(torch.arange(0))
    ends = [
        train_local(make_experiment(federation={"rounds": 4}, **extra), agreed([data]), [data])
        for extra in ({}, {"evaluation": {"patience": 1}})
    ]
    assert ends[0] == ends[1]


def test_each_seed_and_the_whole_are_written_as_they_are_done(tmp_path):
    result = compare(load_experiment("digits", QUICK), range(2), tmp_path / "out")
    for seed in range(2):
        figures = json.loads((tmp_path / "out" / f"seed-{seed}" / "comparison.json").read_text())
        for name, contender in result["contenders"].items():
            for task, spread in contender["tasks"].items():
                assert figures[name][task] == spread["seeds"][seed]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == result


def test_a_comparison_without_test_rows_is_refused_before_anything_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.compare.compare_once", pytest.fail)
    with pytest.raises(ConfigError, match=r"^data.test must be above 0 for a comparison"):
        compare(load_experiment("digits", [*QUICK, "data.test=0"]), [0], tmp_path / "out")


def test_a_federation_that_diverges_does_not_end_the_comparison(tmp_path):
    diverging = [*QUICK, "training.optimiser=sgd", "training.lr=1e6"]
    result = compare(load_experiment("digits", diverging), [0], tmp_path / "out")
    assert math.isnan(result["contenders"][FEDERATED]["tasks"]["digit"]["mean"])
