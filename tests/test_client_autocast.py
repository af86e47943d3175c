"""Mixed precision in local training: near float32, and not it."""

import pytest
import torch

from common.errors import ConfigError
from common.experiment_file import load_experiment
from simulations.simulate import choose_engine, simulate
from tests.test_simulations_engines import figures, trunk

SETTINGS = ["federation.rounds=3", "partition.clients=4", "trunk.widths=[16]"]
BF16 = "training.autocast=bfloat16"
MODELS = {
    "mlp": [],
    "cnn": ["trunk.architecture=cnn", "trunk.channels=[4]"],
    "mmoe": ["trunk.sharing=mmoe"],
    "balanced": ["loss.weighting=uncertainty"],
    "layer norm, dropout": ["trunk.norm=layer", "trunk.dropout=0.1"],
}


@pytest.mark.parametrize("model", MODELS)
def test_coarse_products_train_nearly_the_same_trunk(tmp_path, model):
    settings = [*SETTINGS, *MODELS[model]]
    for name, more in {"fine": [], "coarse": [BF16]}.items():
        simulate(
            load_experiment("digits", [*settings, *more]), engine="loopback", out=tmp_path / name
        )
    fine, coarse = trunk(tmp_path / "fine"), trunk(tmp_path / "coarse")
    gap = max(float(abs(fine[name] - coarse[name]).max()) for name in fine)
    assert 1e-6 < gap < 0.05  # bfloat16 has eight bits, and was used
    assert all(array.dtype == "float32" for array in coarse.values())
    losses = [figures(tmp_path / name)[-1]["train"]["loss"] for name in ("fine", "coarse")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_models_then_train_one_by_one():
    engine, why = choose_engine(load_experiment("digits", [BF16]))
    assert (engine, why) == ("loopback", "training.autocast 'bfloat16' has no stacked form")


def test_rows_gradients_are_never_coarse():
    with pytest.raises(ConfigError, match=r"training\.autocast must be 'none' under"):
        load_experiment("digits", [BF16, "privacy.example-level.noise-multiplier=1"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_as_well(tmp_path):
    settings = [*SETTINGS, *MODELS["cnn"], BF16, "training.device=cuda"]
    simulate(load_experiment("digits", settings), engine="loopback", out=tmp_path / "run")
    assert figures(tmp_path / "run")[-1]["train"]["loss"] < 3
