"""Ready models frozen, in part or but for adapters."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.exported_model import ExportedModel
from common.errors import ConfigError
from common.model import build_model
from common.pretrained.naming import is_adapter, is_frozen
from simulations.kept_run import open_run
from tests.algorithm_runs import Run, assert_close, assert_equal, run
from tests.ready_models import load_digits, load_texts, save, write_models

pytest.importorskip("transformers")
RANK = "trunk.adapters.rank=2"
LORA = (RANK, "trunk.adapters.modules=['q_proj', 'v_proj']")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("ready"))


def write_resnet(folder):
    """A tiny network with batch norm."""
    from transformers import ResNetConfig

    sizes = {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1]}
    return save(ResNetConfig(layer_type="basic", **sizes), folder)


def assert_only_this_travels(left: Run, experiment, shapes):
    model = build_model(experiment, shapes)
    fresh = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert any(is_frozen(name, experiment.trunk) for name in fresh)
    assert not [name for name in left.trunk if is_frozen(name, experiment.trunk)]
    assert not [n for own in left.clients.values() for n in own.arrays if n.startswith("trunk.")]
    moved = [n for n in left.trunk if n in fresh and not np.array_equal(left.trunk[n], fresh[n])]
    assert moved
    return moved


def test_adapters_of_queries_and_values_alone_travel(place, tmp_path):
    more = ("trunk.adapters.modules=['query', 'value']", "trunk.adapters.dropout=0.1")
    experiment = load_texts(place, place / "bert", RANK, *more)
    left = run(experiment, tmp_path / "run")
    moved = assert_only_this_travels(left, experiment, {"text": (1, 8), "x": (1,)})
    assert [name for name in moved if name.endswith("query.adapter_b")]
    assert all(is_adapter(name) for name in left.trunk)
    assert_equal(left, run(experiment, tmp_path / "again", workers=2))


def test_a_part_of_a_transformer_trains(place, tmp_path):
    experiment = load_digits(place / "vit", "trunk.trains=['layernorm.*', 'layers.*']")
    left = run(experiment, tmp_path / "run")
    assert_only_this_travels(left, experiment, {"pixels": (1, 8, 8)})


def test_an_exported_transformer_has_its_adapters_merged(place, tmp_path):
    left = run(load_digits(place / "vit", *LORA), tmp_path / "run")
    kept, inputs = open_run(left.folder, "client-000"), {"pixels": torch.rand(5, 1, 8, 8)}
    exported = ExportedModel(kept)
    assert not [n for n, _ in exported.model.named_parameters() if is_adapter(n)]
    expected = kept.build()(inputs, ("digit",))[0]["digit"]
    torch.testing.assert_close(exported.model(inputs, ("digit",))[0]["digit"], expected)
    given = load_file(left.folder / "trunk.safetensors")
    assert not [name for name in given if is_adapter(name)]


def test_another_experiment_starts_from_what_became_of_a_ready_model(place, tmp_path):
    left = run(load_digits(place / "vit", *LORA), tmp_path / "run")
    given = load_file(left.folder / "trunk.safetensors")
    experiment = load_digits(place / "vit", f"trunk.weights='{left.folder}'")
    model = build_model(experiment, {"pixels": (1, 8, 8)})
    for name, parameter in model.trunk.named_parameters(prefix="trunk"):
        np.testing.assert_array_equal(parameter.detach().numpy(), given[name], err_msg=name)


def test_a_frozen_batch_norm_of_a_ready_model_stands_still(tmp_path):
    write_resnet(tmp_path / "resnet")
    experiment = load_digits(tmp_path / "resnet", "trunk.trains=['encoder.stages.1.*']")
    model = build_model(experiment, {"pixels": (1, 8, 8)}).train()
    model.give_generator(torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model({"pixels": torch.rand(6, 1, 8, 8)}, ("digit",))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    for name in before:
        is_statistic = name.endswith(("norm_mean", "norm_variance"))
        follows = is_statistic and not is_frozen(name, experiment.trunk)
        assert (name in moved) == follows, name


@pytest.mark.slow
def test_recomputation_keeps_adapters_apart_from_dropout(place, tmp_path):
    again = "training.recompute-activations=true"
    with pytest.raises(ConfigError, match=r"adapters.dropout must be 0 with training.recompute"):
        load_digits(place / "vit", *LORA, "trunk.adapters.dropout=0.1", again)
    whole = run(load_digits(place / "vit", *LORA), tmp_path / "whole")
    assert_close(whole, run(load_digits(place / "vit", *LORA, again), tmp_path / "again"))
