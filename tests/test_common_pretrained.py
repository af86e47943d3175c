"""Given weights, what of a trunk trains, and adapters: the model before any federation."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

import common.encoder
from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS
from common.errors import ConfigError, ShapeError
from common.experiment_file import dump_experiment, load_experiment
from common.model import build_model
from common.pretrained.adapters import merge_adapters
from common.pretrained.naming import is_adapter, is_frozen, split_encoder
from common.pretrained.prepare import require_weights
from common.sharing import learned_names, shared_names
from common.strategies import STRATEGIES
from tests.conftest import make_experiment

SHAPES = {"x": (8,)}
IMAGES = {"x": {"kind": "image", "columns": ["x"], "shape": [1, 6, 6]}}


def model_of(seed=0, **trunk):
    return build_model(make_experiment(trunk=trunk, seed=seed), SHAPES)


def values_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def write(path, tensors):
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    return str(path)


@pytest.fixture
def trunk_file(tmp_path):
    """The trunk of another seed, and its values."""
    values = {n: v for n, v in values_of(model_of(seed=7)).items() if n.startswith("trunk.")}
    return write(tmp_path / "trunk.safetensors", values), values


# Which parameters are an encoder's ----------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_encoders_are_known_by_the_names_of_their_parameters(monkeypatch, sharing, architecture):
    """By name is found what `build_encoder` built, and nothing else."""
    built, build = [], common.encoder.build_encoder

    def noted(settings, shapes):
        built.append(build(settings, shapes))
        return built[-1]

    for name in ("hard", "soft", "cross_stitch", "mmoe", "extraction", "mtan", "adversarial"):
        monkeypatch.setattr(f"common.architectures.{name}.build_encoder", noted)
    trunk = {"sharing": sharing, "architecture": architecture, "channels": [2]}
    if architecture == "mlp":
        del trunk["channels"]
    experiment = make_experiment(trunk=trunk, inputs=IMAGES)
    model = build_model(experiment, {"x": (1, 6, 6)})
    theirs = {id(p) for encoder in built for p in encoder.parameters()}
    assert theirs
    for name, parameter in model.named_parameters():
        assert (split_encoder(name) is not None) == (id(parameter) in theirs), name


# Weights ------------------------------------------------------------------------------------------


def test_a_trunk_starts_from_its_own_names_and_heads_from_the_seed(trunk_file):
    path, given = trunk_file
    found, fresh = values_of(model_of(weights=path)), values_of(model_of())
    for name in found:
        torch.testing.assert_close(found[name], given.get(name, fresh[name]), rtol=0, atol=0)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_every_encoder_starts_from_the_one_in_the_file(tmp_path, sharing, prefix):
    if sharing == "ple":
        pytest.skip("its experts are single layers")
    one = {
        f"{prefix}{split[1]}": value
        for name, value in values_of(model_of(seed=7)).items()
        if (split := split_encoder(name)) is not None
    }
    path = write(tmp_path / "one.safetensors", {**one, "elsewhere.weight": torch.ones(3)})
    found, fresh = values_of(model_of(sharing=sharing, weights=path)), model_of(sharing=sharing)
    for name, value in values_of(fresh).items():
        split = split_encoder(name)
        expected = value if split is None else one[f"{prefix}{split[1]}"]
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0, msg=name)


def test_half_precision_becomes_single(tmp_path, trunk_file):
    half = {name: value.bfloat16() for name, value in trunk_file[1].items()}
    found = values_of(model_of(weights=write(tmp_path / "half.safetensors", half)))
    name = "trunk.encoder.layers.0.weight"
    torch.testing.assert_close(found[name], half[name].float(), rtol=0, atol=0)


def test_an_encoder_of_a_task_takes_its_own_tasks(tmp_path):
    soft = values_of(model_of(seed=7, sharing="soft"))
    path = write(tmp_path / "soft.safetensors", soft)
    experiment = make_experiment(trunk={"weights": path})
    single = experiment.model_copy(update={"tasks": {"flag": experiment.tasks["flag"]}})
    found = values_of(build_model(single, SHAPES))
    expected = soft["trunk.encoders.task-flag.layers.0.weight"]
    torch.testing.assert_close(found["trunk.encoder.layers.0.weight"], expected, rtol=0, atol=0)


def wrong_shape(given):
    return {**given, "trunk.encoder.layers.2.weight": torch.zeros(5, 7)}


def without_a_bias(given):
    return {n: v for n, v in given.items() if n != "trunk.encoder.layers.2.bias"}


def whole_numbers(given):
    return {n: v.long() for n, v in given.items()}


def not_finite(given):
    return {n: v / 0 for n, v in given.items()}


def foreign(given):
    return {f"other.{place}": v for place, v in enumerate(given.values())}


def twice(given):
    return {f"{p}.{n.partition('.encoder.')[2]}": v.clone() for p in "ab" for n, v in given.items()}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (wrong_shape, ShapeError, r"layers.2.weight must have shape \[5, 6\], got \[5, 7\]"),
        (without_a_bias, ConfigError, "lacks 1 parameters that all tasks share: .*layers.2.bias"),
        (whole_numbers, ConfigError, "must be finite floating-point numbers, got torch.int64"),
        (not_finite, ConfigError, "must be finite"),
        (foreign, ConfigError, "holds no encoder with the parameters of trunk.encoder"),
        (twice, ConfigError, "must hold one encoder for trunk.encoder, got 2"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, trunk_file, change, kind, message):
    path = write(tmp_path / "wrong.safetensors", change(trunk_file[1]))
    with pytest.raises(kind, match=message):
        model_of(weights=path)


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.toml").write_text("")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "pickle.pt").write_bytes(b"\x80")
    for name, message in {
        "pickle.pt": "can run code when they are read",
        "nowhere.safetensors": "which is not there",
        "run": "has not ended",
        ".": "a folder without trunk.safetensors",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_experiment("digits", [f"trunk.weights='{tmp_path / name}'"])
    with pytest.raises(ConfigError, match="must be a safetensors file, and cannot be read"):
        model_of(weights=str(tmp_path / "torn.safetensors"))


def test_a_file_that_changed_since_is_refused(tmp_path, trunk_file):
    experiment = make_experiment(trunk={"weights": trunk_file[0]})
    frozen = make_experiment(trunk={"weights": trunk_file[0], "trains": ["layers.0.*"]})
    write(trunk_file[0], values_of(model_of(seed=8)))
    with pytest.raises(ConfigError, match="another content than the experiment began with"):
        build_model(frozen, SHAPES)
    with pytest.raises(ConfigError, match="another content than the experiment began with"):
        require_weights(experiment)  # as a server does
    build_model(experiment, SHAPES)  # what a client starts from is sent to it


def test_the_fingerprint_goes_by_content(tmp_path, trunk_file):
    path, given = trunk_file
    digits = "digits", [f"trunk.weights='{path}'"]
    first = load_experiment(*digits).fingerprint()
    copy = write(tmp_path / "copy.safetensors", given)
    assert load_experiment("digits", [f"trunk.weights='{copy}'"]).fingerprint() == first
    other = write(tmp_path / "other.safetensors", values_of(model_of(seed=8)))
    assert load_experiment("digits", [f"trunk.weights='{other}'"]).fingerprint() != first
    # What is written down knows its weights; naming others forgets them.
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(dump_experiment(load_experiment(*digits)))
    assert load_experiment(str(resolved)).fingerprint() == first
    changed = load_experiment(str(resolved), [f"trunk.weights='{other}'"])
    assert changed.fingerprint() != first


# Frozen -------------------------------------------------------------------------------------------


def test_what_trains_goes_by_patterns():
    experiment = make_experiment(trunk={"norm": "batch", "trains": ["layers.3.weight", "norm_*"]})
    model = build_model(experiment, SHAPES)
    trained = {n for n, p in model.trunk.named_parameters(prefix="trunk") if p.requires_grad}
    layers = "trunk.encoder.layers."
    assert trained == {
        f"{layers}3.weight",
        *(f"{layers}{place}.norm_{what}" for place in (1, 4) for what in ("weight", "bias")),
    }
    # Running statistics follow the scale of their norm.
    statistics = {f"{layers}{p}.norm_{what}" for p in (1, 4) for what in ("mean", "variance")}
    names = [name for name, _ in model.named_parameters()]
    assert set(shared_names(names, experiment)) == trained | statistics
    assert set(names) - set(learned_names(names, experiment)) == {f"{layers}0.weight"}


def test_a_frozen_batch_norm_does_not_follow_its_batches():
    model = model_of(norm="batch", trains=["layers.4.*"]).train()
    before = values_of(model)
    outputs, _ = model({"x": torch.randn(16, 8)}, ("kind", "flag", "size"))
    sum(o.square().mean() for o in outputs.values()).backward()
    after = values_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layer = "trunk.encoder.layers.4.norm_"
    assert moved == {f"{layer}mean", f"{layer}variance"}


@pytest.mark.parametrize("sharing", [s for s in SHARINGS if s != "hard"])
def test_what_ties_encoders_together_always_trains(sharing):
    model = model_of(sharing=sharing, adapters={"rank": 2})
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (split_encoder(name) is None or is_adapter(name)), name


def test_patterns_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"'layers.9.\*' means no parameter .* layers.0.weight"):
        model_of(trains=["layers.9.*"])
    for trains, message in {
        "all": "must not be 'all' with",
        (): r"must name a pattern, got \[\]",
    }.items():
        with pytest.raises(ValidationError, match=message):
            make_experiment(trunk={"trains": trains, "adapters": {"rank": 1}})
    with pytest.raises(ValidationError, match="needs a trunk with layers"):
        make_experiment(trunk={"widths": [], "trains": "none"})
    with pytest.raises(ConfigError, match="is for norms that train"):
        model_of(norm="batch", norm_parameters="local", trains=["layers.0.*"])


def test_reading_an_experiment_with_weights_imports_no_torch(trunk_file):
    import subprocess
    import sys

    code = (
        "import sys; from common.experiment_file import load_experiment; "
        f"load_experiment('digits', ['trunk.weights={trunk_file[0]}', 'trunk.adapters.rank=1']); "
        "assert 'torch' not in sys.modules and 'peft' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Adapters -----------------------------------------------------------------------------------------

CONVOLVES = {"architecture": "cnn", "channels": [3, 4], "widths": [6], "norm": "layer"}


@pytest.mark.parametrize("sharing", SHARINGS)
def test_before_the_first_step_adapters_change_nothing(sharing):
    shapes, tasks = {"x": (1, 6, 6)}, ("kind", "flag", "size")
    plain = {**CONVOLVES, "sharing": sharing}
    inputs = {"x": torch.randn(5, 1, 6, 6)}
    found = []
    for trunk in (plain, {**plain, "adapters": {"rank": 2, "dropout": 0.5}}):
        model = build_model(make_experiment(trunk=trunk, inputs=IMAGES), shapes).eval()
        found.append(model(inputs, tasks)[0])
    for task in tasks:
        torch.testing.assert_close(found[0][task], found[1][task], rtol=0, atol=0)


@pytest.mark.parametrize("modules", [[], ["stacks.*"], ["layers.0"]])
def test_merged_layers_are_the_same_function(modules):
    adapters = {"rank": 2, "alpha": 3.0, "modules": modules}
    trunk = {**CONVOLVES, "adapters": adapters}
    model = build_model(make_experiment(trunk=trunk, inputs=IMAGES), {"x": (1, 6, 6)}).eval()
    factors = [p for n, p in model.named_parameters() if is_adapter(n)]
    assert len(factors) == {"": 6, "stacks.*": 4, "layers.0": 2}["".join(modules)]
    for parameter in factors:
        torch.nn.init.normal_(parameter)
    inputs = {"x": torch.randn(5, 1, 6, 6)}
    before = model(inputs, ("size",))[0]["size"]
    plain = build_model(make_experiment(trunk=CONVOLVES, inputs=IMAGES), {"x": (1, 6, 6)}).eval()
    assert not torch.allclose(before, plain(inputs, ("size",))[0]["size"])
    merge_adapters(model)
    assert values_of(model).keys() == values_of(plain).keys()
    torch.testing.assert_close(model(inputs, ("size",))[0]["size"], before, rtol=1e-4, atol=1e-5)


def test_the_adapter_of_a_dense_layer_is_alpha_over_rank_b_a():
    model = model_of(widths=[6], activation="none", adapters={"rank": 2, "alpha": 3.0})
    values = dict(model.named_parameters())
    a, b = (values[f"trunk.encoder.layers.0.adapter_{x}"] for x in "ab")
    torch.nn.init.normal_(b)
    x = torch.randn(4, 8)
    weight = values["trunk.encoder.layers.0.weight"] + 3.0 / 2 * b @ a
    expected = x @ weight.T + values["trunk.encoder.layers.0.bias"]
    torch.testing.assert_close(model.trunk({"x": x}, ("size",))["size"], expected)


def test_adapters_of_a_task_do_not_change_with_another():
    tasks = {"flag": {"kind": "binary"}, "size": {"kind": "regression"}}
    settings = {"sharing": "soft", "adapters": {"rank": 2}}
    small = make_experiment(trunk=settings)
    small = small.model_copy(update={"tasks": {t: small.tasks[t] for t in tasks}})
    few, all_of_them = build_model(small, SHAPES), model_of(**settings)
    large = values_of(all_of_them)
    for name, value in values_of(few).items():
        torch.testing.assert_close(value, large[name], rtol=0, atol=0, msg=name)


def test_freeze_a_leaves_b():
    experiment = make_experiment(trunk={"adapters": {"rank": 2, "freeze-a": True}})
    model = build_model(experiment, SHAPES)
    assert [name for name, _ in model.named_parameters() if name.endswith("adapter_b")]
    for name, parameter in model.named_parameters():
        assert is_frozen(name, experiment.trunk) == (
            name.startswith("trunk.") and not name.endswith("adapter_b")
        )
        assert parameter.requires_grad == (not is_frozen(name, experiment.trunk))


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ({"adapters": {"rank": 6}}, r"rank must be at most 5 for trunk.encoder.layers.2, .*\[5, 6"),
        ({"adapters": {"modules": ["query"]}}, "'query' means no fully connected .* layers.0"),
        (
            {"adapters": {"rank": 2}, "trains": ["layers.2.*"]},
            "must not mean weights that have an adapter, got .*layers.2.weight",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused(trunk, message):
    with pytest.raises(ConfigError, match=message):
        model_of(**trunk)


def test_biases_may_train_beside_adapters():
    model = model_of(adapters={"rank": 2}, trains=["bias"])
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "trunk." in n]
    assert {n.rpartition(".")[2] for n in trained} == {"bias", "adapter_a", "adapter_b"}


def test_without_peft_one_line_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedmtl\[adapters\]'"):
        model_of(adapters={"rank": 2})


def test_a_call_with_other_parameters_goes_by_our_names():
    model = model_of(adapters={"rank": 2}).eval()
    x = {"x": torch.randn(3, 8)}
    values = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    found = model.call_with(values, x, ("size",))[0]["size"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    np.testing.assert_allclose(found, model(x, ("size",))[0]["size"].detach(), rtol=1e-6)


@pytest.mark.parametrize(
    "tables",
    [
        {"loss": {"record": "gradients"}},
        {"loss": {"weighting": "pcgrad"}},
        {"trunk": {"weight-decay": 0.1}},
        {"federation": {"algorithm": "scaffold", "heads": "local"}},
        {"federation": {"strategy": "clustered"}},
    ],
)
def test_what_works_on_the_common_trunk_is_refused_where_none_of_it_trains(tables):
    trunk = {**tables.pop("trunk", {}), "trains": "none"}
    federation = {"heads": "per-task", **tables.pop("federation", {})}
    training = {"optimiser": "sgd", "momentum": 0.0}
    experiment = make_experiment(trunk=trunk, federation=federation, training=training, **tables)
    with pytest.raises(ConfigError, match=r"needs trained parameters .* trunk.trains leaves none"):
        build_model(experiment, SHAPES)


@pytest.mark.parametrize(
    ("setting", "table"),
    [("algorithm", ALGORITHMS), ("strategy", STRATEGIES)],
    ids=["algorithm", "strategy"],
)
def test_what_needs_a_common_trunk_refuses_one_without_layers(setting, table):
    for name, method in table.items():
        wanted = [f"federation.{setting}={name}", "trunk.widths=[]", "federation.affinity-every=0"]
        try:
            load_experiment("digits", wanted)
            told = ""
        except ConfigError as error:
            told = str(error)
        assert ("without layers" in told or "trunk layers" in told) is method.needs_common, name
