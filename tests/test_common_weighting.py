"""Every weighting's arithmetic: by hand from its paper, and against public reference code."""

import json
import math
from pathlib import Path

import pytest
import torch
from torchjd import scalarization

from common.weighting.table import WEIGHTINGS
from tests.balances import balance_of, rules_of, take_step

FIGURES = json.loads((Path(__file__).parent / "reference_figures.json").read_text())
CASE, RUNS = FIGURES["case"], FIGURES["runs"]


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def sums_of(*means: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A round of ten labelled rows per task."""
    return row(*means) * 10, torch.full((1, len(means)), 10.0, dtype=torch.float64)


def assert_close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# By hand, from the papers.


def test_equal_and_manual_weights_are_those_of_the_round():
    rules = rules_of("equal", scaling="log")
    balance = balance_of(rules)
    balance._base = torch.tensor([1.0, 2.0, 0.5])
    # d/dL of w log L is w / L.
    assert_close(take_step(balance, row(1, 2, 4)), row(1, 1, 0.125))


def test_uncertainty_weighs_a_squared_error_by_half_the_precision_and_learns_the_noise():
    # Kendall et al. eq. 10 with s = log sigma^2: L exp(-s) / 2 + s / 2, or L exp(-s) + s / 2 for a
    # cross-entropy. From s = 0: weights 1/2 and 1; ds = 1/2 - w L = -3/2 and -5/2.
    options = {"optimiser": "sgd", "lr": 0.1}
    rules = rules_of("uncertainty", ("a", "b"), {"b": "binary"}, options=options)
    balance = balance_of(rules)
    assert_close(take_step(balance, row(4, 3)), row(0.5, 1))
    assert_close(balance.state["log-variance"], row(0.15, 0.25))
    expected = row(0.5 * math.exp(-0.15), math.exp(-0.25))
    assert_close(take_step(balance, row(4, 3)), expected)


def test_uncertainty_comes_to_rest_where_every_weighted_loss_is_a_half():
    balance = balance_of(rules_of("uncertainty", options={"optimiser": "sgd", "lr": 0.1}))
    losses = row(0.1, 1, 30)
    for _ in range(500):
        weights = take_step(balance, losses)
    assert_close(weights * losses, row(0.5, 0.5, 0.5), 1e-3)


def test_dwa_compares_the_last_two_rounds():
    # Liu et al. eq. 7: r = 0.5 and 1, w = 2 softmax(r / 2).
    balance = balance_of(rules_of("dwa", ("a", "b")))
    for means in ((4.0, 3.0), (2.0, 3.0)):
        assert_close(take_step(balance, row(1, 1)), row(1, 1))  # until two rounds were seen
        balance.end_round(*sums_of(*means))
    share = 1 / (1 + math.exp((1 - 0.5) / 2))
    assert_close(take_step(balance, row(1, 1)), row(2 * share, 2 * (1 - share)))


def test_gradnorm_moves_weights_towards_equal_pulls_and_keeps_their_sum():
    # Chen et al. eq. 2: pulls 1 and 3, both rates 1, target 2; d|w g - 2|/dw = -1 and +3. By 0.1:
    # 1.1 and 0.7, made to sum to 2 again.
    options = {"optimiser": "sgd", "lr": 0.1}
    balance = balance_of(rules_of("gradnorm", ("a", "b"), options=options))
    assert_close(take_step(balance, row(5, 7), norms=row(1, 3)), row(1, 1))
    assert_close(balance.state["weight"], row(2.2, 1.4) / 1.8)
    assert_close(balance.state["initial-loss"], row(5, 7))


def test_gradnorm_lets_a_slow_task_pull_harder():
    # Rates: 1 / 2 and 1 relative to their mean 3 / 4, so targets 2/3 and 4/3 of the mean pull 1
    # (alpha 1): the fast task's pull is too large, the slow one's too small.
    options = {"optimiser": "sgd", "lr": 0.1, "alpha": 1.0}
    balance = balance_of(rules_of("gradnorm", ("a", "b"), options=options))
    take_step(balance, row(2, 2), norms=row(1, 1))
    take_step(balance, row(1, 2), norms=row(1, 1))
    assert_close(balance.state["weight"], row(0.9, 1.1))
    take_step(balance, row(1, 2), norms=row(1, 1))  # against the first losses still: 0.9 > 2/3
    assert_close(balance.state["weight"], row(0.8, 1.2))


def test_gradnorm_brings_pulls_together_that_are_a_hundred_times_each_others():
    norms = row(1, 10, 100)
    balance = balance_of(rules_of("gradnorm", options={"alpha": 0.0}))
    weights = [take_step(balance, row(1, 1, 1), norms=norms) for _ in range(300)]
    pulls = norms * torch.cat(weights)[-100:].mean(0)
    assert pulls.max() < 2 * pulls.min()


def test_a_gradnorm_weight_never_passes_zero():
    options = {"optimiser": "sgd", "lr": 1.0}
    balance = balance_of(rules_of("gradnorm", ("a", "b"), options=options))
    for _ in range(5):
        assert (take_step(balance, row(1, 1), norms=row(1, 100)) > 0).all()


def test_geometric_weights_are_the_mean_over_each_loss():
    # L = sqrt(2 * 8) = 4; dL/dL_t = L / (2 L_t).
    assert_close(take_step(balance_of(rules_of("geometric", ("a", "b"))), row(2, 8)), row(1, 0.25))


def test_imtl_l_brings_every_loss_to_one():
    # Liu et al. section 3.3: exp(s) L - s, from s = 0: ds = L - 1.
    rules = rules_of("imtl-l", ("a", "b"), options={"optimiser": "sgd", "lr": 0.1})
    balance = balance_of(rules)
    assert_close(take_step(balance, row(3, 0.5)), row(1, 1))
    assert_close(take_step(balance, row(3, 0.5)), row(math.exp(-0.2), math.exp(0.05)))
    for _ in range(500):
        weights = take_step(balance, row(3, 0.5))
    assert_close(weights * row(3, 0.5), row(1, 1), 1e-6)


def test_famo_divides_shares_by_losses_and_favours_what_fell_least():
    # Liu et al. Algorithm 1: z = 1/2 each, w_t = c z_t / L_t with sum 1; then losses 1, 4 fall to
    # 1/2, 4: the first one's logit falls (Adam's first step is lr in size), the other's rises.
    balance = balance_of(rules_of("famo", ("a", "b"), options={"weight-decay": 0.0}))
    assert_close(take_step(balance, row(1, 4), after=row(0.5, 4)), row(0.8, 0.2))
    assert_close(balance.state["logit"], row(-0.025, 0.025), 1e-6)


def test_smooth_tchebycheff_weighs_relative_to_the_first_round():
    # First round: sum log L, weights 1 / L. Then, first losses 4 and 8, losses 2 and 2, mu 1/2:
    # 2 softmax(log(L / N) / mu) / L with (L / N)^2 = 1/4 and 1/16, shares 4/5 and 1/5.
    balance = balance_of(rules_of("smooth-tchebycheff", ("a", "b"), options={"mu": 0.5}))
    assert_close(take_step(balance, row(4, 8)), row(0.25, 0.125))
    balance.end_round(*sums_of(4, 8))
    assert_close(take_step(balance, row(2, 2)), row(0.8, 0.2))
    balance.end_round(*sums_of(2, 2))  # later rounds are not the first
    assert_close(take_step(balance, row(2, 2)), row(0.8, 0.2))


def test_smooth_tchebycheff_takes_a_preference_of_which_only_ratios_count():
    # lambda = 3/2 and 1/2, losses where they began: 2 * lambda / 2 / L.
    for preference in ([3, 1], [1.5, 0.5]):
        options = {"preference": preference}
        balance = balance_of(rules_of("smooth-tchebycheff", ("a", "b"), options=options))
        balance.end_round(*sums_of(1, 1))
        assert_close(take_step(balance, row(1, 1)), row(1.5, 0.5))


@pytest.mark.parametrize("scaling", ["none", "initial", "running-mean"])
def test_smooth_tchebycheff_minds_no_unit_under_any_scaling(scaling):
    """Losses that stand still relative to their start pull alike, whatever their units."""
    balance = balance_of(rules_of("smooth-tchebycheff", ("a", "b"), scaling=scaling))
    for _ in range(2):
        weights = take_step(balance, row(1, 1000))
        balance.end_round(*sums_of(1, 1000))
    assert_close(weights, row(1, 0.001), 1e-6)


def test_random_weights_are_softmaxes_of_standard_normal_draws():
    balance = balance_of(rules_of("random", ("a", "b")))
    drawn = torch.cat([take_step(balance, row(1, 1)) for _ in range(4000)])
    assert_close(drawn.sum(1), torch.ones(4000, dtype=torch.float64), 1e-6)
    # log(w_1 / w_2) is the difference of two standard normals: mean 0, variance 2.
    differences = (drawn[:, 0] / drawn[:, 1]).log()
    assert abs(differences.mean()) < 3 * math.sqrt(2 / 4000)
    assert abs(differences.var() - 2) < 3 * 2 * math.sqrt(2 / 4000)


def test_random_weights_are_alike_at_all_clients_of_a_step_and_new_in_every_step_and_round():
    rules = rules_of("random")
    drawn = []
    for clients, round_number, epoch in ((2, 1, 0), (3, 1, 0), (1, 1, 1), (1, 2, 0)):
        balance = balance_of(rules, clients)
        balance.start_epoch(round_number, epoch)
        steps = [take_step(balance, row(1, 1, 1).repeat(clients, 1)) for _ in range(2)]
        assert all((step == step[0]).all() for step in steps)
        drawn.append([tuple(step[0].tolist()) for step in steps])
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2], *drawn[3]}) == 6


@pytest.mark.parametrize(
    ("scaling", "weights"),
    [
        ("none", [(1, 1), (1, 1)]),
        ("initial", [(0.5, 0.25), (0.5, 0.25)]),  # 1 / L(0)
        ("running-mean", [(0.5, 0.25), (1 / 1.9, 1 / 4.4)]),  # 0.9 * 2 + 0.1 * 1; 0.9 * 4 + 0.8
        ("log", [(0.5, 0.25), (1, 0.125)]),  # 1 / L
    ],
)
def test_a_scaling_weighs_by_its_slope(scaling, weights):
    balance = balance_of(rules_of("equal", ("a", "b"), scaling=scaling))
    for losses, expected in zip(((2, 4), (1, 8)), weights, strict=True):
        assert_close(take_step(balance, row(*losses)), row(*expected))


def test_uncertainty_under_a_scaling_learns_from_the_scaled_loss():
    options = {"optimiser": "sgd", "lr": 0.1}
    balance = balance_of(rules_of("uncertainty", ("a", "b"), options=options, scaling="initial"))
    # Scaled losses are 1: ds = 1/2 - 1/2 = 0, and the weights are 1/2 divided by L(0).
    assert_close(take_step(balance, row(4, 100)), row(0.125, 0.005))
    assert_close(balance.state["log-variance"], row(0, 0))


# By public reference code, step by step; see the file's own words.

SGD = {"optimiser": "sgd", "lr": 0.1}
LOSS_RUNS = {  # run -> method, options, state before the first step, state to compare
    "dwa": ("dwa", {}, {}, {}),
    "uncertainty": ("uncertainty", SGD, {}, {"log-variance": "s_after"}),
    "uncertainty nash-mtl": ("uncertainty", SGD, {}, {"log-variance": "s_after"}),
    "imtl-l": ("imtl-l", SGD, {}, {"log-scale": "s_after"}),
    "geometric": ("geometric", {}, {}, {}),
    "famo": ("famo", {"weight-decay": 0.01}, {}, {"logit": "w_after"}),
    "famo LibMTL": ("famo", {"weight-decay": 0.001}, {}, {"logit": "w_after"}),
    **{
        f"smooth-tchebycheff mu {mu}": (
            "smooth-tchebycheff",
            {"mu": mu},
            {"first-loss": [1.0, 20.0, 0.5]},
            {},
        )
        for mu in (1.0, 0.5, 0.1)
    },
    "gradnorm sgd": (
        "gradnorm",
        {"optimiser": "sgd", "lr": 0.0025},
        {},
        {"weight": "weights_after"},
    ),
    "gradnorm adam": ("gradnorm", {}, {}, {"weight": "weights_after"}),
}


def difference(found, expected) -> float:
    """The largest difference, relative to the largest number."""
    expected = torch.as_tensor(expected, dtype=torch.float64).reshape(found.shape)
    return float((found - expected).abs().max() / expected.abs().max())


def loss_run_difference(run: str) -> float:
    """Take the reference's steps; returns the largest relative difference of any number."""
    method, options, state, compared = LOSS_RUNS[run]
    balance = balance_of(rules_of(method, options=options))
    for name, values in state.items():
        balance.state[name].copy_(row(*values))
    worst = 0.0
    for number, step in enumerate(RUNS[run]["steps"]):
        at = min(number, len(CASE["losses"]) - 1)  # the last epoch of DWA has no losses of its own
        losses = row(*step.get("losses", CASE["losses"][at]))
        norms = row(*step["raw_grad_norms"]) if "raw_grad_norms" in step else None
        weights = take_step(balance, losses, row(*CASE["losses_after"][at]), norms)
        pairs = [(weights, step.get("coefficients", step.get("weights")))]
        pairs += [(balance.state[name], step[theirs]) for name, theirs in compared.items()]
        worst = max([worst, *(difference(*pair) for pair in pairs)])
        if method == "dwa":
            balance.end_round(losses, torch.ones_like(losses))
    return worst


@pytest.mark.parametrize("run", LOSS_RUNS)
def test_a_loss_weighting_takes_the_steps_of_its_reference_code(run):
    # FAMO's references add 1e-8 to each loss, where ours goes no lower than that.
    assert loss_run_difference(run) < (1e-6 if "famo" in run else 1e-10)


# run -> method, options, factor of ours over theirs, tolerance. The first four are solved by
# iterations of unlike solvers; PCGrad's and GradVac's references have 1e-8 in denominators.
TIGHT = {"epsilon": 1e-7, "max-iters": 20000}
GRADIENT_RUNS = {
    "mgda": ("mgda", {}, 1, 2e-3),
    "mgda exact": ("mgda", TIGHT, 1, 1e-4),
    "cagrad c 0.4": ("cagrad", {"c": 0.4}, 1, 1e-3),
    "cagrad c 0.5": ("cagrad", {"c": 0.5}, 1, 1e-3),
    "pcgrad": ("pcgrad", {}, 1, 1e-8),
    "pcgrad ascending": ("pcgrad", {}, 1, 1e-8),
    "pcgrad descending": ("pcgrad", {}, 1, 1e-8),
    "gradvac": ("gradvac", {"beta": 0.5}, 1, 1e-8),
    "gradvac ascending": ("gradvac", {"beta": 0.5}, 1, 1e-8),
    "nash-mtl": ("nash-mtl", {}, 1, 1e-5),
    "nash-mtl free": ("nash-mtl", {"max-norm": 0.0}, 1, 1e-5),
    "imtl-g": ("imtl-g", {}, 1, 1e-10),
    # The reference sums over tasks, ours averages.
    **{f"aligned-mtl {s}": ("aligned-mtl", {"scale": s}, 1 / 3, 1e-10) for s in ("min", "rmse")},
    "aligned-mtl median": ("aligned-mtl", {"scale": "median"}, 1 / 3, 1e-10),
    "upgrad": ("upgrad", {}, 1, 1e-8),
    **{f"fairgrad alpha {a}": ("fairgrad", {"alpha": float(a)}, 1, 1e-8) for a in ("1", "2")},
    "fairgrad alpha 0.5": ("fairgrad", {"alpha": 0.5}, 1, 1e-8),
}


def gradient_run_difference(run: str, monkeypatch) -> float:
    """Combine the reference's Jacobians; returns the largest relative difference."""
    method, options, factor, _ = GRADIENT_RUNS[run]
    gradients = rules_of(method, options=options).gradients
    worst = 0.0
    for jacobian, step in zip(CASE["jacobians"], RUNS[run]["steps"], strict=True):
        matrix = torch.tensor(jacobian, dtype=torch.float64)
        orders = iter(step.get("orders", ()))
        place = iter(range(3))

        def draw(count, orders=orders, place=place):
            """The order that the reference drew; GradVac's counts the other tasks only."""
            order, task = next(orders), next(place)
            if count < 3:
                order = [j - (j > task) for j in order]
            return torch.tensor(order)

        with monkeypatch.context() as patched:
            if "orders" in step:
                patched.setattr(torch, "randperm", draw)
            combined, weights = gradients.combine(matrix, (0, 1, 2))
        theirs = step.get("weights", step.get("weights_effective_on_shared"))
        worst = max(worst, difference(weights, row(*theirs) * factor))
        worst = max(worst, difference(combined, matrix.T @ weights))
        if "aggregated" in step:
            aggregated = torch.tensor(step["aggregated"], dtype=torch.float64)
            worst = max(worst, difference(combined, aggregated * factor))
    return worst


@pytest.mark.parametrize("run", GRADIENT_RUNS)
def test_gradient_balancing_combines_as_its_reference_code(run, monkeypatch):
    assert gradient_run_difference(run, monkeypatch) < GRADIENT_RUNS[run][-1]


def test_every_reference_run_is_compared_and_says_where_it_comes_from():
    assert set(RUNS) == {*LOSS_RUNS, *GRADIENT_RUNS}
    assert all(run["repository"] and run["path"] for run in RUNS.values())


# By torchjd's scalarizations, whose derivative in a loss is its weight.


class Oracle:
    """One of torchjd's scalarizations and what learns its parameters."""

    def __init__(self, scalarizer, optimiser=None):
        self.scalarizer = scalarizer.double()
        self.optimiser = optimiser and optimiser(scalarizer.parameters())

    def take_step(self, losses, after):
        values = losses[0].clone().requires_grad_()
        if self.optimiser:
            self.optimiser.zero_grad()
        self.scalarizer(values).backward()
        if self.optimiser:
            self.optimiser.step()
        if isinstance(self.scalarizer, scalarization.FAMO):
            self.scalarizer.update(after[0])
        return values.grad.unsqueeze(0)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.025)


ORACLES = {
    "uncertainty, sgd": ("uncertainty", SGD, lambda: Oracle(scalarization.UW(3), sgd)),
    "uncertainty, adam": ("uncertainty", {}, lambda: Oracle(scalarization.UW(3), adam)),
    "imtl-l, sgd": ("imtl-l", SGD, lambda: Oracle(scalarization.IMTLL(3), sgd)),
    "imtl-l, adam": ("imtl-l", {}, lambda: Oracle(scalarization.IMTLL(3), adam)),
    "geometric": ("geometric", {}, lambda: Oracle(scalarization.GeometricMean())),
    "famo": ("famo", {}, lambda: Oracle(scalarization.FAMO(3))),
    "equal": ("equal", {}, lambda: Oracle(scalarization.Sum())),
}


@pytest.mark.parametrize("case", ORACLES)
def test_weights_are_the_derivative_of_torchjds_scalarization(case):
    method, options, make = ORACLES[case]
    balance, oracle = balance_of(rules_of(method, options=options)), make()
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        losses = torch.rand(1, 3, generator=generator, dtype=torch.float64) * row(0.3, 1, 5) + 0.1
        after = losses * (0.5 + torch.rand(1, 3, generator=generator, dtype=torch.float64))
        assert_close(take_step(balance, losses, after), oracle.take_step(losses, after), 1e-6)


def test_smooth_tchebycheff_is_torchjds_of_logarithms_relative_to_the_first_round():
    options = {"mu": 0.5, "preference": [2.0, 1.0, 3.0]}
    balance = balance_of(rules_of("smooth-tchebycheff", options=options))
    balance.end_round(*sums_of(1, 20, 0.5))
    oracle = scalarization.STCH(0.5, weights=row(1, 0.5, 1.5)[0])
    values = row(0.8, 9, 0.6)[0].requires_grad_()
    (3 * oracle((values / row(1, 20, 0.5)[0]).log())).backward()
    assert_close(take_step(balance, values.detach().unsqueeze(0))[0], values.grad)


def test_dwa_weighs_as_torchjds_does_over_rounds_of_two_steps():
    balance, oracle = balance_of(rules_of("dwa")), scalarization.DWA()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        steps = torch.rand(2, 1, 3, generator=generator, dtype=torch.float64) + 0.1
        for losses in steps:
            values = losses[0].clone().requires_grad_()
            oracle(values).backward()
            assert_close(take_step(balance, losses)[0], values.grad)
        oracle.step()
        balance.end_round(steps.sum(0), torch.full((1, 3), 2.0, dtype=torch.float64))


def test_every_loss_weighting_has_a_claim_of_its_own_here():
    """A new entry of the table needs a test by hand, named after it."""
    names = [name.replace("_", "-") for name in globals() if name.startswith("test_")]
    referenced = {method for method, *_ in (*LOSS_RUNS.values(), *GRADIENT_RUNS.values())}
    for weighting in WEIGHTINGS:
        if weighting not in referenced and weighting not in OTHERWISE:
            assert any(weighting in name for name in names), weighting


# Methods of torchjd's own making or without public reference figures: its own tests and the laws
# of tests/test_common_weighting_laws.py answer for them.
OTHERWISE = {"dualproj", "config", "graddrop"}
