"""What the round loop does with a run in which nothing works."""

import pytest

from common.errors import NothingLearnedError
from common.experiment_file import load_experiment
from simulations.simulate import simulate

DIVERGING = ["training.optimiser=sgd", "training.lr=1e6", "federation.rounds=2"]
FEW = ["partition.clients=2", "trunk.widths=[8]"]


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_run_without_any_usable_reply_says_why_and_keeps_its_record(tmp_path, engine):
    experiment = load_experiment("digits", [*DIVERGING, *FEW])
    with pytest.raises(NothingLearnedError, match="in any of 2 rounds") as caught:
        simulate(experiment, engine=engine, out=tmp_path / "run")
    assert "a smaller training.lr may help" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "run" / "checkpoint" / "checkpoint.json").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_resumed_run_remembers_that_its_earlier_rounds_were_usable(tmp_path):
    experiment = load_experiment("digits", [*FEW, "federation.rounds=1"])
    simulate(experiment, engine="loopback", out=tmp_path / "run")
    again = simulate(experiment, engine="loopback", out=tmp_path / "run", resume=True)
    assert again["rounds"] == 1


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_run_without_rows_to_evaluate_ends_well(tmp_path, engine):
    unseen = ["data.validation=0", "data.test=0", "federation.rounds=1"]
    results = simulate(load_experiment("digits", [*FEW, *unseen]), engine=engine, out=tmp_path)
    assert results["rounds"] == 1
