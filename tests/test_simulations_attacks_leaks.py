"""Label leakage and task inference succeed where they must, and fail where they must."""

from dataclasses import replace

import numpy as np
import pytest

from common.errors import ConfigError
from common.privacy.settings import SecureAggregation
from simulations.attacks import labels, task_inference
from simulations.attacks.intervals import auc, auc_with_interval, bootstrap, share
from simulations.attacks.labels import leak_labels, shares_by_head
from simulations.attacks.leak_results import (
    describe_labels,
    describe_tasks,
    tasks_notes,
    write_labels,
    write_tasks,
)
from simulations.attacks.observed import observe
from simulations.attacks.shadows import Probe, auxiliary_rows, class_counts
from simulations.attacks.task_inference import infer_tasks
from simulations.attacks.truth import client_data, trained_rows
from simulations.attacks.wire import Wire
from tests.recorded import ONE_ROW, SGD, record

NOISE = [
    "federation.weight-by=uniform",
    "privacy.client-level.noise=client",
    "privacy.client-level.noise-multiplier=30",
]
WHOLE = "federation.algorithm=whole-model"
UNLIKE = [
    "partition.kind=dirichlet", "partition.by=digit", "partition.alpha=0.1", "partition.clients=24",
]  # fmt: skip
SINGLE = ["partition.clients=24", "partition.task-skew=rotate", "training.lr=0.05"]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Clients with a task each."""
    return record(tmp_path_factory.mktemp("single") / "run", *SGD, *SINGLE, engine="batched")


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """Clients whose classes are unlike; heads stay home."""
    return record(tmp_path_factory.mktemp("unlike") / "run", *SGD, *UNLIKE, engine="batched")


def secure(wire: Wire) -> Wire:
    privacy = wire.experiment.privacy.model_copy(update={"secure_aggregation": SecureAggregation()})
    return replace(wire, experiment=wire.experiment.model_copy(update={"privacy": privacy}))


def test_a_head_that_travels_gives_the_label_of_a_single_row_away(tmp_path):
    wire = record(tmp_path / "run", *ONE_ROW, WHOLE)
    for leak in leak_labels(wire, 1):
        assert leak.by == "head"
        assert leak.accuracy["attack"]["value"] == 1
        assert leak.accuracy["attack"]["count"] == 5
        np.testing.assert_array_equal(leak.found, leak.truth)


def test_a_head_that_travels_gives_the_counts_of_many_rows_away(tmp_path):
    """Exactly, in one small step, to who knows what the model predicts of such rows."""
    few = ["partition.clients=90", 'data.clients=["client-003", "client-004"]', WHOLE]
    few += ["training.batch-size=64", "training.lr=0.01"]
    wire = record(tmp_path / "run", *SGD, *few)
    rows, observed = trained_rows(wire, 1, "client-003"), observe(wire, 1, "client-003")
    assert len(rows) > 8
    for task in ("digit", "parity"):
        counts = class_counts(wire.experiment, rows, task)
        shares = shares_by_head(observed, task, rows)
        np.testing.assert_allclose(shares * len(rows), counts, atol=0.1)


def test_a_trunk_alone_tells_more_of_the_labels_than_the_prior(unlike):
    digit, parity = leak_labels(unlike, 2, labels.Settings(shadows=60))
    assert digit.by == parity.by == "probe"
    assert digit.accuracy["attack"]["low"] > digit.accuracy["prior"]["high"]


def test_much_noise_hides_the_labels(tmp_path):
    wire = record(tmp_path / "run", *SGD, *UNLIKE, *NOISE, engine="batched")
    digit, _ = leak_labels(wire, 1, labels.Settings(shadows=60))
    assert digit.accuracy["attack"]["value"] < digit.accuracy["prior"]["high"]


def test_a_trunk_update_tells_which_task_a_client_trains(single):
    leak = infer_tasks(single, 2, task_inference.Settings(shadows=60))
    assert leak.truth.sum(1).tolist() == [1] * 24
    for found in leak.figures["probe"]["tasks"].values():
        assert found["auc"]["low"] > 0.7
        assert found["accuracy"]["low"] > found["base-rate"]
    assert leak.parts is None


def test_much_noise_hides_the_tasks(tmp_path):
    wire = record(tmp_path / "run", *SGD, *SINGLE, *NOISE, engine="batched")
    leak = infer_tasks(wire, 1, task_inference.Settings(shadows=60))
    for found in leak.figures["probe"]["tasks"].values():
        assert found["auc"]["low"] < 0.5


def test_parts_of_tasks_that_stand_still_tell_which_tasks_a_client_lacks(tmp_path):
    soft = ["trunk.sharing=soft", "trunk.task-parts=shared", "trunk.widths=[6]"]
    few = ["partition.clients=6", "partition.task-skew=rotate", "federation.rounds=1"]
    wire = record(tmp_path / "run", *SGD, *soft, *few)
    names = tuple(wire.clients(1))
    parts = task_inference.tasks_from_parts(wire, 1, names, tuple(wire.experiment.tasks))
    held = [client_data(wire, name).tasks for name in names]
    assert parts is not None
    assert parts.tolist() == [[task in own for task in wire.experiment.tasks] for own in held]


def test_the_attackers_rows_are_nobodys_and_have_all_labels(single):
    own = auxiliary_rows(single)
    trained = {
        row.numpy().tobytes()
        for name in single.clients(1)
        for row in client_data(single, name).train.inputs["pixels"]
    }
    assert not any(row.numpy().tobytes() in trained for row in own.inputs["pixels"])
    assert all(bool(mask.all()) for mask in own.labelled.values())
    assert set(own.labelled) == set(single.experiment.tasks)


def test_what_is_summed_securely_is_not_probed(single, unlike):
    with pytest.raises(ConfigError, match="which tasks a client trains is hidden"):
        infer_tasks(secure(single), 1)
    with pytest.raises(ConfigError, match=r"is hidden by privacy\.secure-aggregation"):
        leak_labels(secure(unlike), 1)


def test_a_head_that_stays_home_cannot_be_asked(unlike):
    with pytest.raises(ConfigError, match="--by head needs heads that travel"):
        leak_labels(unlike, 1, labels.Settings(by="head"))


def test_tasks_are_told_apart_where_there_are_two(unlike):
    tasks = {"digit": unlike.experiment.tasks["digit"]}
    alone = replace(unlike, experiment=unlike.experiment.model_copy(update={"tasks": tasks}))
    with pytest.raises(ConfigError, match="the experiment has one"):
        infer_tasks(alone, 1)


def test_figures_and_pages_are_written(single, unlike, tmp_path):
    settings = labels.Settings(shadows=10)
    figures = describe_labels(unlike, 1, settings, leak_labels(unlike, 1, settings))
    paths = write_labels(tmp_path, figures)
    own = task_inference.Settings(shadows=10)
    told = describe_tasks(single, 1, own, infer_tasks(single, 1, own))
    paths += write_tasks(tmp_path, told)
    names = [f"attack-{kind}.{end}" for kind in ("labels", "tasks") for end in ("json", "html")]
    assert [path.name for path in paths] == names
    assert "prior" in paths[1].read_text()
    assert "privacy.counts" in paths[3].read_text()  # these clients told their tasks


def test_a_probe_finds_what_is_linear_in_the_direction_of_an_update():
    random = np.random.default_rng(0)
    updates = random.normal(size=(80, 200)).astype(np.float32)
    updates[:, 0] *= 12
    lengths = np.linalg.norm(updates, axis=1)
    answers = (updates[:, 0] / lengths)[:, None]
    probe = Probe(updates[:60], answers[:60])
    np.testing.assert_allclose(probe.answer(updates[60:] * 7), answers[60:], atol=0.15)


def test_intervals_hold_their_values_and_shrink_with_rows():
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    truths = np.array([False, False, True, True])
    found = auc_with_interval(scores, truths)
    assert found["value"] == auc(scores[truths], scores[~truths]) == 0.75
    assert found["low"] < 0.5 < found["high"]
    perfect = auc_with_interval(np.arange(40.0), np.arange(40) > 19)
    assert (perfect["value"], perfect["high"]) == (1.0, 1.0)
    assert 0.8 < perfect["low"] < 1
    assert auc_with_interval(scores, truths & False)["value"] is None
    assert share(5, 10)["low"] < share(50, 100)["low"] < 0.5
    described = bootstrap([1.0, 2.0, 3.0, 4.0])
    assert 1 <= described["low"] < described["value"] == 2.5 < described["high"] <= 4
    assert bootstrap([1.0])["low"] is None


@pytest.mark.parametrize(("auc", "told"), [(None, True), (0.7, False)])
def test_a_missing_auc_has_its_reason(auc, told):
    figures = {"figures": {"probe": {"tasks": {"pose": {"auc": {"value": auc}}}}}, "told": False}
    assert any("No AUC of a task that all" in line for line in tasks_notes(figures)) == told
