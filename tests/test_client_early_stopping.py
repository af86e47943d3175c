"""A client stops by its own validation rows, and goes back to its best epoch, on every engine."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.early_stopping import Stopping, weigh_all_losses, weigh_losses
from client.training import Trainer
from common.dataset import ClientData
from common.errors import ConfigError
from common.experiment_file import load_experiment
from simulations.report import write_report
from simulations.simulate import choose_engine, simulate
from tests.algorithm_runs import plan, write_clients
from tests.conftest import make_client, make_experiment, make_rows
from tests.test_simulations_engines import assert_same_figures, assert_same_trunk
from tests.test_wire_capture import run

SHAPES = {"x": (8,)}
WEIGHTS = {"kind": 1.0, "flag": 0.5, "size": 2.0}
FEW = {"training": {"lr": 0.3, "epochs": 12, "batch-size": 4}}


def follow(losses, patience, rows=None):
    """Walk through epochs whose losses are told, [epochs][K]; parameters are epochs' numbers."""
    told = iter(losses)
    counts = np.ones(len(losses[0])) if rows is None else np.array(rows, float)
    stopping = Stopping(lambda _: np.stack([np.array(next(told)), counts], 1), patience)
    values = torch.zeros(len(losses[0]), 1)
    for _ in losses:
        values += 1
        if not stopping.goes_on(values):
            break
    epochs = int(values[0, 0])
    stopping.finish(values)
    return epochs, stopping.done.tolist(), values[:, 0].tolist()


def test_it_stops_after_so_many_epochs_and_returns_to_the_best():
    assert follow([[3.0], [2.0], [2.5], [2.0], [1.0]], 2) == (4, [4], [2.0])
    assert follow([[3.0], [2.0], [2.5], [2.0], [1.0]], 3) == (5, [5], [5.0])
    assert follow([[1.0], [2.0], [3.0]], 9) == (3, [3], [1.0])  # all done, the first was best


def test_what_is_no_number_is_no_lower_but_the_first_epoch_counts():
    nan = float("nan")
    assert follow([[nan], [nan], [nan]], 2) == (3, [3], [1.0])
    assert follow([[nan], [5.0], [nan]], 2) == (3, [3], [2.0])


def test_clients_side_by_side_stop_each_by_itself():
    losses = [[1.0, 9.0, 5.0], [2.0, 8.0, 5.0], [0.0, 7.0, 5.0], [0.0, 7.5, 5.0]]
    # The first has stopped when its loss falls again; the third has no rows to judge by.
    found = follow(losses, 1, rows=[3, 3, 0])
    assert found == (4, [2, 4, 4], [1.0, 3.0, 4.0])


def test_the_loss_is_that_of_the_labelled_rows_weighted():
    alone = weigh_losses({"kind": [6.0, 3.0], "size": [4.0, 1.0]}, WEIGHTS)
    assert alone.tolist() == [[10.0, 4.0]]  # 1 * 2 + 2 * 4
    side = {"kind": torch.tensor([[6.0, 3.0], [0.0, 0.0]]), "size": torch.tensor([[4.0, 1.0]] * 2)}
    assert weigh_all_losses(side, WEIGHTS, 2).tolist() == [[10.0, 4.0], [8.0, 1.0]]
    assert weigh_all_losses({}, WEIGHTS, 2).tolist() == [[0.0, 0.0]] * 2
    assert weigh_losses({}, WEIGHTS)[0, 1] == 0


def trained(experiment, data, *, stacked, epochs=None):
    trainer = Trainer(experiment, SHAPES, torch.device("cpu"))
    if not stacked:
        trainer.cohorts = None
    trainer.load({}, {})
    sums = trainer.train(data, WEIGHTS, 1)
    return trainer.flat.values.clone(), sums, trainer


def validation_loss(trainer, data) -> float:
    sums = trainer.evaluate(data, "validation")
    return sum(WEIGHTS[t] * s["loss"][0] / s["loss"][1] for t, s in sums.items())


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_round_ends_as_one_of_its_best_epochs_would(stacked, seed):
    data = make_client(rows=12, seed=seed)
    tables = {k: dict(v) for k, v in FEW.items()}
    losses, ends = [], []
    for epochs in range(1, 13):
        tables["training"]["epochs"] = epochs
        values, _, trainer = trained(make_experiment(**tables), data, stacked=stacked)
        losses.append(validation_loss(trainer, data))
        ends.append(values)
    patience, best = 2, 0
    for place, loss in enumerate(losses):
        best = place if loss < losses[best] else best
        if place - best >= patience:
            break
    done = place + 1
    assert done < 12 or best < 11  # else the test would not tell
    experiment = make_experiment(training={**FEW["training"], "patience": patience})
    found, sums, _ = trained(experiment, data, stacked=stacked)
    torch.testing.assert_close(found, ends[best])
    assert sums["kind"]["epochs"] == [done, 1.0]
    assert sums["kind"]["loss"][1] == 12 * done


def test_without_validation_rows_all_epochs_are_done():
    data = make_client(rows=12)
    data = replace(data, splits={**data.splits, "validation": make_rows(0, 0)})
    experiment = make_experiment(training={**FEW["training"], "patience": 1})
    for stacked in (True, False):
        found, sums, _ = trained(experiment, data, stacked=stacked)
        plain, _, _ = trained(make_experiment(**FEW), data, stacked=stacked)
        torch.testing.assert_close(found, plain)
        assert sums["size"]["epochs"] == [12.0, 1.0]


@pytest.mark.parametrize(
    "trunk", [{}, {"norm": "batch"}, {"norm": "layer"}], ids=["plain", "batch norm", "layer norm"]
)
def test_by_hand_and_by_autograd_stop_alike(trunk):
    training = {"lr": 0.1, "epochs": 9, "batch-size": 6, "patience": 1}
    experiment = make_experiment(training=training, trunk={"widths": [6, 5], **trunk})
    data = ClientData(
        "a",
        {
            s: make_rows(n, i)
            for i, (s, n) in enumerate({"train": 18, "validation": 9, "test": 2}.items())
        },
    )
    by_hand, sums, _ = trained(experiment, data, stacked=True)
    by_autograd, expected, _ = trained(experiment, data, stacked=False)
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-4, atol=1e-5)
    assert sums["kind"]["epochs"] == expected["kind"]["epochs"]
    assert sums["kind"]["epochs"][0] < 9


SETTINGS = [
    "partition.clients=5",
    "partition.kind=dirichlet",
    "partition.by=digit",
    "federation.rounds=2",
    "trunk.widths=[8]",
    "training.epochs=8",
    "training.lr=0.03",
    "training.patience=1",
]
CASES = {
    "plain": [],
    "classes": ["training.balance=classes"],
    "personal": ["evaluation.model=personal"],
    "uneven": [
        "partition.task-skew=rotate",
        "partition.tasks-per-client=1",
        "training.epochs=14",
        "federation.rounds=1",
    ],
    "fedrep": ["federation.algorithm=fedrep"],
    "ditto": ["federation.algorithm=ditto"],
    "scheduled": [
        "training.step-schedule=cyclic",
        "training.step-schedule-options.half=20",
        "training.lr=0.2",
        "federation.rounds=1",
    ],
}


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]


@pytest.mark.parametrize(
    "case", ["plain", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "plain")]
)
def test_engines_stop_alike_and_tell_the_epochs(tmp_path, case):
    experiment = load_experiment("digits", [*SETTINGS, *CASES[case]])
    for engine in ("loopback", "batched"):
        simulate(experiment, engine=engine, out=tmp_path / engine)
    assert_same_trunk(tmp_path / "loopback", tmp_path / "batched", 2e-4)
    ours, theirs = lines_of(tmp_path / "loopback"), lines_of(tmp_path / "batched")
    for line, other in zip(ours, theirs, strict=True):
        assert_same_figures(line["train"], other["train"])
        done = line["train"]["tasks"]["digit"]["epochs"]
        most = {"fedrep": 18, "ditto": 16, "uneven": 14}.get(case, 8)
        assert 1 < done < most
    plain = load_experiment("digits", [*SETTINGS[:-1], *CASES[case]])
    simulate(plain, engine="batched", out=tmp_path / "plain")
    assert "epochs" not in lines_of(tmp_path / "plain")[0]["train"]["tasks"]["digit"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [["trunk.dropout=0.1"], ["loss.weighting=uncertainty"]])
def test_what_would_go_on_learning_in_a_stopped_client_trains_one_by_one(tmp_path, extra):
    experiment = load_experiment("digits", [*SETTINGS, *extra])
    assert choose_engine(experiment)[0] == "loopback"
    for workers in (1, 2):
        simulate(experiment, engine="loopback", workers=workers, out=tmp_path / str(workers))
    assert lines_of(tmp_path / "1") == lines_of(tmp_path / "2")
    assert lines_of(tmp_path / "1")[0]["train"]["tasks"]["digit"]["epochs"] < 8


def test_sums_are_added_securely_with_the_epochs_among_them(tmp_path):
    data = write_clients(tmp_path / "rows", lacking="")
    training = {"batch-size": 5, "lr": 0.2, "device": "cpu", "epochs": 6, "patience": 1}
    told = {}
    for name, privacy in {
        "open": {},
        "secure": {
            "secure-aggregation": {"max-norm": 50.0},
            "sums": "secure",
            "counts": "withheld",
        },
    }.items():
        experiment = plan(
            data,
            "joint",
            training=training,
            privacy=privacy,
            federation={"weight-by": "uniform"},
        )
        simulate(experiment, engine="loopback", out=tmp_path / name)
        told[name] = [
            line["train"]["tasks"]["size"]["epochs"] for line in lines_of(tmp_path / name)
        ]
    assert told["secure"][0] == pytest.approx(told["open"][0], abs=0.01)


def test_the_epochs_leave_with_the_sums_only_where_clients_may_stop(tmp_path):
    def names(*settings):
        tap = run(tmp_path / str(len(settings)), "training.epochs=2", *settings)
        sums = [r.content.metric_records for r in tap.sent if r.metadata.message_type == "train"]
        return {key.split("/")[-1] for own in sums for record in own.values() for key in record}

    stopping = names("training.patience=1")
    assert "epochs" in stopping
    assert names() == stopping - {"epochs"}


def test_the_report_tells_the_epochs(tmp_path):
    experiment = load_experiment("digits", SETTINGS)
    simulate(experiment, engine="batched", out=tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    assert "Clients may stop early: in the last round they did" in page


REFUSED = {
    "training.patience needs validation rows, got 1 with data.validation = 0": [
        "data.validation=0"
    ],
    "training.patience needs training.epochs above 1, got 1 with 1 epoch": ["training.epochs=1"],
    "training.patience must be left out under [privacy.example-level], got 1": [
        "privacy.example-level.epsilon=6"
    ],
    "training.patience must be left out under federation.algorithm 'scaffold'": [
        "federation.algorithm=scaffold",
        "training.optimiser=sgd",
    ],
}


@pytest.mark.parametrize("line", REFUSED)
def test_where_it_cannot_be_it_is_refused_in_a_line(line):
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits", [*SETTINGS, *REFUSED[line]])
    assert line in str(caught.value)
