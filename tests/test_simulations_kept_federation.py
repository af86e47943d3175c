"""What a run left, read back: each client gets the trunk of its own group."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from common.errors import CheckpointError
from common.experiment_file import load_experiment
from simulations.cli import app
from simulations.ensembles.ensemble import make_ensemble
from simulations.evaluation.evaluate import evaluate
from simulations.kept_federation import open_federation
from simulations.kept_run import open_run
from simulations.kept_trunk import open_trunk
from simulations.simulate import simulate

SETTINGS = [
    "federation.rounds=3",
    "partition.clients=4",
    "trunk.widths=[8]",
    "federation.strategy=clustered",
    "federation.strategy-options={every=1, split=0.01, merge=1.0, min-clients=1}",
]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A run that ends with three groups of clients."""
    folder = tmp_path_factory.mktemp("groups") / "run"
    simulate(load_experiment("digits", SETTINGS), engine="batched", out=folder)
    return folder


def groups_of(run):
    return json.loads((run / "results.json").read_text())["groups"]


def forget(run, client):
    """Let a run's strategy have seen no update of a client."""
    manifest = json.loads((run / "checkpoint" / "checkpoint.json").read_text())
    path = run / "checkpoint" / manifest["files"]["strategy"]
    state = load_file(path)
    names = [bytes(row).rstrip(b"\0").decode() for row in state["rule.names"]]
    state["rule.names"][names.index(client)] = 0
    state["rule.names"][names.index(client), 0] = ord("x")
    save_file(state, path)


def test_every_client_has_the_trunk_of_its_group(grouped):
    kept, groups = open_federation(grouped), groups_of(grouped)
    assert kept.group_count == len({*groups.values()}) == 3
    trunks = {client: kept.trunk_of(client) for client in groups}
    (name,) = [n for n in kept.trunk if n.endswith("0.weight")]
    for client, trunk in trunks.items():
        for other, of_other in trunks.items():
            is_same = np.array_equal(trunk[name], of_other[name])
            assert is_same == (groups[client] == groups[other]), (client, other)
    sizes = np.bincount([*groups.values()])
    ones = {group: trunks[client][name] for client, group in groups.items()}
    mean = sum(sizes[group] * trunk for group, trunk in ones.items()) / sizes.sum()
    np.testing.assert_allclose(kept.trunk[name], mean, rtol=1e-4, atol=1e-6)


def test_an_evaluation_tells_what_the_run_measured(grouped):
    told = evaluate(grouped)
    measured = json.loads((grouped / "results.json").read_text())["final"]["test"]["tasks"]
    for task, found in told["tasks"].items():
        assert found["figure"] == pytest.approx(measured[task][found["metric"]], rel=1e-4)
    assert not [note for note in told["notes"] if "in results.json" in note]
    assert "3 groups of clients, each with a trunk of its own." in told["notes"]


def test_ensembles_and_predictions_use_the_clients_own_group(grouped):
    figures = make_ensemble([grouped], by="clients")
    measured = json.loads((grouped / "results.json").read_text())["final"]["test"]["tasks"]
    for task, found in figures["tasks"].items():
        assert found["test"]["own"] == pytest.approx(measured[task][found["metric"]], rel=1e-4)
    kept = open_federation(grouped)
    for client in groups_of(grouped):
        arrays = open_run(grouped, client).arrays
        for name, array in kept.trunk_of(client).items():
            np.testing.assert_array_equal(arrays[name], array)


def test_a_client_of_no_group_is_told_in_a_line_and_evaluated_on_the_mean(grouped, tmp_path):
    run = shutil.copytree(grouped, tmp_path / "run")
    forget(run, "client-000")
    with pytest.raises(CheckpointError, match=r"one of the 3 groups .* got 'client-000'"):
        open_run(run, "client-000")
    kept = open_federation(run)
    assert kept.trunk_of("client-000") is kept.trunk
    (note,) = [text for text in evaluate(run)["notes"] if "groups of clients" in text]
    assert note.endswith("1 client of none, with the mean of all.")


def test_a_newcomer_gets_the_mean_and_is_told(grouped, tmp_path):
    kept = open_trunk(grouped)
    assert kept.groups == 3
    trunk = open_federation(grouped).trunk
    for name, array in kept.arrays.items():
        np.testing.assert_array_equal(array, trunk[name])
    result = CliRunner().invoke(
        app,
        ["personalize", str(grouped), "--client", "client-000", "--allow-participant",
         "--epochs", "1", "--rows", "20"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "ended with 3 groups of clients" in " ".join(result.stdout.split())


def test_one_group_is_the_trunk_itself(tmp_path):
    more = [*SETTINGS[:4], "federation.strategy-options={split=2.0}"]
    simulate(load_experiment("digits", more), engine="batched", out=tmp_path / "run")
    kept = open_federation(tmp_path / "run")
    assert (kept.group_count, kept.groups) == (1, {})


def test_a_strategy_file_of_another_kind_is_told(grouped, tmp_path):
    run = shutil.copytree(grouped, tmp_path / "run")
    manifest = json.loads((run / "checkpoint" / "checkpoint.json").read_text())
    path = run / "checkpoint" / manifest["files"]["strategy"]
    save_file({"rule.names": np.zeros((1, 1), np.uint8)}, path)
    with pytest.raises(CheckpointError, match="strategy 'clustered' cannot read"):
        open_federation(run)
