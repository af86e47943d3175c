"""Whole runs of the strategies for many tasks, and of the affinity that is measured beside them."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.experiment_file import load_experiment
from simulations.simulate import simulate

QUICK = ["trunk.widths=[8]", "federation.rounds=6", "training.lr=0.02"]
SKEWED = [*QUICK, "partition.task-skew=rotate"]
RULES = {
    "fedmgda+": ["federation.strategy=conflict-averse"],
    "upgrad": [
        "federation.strategy=conflict-averse",
        "federation.strategy-options.aggregator=upgrad",
    ],
    "pcgrad": [
        "federation.strategy=conflict-averse",
        "federation.strategy-options.aggregator=pcgrad",
    ],
    "task-aware": ["federation.strategy=task-aware"],
    "task-aware, mgda": [
        "federation.strategy=task-aware",
        "federation.strategy-options.across=mgda",
    ],
    "clustered": ["federation.strategy=clustered", "federation.strategy-options.every=2"],
    "clustered tasks": [
        "federation.strategy=clustered",
        "federation.strategy-options.every=2",
        "federation.strategy-options.by=tasks",
    ],
}


def run(folder, settings, engine="loopback", base="digits", **more):
    return simulate(load_experiment(base, settings), engine=engine, out=folder, **more)


def trunk(folder):
    manifest = json.loads((folder / "checkpoint" / "checkpoint.json").read_text())
    arrays = load_file(folder / "checkpoint" / manifest["files"]["trunk"])
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


class Stopped(Exception):  # noqa: N818: it is no error
    pass


def stop_after(number):
    def listen(line):
        if line["round"] == number:
            raise Stopped

    return listen


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, rule):
    settings = [*SKEWED, *RULES[rule], "federation.clients-per-round=7",
                "federation.checkpoint-interval-s=0", "federation.affinity-every=2"]  # fmt: skip
    whole = run(tmp_path / "whole", settings)
    with pytest.raises(Stopped):
        run(tmp_path / "broken", settings, listener=stop_after(3))
    resumed = run(tmp_path / "broken", settings, resume=True)
    np.testing.assert_array_equal(trunk(tmp_path / "broken"), trunk(tmp_path / "whole"))
    for part in ("final", "affinity", "groups"):
        assert resumed.get(part) == whole.get(part), part
    assert whole["affinity"]["rounds"] == 4  # 1, 2, 4, 6


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_engines_agree(tmp_path, rule):
    settings = [*SKEWED, *RULES[rule], "federation.affinity-every=1"]
    found = {e: run(tmp_path / e, settings, engine=e) for e in ("loopback", "batched")}
    one, other = (trunk(tmp_path / engine) for engine in found)
    assert np.linalg.norm(one - other) < 1e-4 * np.linalg.norm(one)
    tasks = [np.array(r["affinity"]["tasks"]["matrix"]) for r in found.values()]
    np.testing.assert_allclose(*tasks, atol=1e-3)
    assert found["loopback"].get("groups") == found["batched"].get("groups")


@pytest.mark.slow
def test_measuring_affinity_changes_nothing(tmp_path):
    never = run(tmp_path / "never", [*SKEWED, "federation.affinity-every=0"])
    always = run(tmp_path / "always", [*SKEWED, "federation.affinity-every=1"])
    np.testing.assert_array_equal(trunk(tmp_path / "never"), trunk(tmp_path / "always"))
    assert never["final"] == always["final"]
    assert never["affinity"] is None
    assert never["fingerprint"] == always["fingerprint"]


def test_clients_with_disjoint_tasks_train_one_trunk_and_their_affinity_shows(tmp_path):
    affinity = run(tmp_path / "run", [*SKEWED, "federation.affinity-every=1"])["affinity"]
    assert affinity["tasks"]["names"] == ["digit", "parity", "ink"]
    tasks = np.array(affinity["tasks"]["matrix"])
    # Clients of one task pull more alike than clients of different tasks.
    apart = tasks[~np.eye(3, dtype=bool)]
    assert tasks.diagonal().min() > apart.max()
    assert len(affinity["clients"]["names"]) == 10


@pytest.mark.slow
def test_clusters_send_every_client_its_own_trunk(tmp_path):
    """Disjoint tasks end in a group each: three trunks, of clients 0 3 6 9, 1 4 7 and 2 5 8."""
    settings = [*SKEWED, *RULES["clustered"], "federation.rounds=10", "trunk.widths=[32]"]
    groups = run(tmp_path / "run", settings)["groups"]
    named = [groups[f"client-{n:03}"] for n in range(10)]
    assert named == [named[n % 3] for n in range(10)]
    assert len(set(named)) == 3


@pytest.mark.slow
@pytest.mark.skipif(
    "FEDMTL_DATA" not in os.environ,
    reason="FEDMTL_DATA names no folder with the public data sets",
)
def test_clusters_are_the_two_soils_of_the_mine_fields(tmp_path):
    groups = run(tmp_path / "run", ["federation.strategy=clustered"], base="landmine")["groups"]
    foliated = {groups[f"field-{n:02}"] for n in range(1, 16)}
    bare = {groups[f"field-{n:02}"] for n in range(16, 30)}
    assert len(foliated) == len(bare) == 1
    assert foliated != bare
