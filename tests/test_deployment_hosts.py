"""Three hosts with addresses, disks and data of their own equal the loopback engine."""

import json
from pathlib import Path

import numpy as np
import pytest

from simulations.simulate import simulate
from tests.hosts import Federation, lines_of, rounds_of, trunk_of
from tests.lossy_loopback import heads_at_home
from tests.namespaces import why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made"),
]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
ROUNDS = 10
CASES = {
    "school": {"a": "school-001", "b": "school-003"},
    # Two tasks, of which one hospital has no labels of one.
    "heart_disease": {"a": "cleveland", "b": "hungarian"},
}


def assert_close(left: object, right: object, where: str = "") -> None:
    """Compare nested figures: numbers to float tolerance, the rest exactly."""
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_close(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, float) and isinstance(right, float):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6, nan_ok=True), where
    else:
        assert left == right, where


def figures(run: Path) -> list[dict]:
    """Each round's line without its times and bytes."""
    return [
        {k: v for k, v in line.items() if not k.endswith("_s") and k != "traffic"}
        for line in lines_of(run)
    ]


@pytest.mark.parametrize("source", CASES)
def test_ten_rounds_on_three_hosts_equal_ten_rounds_in_one_process(tmp_path, source):
    with Federation(tmp_path / "hosts", source, CASES[source]) as federation:
        federation.start_nodes()
        run = federation.submit(f"federation.rounds={ROUNDS}")
        assert run.wait(600) == 0, run.said()
        (folder,) = federation.run_folders()
        assert rounds_of(folder) == list(range(1, ROUNDS + 1)), run.said()
        experiment = federation.experiment(f"federation.rounds={ROUNDS}")
        simulate(experiment, engine="loopback", out=tmp_path / "loopback")

        ours, theirs = trunk_of(folder), trunk_of(tmp_path / "loopback")
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_allclose(ours[name], values, **CLOSE, err_msg=name)
        assert_close(figures(folder), figures(tmp_path / "loopback"))
        results = [
            json.loads((path / "results.json").read_text())
            for path in (folder, tmp_path / "loopback")
        ]
        for key in ("final", "best", "clients", "rounds", "stopped", "warnings"):
            assert_close(results[0][key], results[1][key], key)
        heads = heads_at_home(tmp_path / "loopback")
        for node in federation.nodes.values():
            kept = node.heads(folder, ROUNDS)
            assert kept.keys() == heads[node.client].keys()
            assert any("head" in name for name in kept)
            for name, values in heads[node.client].items():
                np.testing.assert_allclose(kept[name], values, **CLOSE, err_msg=name)


# What travels beside the trunk passes the guard; what stays home lies in the state folder, also
# what the last evaluation fitted; a strategy's own trunks reach the nodes they are meant for.
FEDERATED = {
    "scaffold": ["federation.algorithm=scaffold"],
    "ditto": ["federation.algorithm=ditto", "federation.strategy=fedavgm"],
    "fedbabu": ["federation.algorithm=fedbabu"],
    "heads per task": ["federation.heads=per-task", "federation.strategy=clustered"],
}


def test_algorithms_and_strategies_on_three_hosts_equal_those_in_one_process(tmp_path):
    with Federation(tmp_path / "hosts", "school", CASES["school"]) as federation:
        federation.start_nodes()
        done: set[Path] = set()
        for name, own in FEDERATED.items():
            settings = ["federation.rounds=3", "training.momentum=0", *own]
            run = federation.submit(*settings)
            assert run.wait(600) == 0, run.said()
            (folder,) = set(federation.run_folders()) - done
            done.add(folder)
            alone = tmp_path / name
            simulate(federation.experiment(*settings), engine="loopback", out=alone)
            ours, theirs = trunk_of(folder), trunk_of(alone)
            assert ours.keys() == theirs.keys()
            for array, values in theirs.items():
                np.testing.assert_allclose(ours[array], values, **CLOSE, err_msg=f"{name} {array}")
            assert_close(figures(folder), figures(alone))
            kept = heads_at_home(alone)
            for node in federation.nodes.values():
                own_arrays = node.heads(folder, 3)
                assert own_arrays.keys() == kept[node.client].keys(), name
                for array, values in kept[node.client].items():
                    np.testing.assert_allclose(own_arrays[array], values, **CLOSE, err_msg=array)
