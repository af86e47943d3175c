"""The benchmark of precisions: what it runs, and how it compares."""

import json

import pytest
import typer
from typer.testing import CliRunner

from common.experiment_file import load_experiment
from simulations.benchmarks.mixed_precision import AGAIN, BF16, PLAIN, main, settings_of, summarise
from simulations.benchmarks.precision_trial import Trial
from simulations.simulate import simulate
from tests.test_simulations_engines import trunk


def invoke(arguments):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments)


def trial(round_s, loss, peak_bytes=2_000_000):
    return Trial(round_s, peak_bytes, {"left": loss - 0.5, "right": loss + 0.5})


def test_a_precision_is_compared_with_float32_seed_by_seed():
    found = {
        PLAIN: [trial(0.2, 1.0), trial(0.4, 1.2), trial(0.2, 1.1)],
        "bfloat16": [trial(0.1, 1.1), trial(0.1, 1.25), trial(0.1, 1.2)],
        "float16": [trial(0.4, 1.3), trial(0.8, 1.5), trial(0.4, 1.4)],
    }
    plain, bf16, fp16 = summarise(found)
    assert (plain["ratio"], plain["round-ms"], plain["peak-mb"]) == (1, 200, 2)
    assert (bf16["ratio"], fp16["ratio"]) == (0.5, 2)
    assert bf16["loss-gap"] == pytest.approx(0.25 / 3)
    assert plain["loss-deviation"] == pytest.approx(0.1)
    assert [line["within-noise"] for line in (plain, bf16, fp16)] == [None, True, False]
    assert summarise({PLAIN: [trial(1, 1)], "bfloat16": [trial(1, 1)]})[1]["within-noise"] is None


def test_a_quarter_of_a_batch_is_a_piece():
    settings = settings_of(
        "bfloat16, recomputed, micro-batches", ["training.batch-size=64"], "digits"
    )
    assert settings == ["training.batch-size=64", BF16, AGAIN, "training.micro-batch=16"]
    assert settings_of("float32, by pixel", [], "digits") == []


def test_an_arm_that_is_none_is_told_in_a_line():
    result = invoke(["--arm", "int8"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --arm must be one of float32; bfloat16;")
    assert result.stderr.rstrip().endswith("got 'int8'")


@pytest.mark.slow
def test_precisions_are_measured_by_one_command():
    arguments = ["digits", "--set", "partition.clients=2", "--set", "trunk.widths=[8]"]
    arguments += ["--rounds", "3", "--seeds", "2", "--arm", "bfloat16", "--json"]
    result = invoke(arguments)
    plain, coarse = json.loads(result.stdout)["arms"]
    assert (plain["arm"], coarse["arm"]) == ("float32", "bfloat16")
    assert coarse["loss-gap"] != 0
    assert abs(coarse["loss-gap"]) < 0.1 * plain["loss"]
    assert coarse["round-ms"] > 0
    assert coarse["peak-mb"] >= 0  # a small model may fit into what its process had already


@pytest.mark.slow
def test_a_run_in_pieces_that_forgets_is_the_same_run_and_a_coarse_one_is_near(tmp_path):
    settings = ["federation.rounds=2", "partition.clients=3", "trunk.widths=[16,16]"]
    settings += ["trunk.dropout=0.1", "trunk.norm=layer"]
    arms = {"plain": (), "small": (AGAIN, "training.micro-batch=5"), "coarse": (BF16,)}
    trunks = {}
    for name, own in arms.items():
        experiment = load_experiment("digits", [*settings, *own])
        simulate(experiment, engine="loopback", out=tmp_path / name)
        trunks[name] = trunk(tmp_path / name)
    gaps = {
        arm: max(abs(trunks["plain"][name] - found[name]).max() for name in found)
        for arm, found in trunks.items()
    }
    assert gaps["small"] < 1e-4 < gaps["coarse"] < 0.1
    assert all(array.dtype == "float32" for array in trunks["coarse"].values())
