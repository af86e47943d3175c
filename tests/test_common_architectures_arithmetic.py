"""Each sharing architecture computes its paper's equations, written out in plain NumPy."""

import itertools

import numpy as np
import pytest
import torch

from common.architectures.adversarial import cross_entropy_to_uniform, reverse_gradient
from common.architectures.soft import trace_norm
from common.model import build_model
from tests.conftest import make_experiment

TASKS = ("flag", "kind", "size")  # sorted, as architectures number them
N = 5
X = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
IMAGE = {"x": {"kind": "image", "columns": ["x"], "shape": [1, 2, 4]}}


def trunk_of(sharing, encoder="mlp", options=None, **trunk):
    settings = {"sharing": sharing, "architecture": encoder, "options": options or {}, **trunk}
    experiment = make_experiment(trunk=settings, inputs=IMAGE if encoder == "cnn" else {})
    shape = (1, 2, 4) if encoder == "cnn" else (8,)
    trunk = build_model(experiment, {"x": shape}).trunk
    inputs = {"x": torch.from_numpy(X).view(N, *shape)}
    with torch.no_grad():
        features = {t: f.numpy() for t, f in trunk(inputs, TASKS).items()}
    return trunk, features, {n: p.detach().numpy() for n, p in trunk.named_parameters()}


def relu(x):
    return np.maximum(x, 0)


def linear(x, p, name):
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def encode(x, p, name, layers=2):
    """A multilayer perceptron with ReLU: its linear layers are numbered 0, 2, ..."""
    for layer in range(layers):
        x = relu(linear(x, p, f"{name}.layers.{2 * layer}"))
    return x


def softmax(x):
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def mixed(experts, logits):
    shares = softmax(logits)
    return sum(shares[:, i : i + 1] * expert for i, expert in enumerate(experts))


def same(features, expected):
    for task, values in expected.items():
        np.testing.assert_allclose(features[task], values, rtol=1e-4, atol=1e-6)


def test_soft_gives_each_task_its_own_encoder():
    _, features, p = trunk_of("soft")
    same(features, {t: encode(X, p, f"encoders.task-{t}") for t in TASKS})


@pytest.mark.parametrize("kind", ["l2", "trace-norm"])
def test_the_penalty_of_soft_is_the_papers(kind):
    trunk, _, p = trunk_of("soft", options={"penalty": kind, "strength": 0.5})
    expected = 0.0
    names = [n.removeprefix("encoders.task-flag.") for n in p if "task-flag" in n]
    for name in names:
        copies = [p[f"encoders.task-{t}.{name}"].ravel() for t in TASKS]
        if kind == "l2":
            expected += sum(((a - b) ** 2).sum() for a, b in itertools.combinations(copies, 2))
        else:
            expected += np.linalg.norm(np.stack(copies), "nuc")
    assert trunk.penalty({}, {}).item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_the_slope_of_the_distance_is_the_sum_of_differences():
    trunk, _, p = trunk_of("soft", options={"strength": 0.5})
    trunk.penalty({}, {}).backward()
    flag, kind, size = (p[f"encoders.task-{t}.layers.0.weight"] for t in TASKS)
    slope = trunk.get_parameter("encoders.task-flag.layers.0.weight").grad
    np.testing.assert_allclose(slope, 0.5 * 2 * (2 * flag - kind - size), rtol=1e-4, atol=1e-6)


def test_the_slope_of_the_trace_norm_is_finite_where_all_tasks_agree():
    rows = torch.ones(3, 4, requires_grad=True)
    trace_norm(rows).backward()  # one singular value, sqrt(12): its slope is u v^T
    np.testing.assert_allclose(rows.grad, np.full((3, 4), 1 / 12**0.5), rtol=1e-5)
    nothing = torch.zeros(3, 4, requires_grad=True)
    trace_norm(nothing).backward()
    assert not nothing.grad.any()


def test_soft_without_strength_has_no_penalty():
    trunk, _, _ = trunk_of("soft", options={"strength": 0.0})
    assert trunk.penalty({}, {}) is None


@pytest.mark.parametrize("units", ["layer", "channel"])
def test_cross_stitch_mixes_after_every_layer(units):
    options = {"own": 0.7, "others": 0.2, "units": units}
    trunk, _, _ = trunk_of("cross-stitch", options=options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trunk.named_parameters():
        if ".units." in f".{name}":
            assert sorted({round(v, 4) for v in parameter.flatten().tolist()}) == [0.1, 0.7]
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator))
    p = {n: v.detach().numpy() for n, v in trunk.named_parameters()}
    states = dict.fromkeys(TASKS, X)
    for stage in range(2):
        given = {
            t: relu(linear(states[t], p, f"encoders.task-{t}.layers.{2 * stage}")) for t in TASKS
        }
        for t in TASKS:
            weights = p[f"units.task-{t}.{stage}.0"]  # [T, 1, 1 or features]
            states[t] = sum(weights[i] * given[u] for i, u in enumerate(TASKS))
    with torch.no_grad():
        features = trunk({"x": torch.from_numpy(X)}, TASKS)
    same({t: f.numpy() for t, f in features.items()}, states)


def test_cross_stitch_has_a_unit_after_every_convolution_and_layer():
    _, _, p = trunk_of("cross-stitch", "cnn", {"units": "channel"}, channels=[3, 4])
    shapes = [p[f"units.task-flag.{stage}.0"].shape for stage in range(4)]
    assert shapes == [(3, 1, 3, 1, 1), (3, 1, 4, 1, 1), (3, 1, 6), (3, 1, 5)]


def test_cross_stitch_that_mixes_nothing_is_a_trunk_per_task():
    options = {"own": 1.0, "others": 0.0}
    trunk, features, _ = trunk_of("cross-stitch", "cnn", options, channels=[3, 4])
    inputs = {"x": torch.from_numpy(X).view(N, 1, 2, 4)}
    for task in TASKS:
        expected = trunk.encoders[f"task-{task}"](inputs).detach()
        np.testing.assert_allclose(features[task], expected, rtol=1e-6)


def test_mmoe_mixes_experts_by_the_softmax_of_the_inputs():
    _, features, p = trunk_of("mmoe", options={"experts": 3})
    experts = [encode(X, p, f"experts.{i}") for i in range(3)]
    same(
        features,
        {t: mixed(experts, linear(X, p, f"gates.task-{t}.layer")) for t in TASKS},
    )


def own_and_shared(x, shared_x, p, level, task, layers):
    own = encode(x, p, f"levels.{level}.own.task-{task}.0", layers)
    return [own, *(encode(shared_x, p, f"levels.{level}.shared.{i}", layers) for i in range(2))]


def test_cgc_mixes_a_tasks_experts_with_the_shared_ones():
    _, features, p = trunk_of("cgc")
    expected = {}
    for t in TASKS:
        experts = own_and_shared(X, X, p, 0, t, layers=2)
        expected[t] = mixed(experts, linear(X, p, f"levels.0.gates.task-{t}.layer"))
    same(features, expected)


def ple_by_hand(p, held):
    """Two levels, of one fully connected layer each."""
    read, shared_read = dict.fromkeys(held, X), X
    for level in range(2):
        experts = {t: own_and_shared(read[t], shared_read, p, level, t, 1) for t in held}
        gates = f"levels.{level}.gates"
        below = read
        read = {t: mixed(experts[t], linear(below[t], p, f"{gates}.task-{t}.layer")) for t in held}
        if level == 0:
            logits = [linear(X, p, "levels.0.shared_gate.layer")]
            logits += [linear(X, p, f"levels.0.shared_gate_own.task-{t}.layer") for t in held]
            everything = [*experts[held[0]][1:], *(experts[t][0] for t in held)]
            shared_read = mixed(everything, np.concatenate(logits, 1))
    return read


def test_ple_stacks_levels_with_a_gate_for_what_is_shared():
    _, features, p = trunk_of("ple")
    same(features, ple_by_hand(p, TASKS))


@pytest.mark.parametrize("place", ["home", "shared"])
def test_the_shared_gate_of_ple_mixes_the_experts_that_the_client_has(place):
    trunk, _, p = trunk_of("ple", **{"task-parts": place})
    with torch.no_grad():
        features = trunk({"x": torch.from_numpy(X)}, ["size"])
    expected = ple_by_hand(p, ["size"] if place == "home" else TASKS)
    same({"size": features["size"].numpy()}, {"size": expected["size"]})


def mask(read, p, name):
    inner = relu(linear(read, p, f"{name}.inner"))
    return 1 / (1 + np.exp(-linear(inner, p, f"{name}.outer")))


def test_mtan_masks_the_features_of_every_stage():
    _, features, p = trunk_of("mtan")
    first = relu(linear(X, p, "encoder.layers.0"))
    second = relu(linear(first, p, "encoder.layers.2"))
    expected = {}
    for t in TASKS:
        left = first * mask(first, p, f"masks.task-{t}.0.0")
        carried = relu(linear(left, p, f"masks.task-{t}.1.0.carry"))
        read = np.concatenate([second, carried], 1)
        expected[t] = second * mask(read, p, f"masks.task-{t}.1.0")
    same(features, expected)


def test_mtan_masks_pixels_alike_and_pools_in_front_of_the_layers():
    trunk, features, p = trunk_of("mtan", "cnn", widths=[6], channels=[3])
    image = trunk.encoder.run_stage(0, (), {"x": torch.from_numpy(X).view(N, 1, 2, 4)})[0]
    image = image.detach().numpy()  # [N, 3, 1, 2]
    dense = relu(linear(image.reshape(N, -1), p, "encoder.layers.0"))
    flat = {n: v[..., 0, 0] if n.startswith("masks") and v.ndim == 4 else v for n, v in p.items()}
    for t in TASKS:
        pixels = image.transpose(0, 2, 3, 1).reshape(-1, 3)
        left = (pixels * mask(pixels, flat, f"masks.task-{t}.0.0")).reshape(N, 2, 3)
        carried = relu(linear(left.max(1), p, f"masks.task-{t}.1.0.carry"))
        read = np.concatenate([dense, carried], 1)
        same(features, {t: dense * mask(read, p, f"masks.task-{t}.1.0")})


def test_adversarial_lays_shared_and_private_features_side_by_side():
    _, features, p = trunk_of("adversarial")
    shared = encode(X, p, "shared")
    same(
        features,
        {t: np.concatenate([shared, encode(X, p, f"private.task-{t}")], 1) for t in TASKS},
    )


def test_the_penalty_of_adversarial_is_the_papers():
    options = {"adversarial": 0.3, "orthogonality": 0.7}
    trunk, features, p = trunk_of("adversarial", options=options)
    labelled = {
        "kind": np.array([1, 1, 0, 0, 0], bool),
        "size": np.array([1, 0, 1, 0, 0], bool),
    }
    logits = linear(features["flag"][:, :5], p, "discriminator")
    guess = np.log(softmax(logits))
    kind, size = TASKS.index("kind"), TASKS.index("size")
    # Row 0 is for kind and size, row 1 for kind, row 2 for size; rows 3 and 4 for nothing.
    confusion = -((guess[0, kind] + guess[0, size]) / 2 + guess[1, kind] + guess[2, size]) / 3
    difference = 0.0
    for task, rows in labelled.items():
        shared, private = features[task][rows, :5], features[task][rows, 5:]
        difference += ((shared.T @ private / 2) ** 2).sum()
    given = {t: torch.from_numpy(features[t]) for t in labelled}
    masks = {t: torch.from_numpy(rows) for t, rows in labelled.items()}
    penalty = trunk.penalty(given, masks).item()
    assert penalty == pytest.approx(0.3 * confusion + 0.7 * difference, rel=1e-5)


def test_a_reversed_gradient_teaches_the_discriminator_and_its_opposite_the_encoder():
    weight = torch.tensor([[1.0, -1.0], [0.5, 2.0]], requires_grad=True)
    features = torch.tensor([[1.0, 2.0]], requires_grad=True)
    masks = torch.tensor([[True, False]])
    slopes = []
    for passed in (features, reverse_gradient(features)):
        loss = cross_entropy_to_uniform(passed @ weight, masks)
        slopes.append(torch.autograd.grad(loss, [weight, features]))
    (plain_weight, plain_features), (weight_slope, features_slope) = slopes
    torch.testing.assert_close(weight_slope, plain_weight)
    torch.testing.assert_close(features_slope, -plain_features)


def test_rows_without_any_task_add_nothing_to_the_discriminators_loss():
    logits = torch.tensor([[0.0, 0.0], [9.0, -9.0]])
    masks = torch.tensor([[True, False], [False, False]])
    assert cross_entropy_to_uniform(logits, masks).item() == pytest.approx(np.log(2))
    assert cross_entropy_to_uniform(logits, torch.zeros_like(masks)).item() == 0
