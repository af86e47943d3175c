"""Laws of every loss weighting, scaling and gradient method: a new entry is tested on arrival."""

import json

import pytest
import torch
from flwr.app import Context, RecordDict

from client.own_arrays import MEMORY
from client.state import open_state
from client.training import Trainer
from common.weighting.balance import Balance
from common.weighting.scaling import SCALINGS
from common.weighting.table import WEIGHTINGS
from common.wire import Instruction
from server.checkpoint import Checkpoints, Progress
from tests.balances import (
    COMBINATIONS,
    GRADIENT_METHODS,
    LEARNING,
    LOSS_WEIGHTINGS,
    NAMES,
    balance_of,
    rules_of,
    take_step,
)

EVERYTHING = [(0.5, 3.0, 40.0), (0.4, 3.5, 20.0), (0.45, 2.0, 25.0), (0.3, 2.5, 10.0)]
both = pytest.mark.parametrize(("weighting", "scaling"), COMBINATIONS)
gradients = pytest.mark.parametrize("method", GRADIENT_METHODS)


def run_rounds(balance, losses, taught=None, rounds=3, norms=None):
    """Steps on the same losses, [K, T] each, round after round; returns all weights."""
    found = []
    for _ in range(rounds):
        for step, after in zip(losses, [*losses[1:], losses[0]], strict=True):
            found.append(take_step(balance, step, after, norms, taught))
        rows = torch.full_like(losses[0], 4.0) if taught is None else 4.0 * taught
        balance.end_round(sum(losses) / len(losses) * 4, rows)
    return torch.stack(found)


def steps_of(clients=1, places=(0, 1, 2)) -> list[torch.Tensor]:
    """Losses of some steps, unlike at every client."""
    table = torch.tensor(EVERYTHING, dtype=torch.float64)[:, list(places)]
    return [torch.stack([row * (1 + 0.3 * k) for k in range(clients)]) for row in table]


def jacobian(rows=3, seed=0) -> torch.Tensor:
    """Gradients of unlike length, some in conflict."""
    drawn = torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if rows > 1:
        drawn[1] -= drawn[0]
    return drawn * torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)[:rows, None]


@both
def test_weights_are_finite_and_not_below_zero(weighting, scaling):
    rules = rules_of(weighting, scaling=scaling)
    weights = run_rounds(balance_of(rules), steps_of())
    assert torch.isfinite(weights).all()
    assert not rules.weighting.non_negative or (weights >= 0).all()
    assert (weights > 0).any(-1).all()


@both
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e15])
def test_a_loss_of_any_size_spoils_no_weight(weighting, scaling, size):
    balance = balance_of(rules_of(weighting, scaling=scaling), dtype=torch.float32)
    odd = [torch.tensor([[1.0, size, 2.0]]), torch.tensor([[0.5, size, 3.0]])]
    weights = run_rounds(balance, odd, norms=torch.tensor([[1.0, min(size, 1e4), 2.0]]))
    assert torch.isfinite(weights).all()
    assert all(torch.isfinite(values).all() for values in balance.state.values())


@both
@pytest.mark.parametrize("place", [0, 2])
def test_a_task_alone_in_a_batch_has_a_positive_weight_and_the_others_none(
    weighting, scaling, place
):
    balance = balance_of(rules_of(weighting, scaling=scaling))
    taught = torch.arange(3).unsqueeze(0) == place
    weights = run_rounds(balance, steps_of(), taught)
    assert (weights[:, 0, place] > 0).all()
    assert (weights[:, ~taught] == 0).all()


@both
def test_the_order_of_tasks_only_orders_their_weights(weighting, scaling):
    if WEIGHTINGS[weighting].load().needs_noise:
        pytest.skip("draws go by a task's place; another order is another draw")
    order = [2, 0, 1]
    options = {"preference": [1.0, 2.0, 3.0]} if weighting == "smooth-tchebycheff" else {}
    turned = {"preference": [3.0, 1.0, 2.0]} if options else {}
    ours = rules_of(weighting, scaling=scaling, options=options)
    theirs = rules_of(
        weighting, tuple(NAMES[place] for place in order), scaling=scaling, options=turned
    )
    found = run_rounds(balance_of(ours), steps_of())
    permuted = run_rounds(balance_of(theirs), steps_of(places=order))
    torch.testing.assert_close(found[:, :, order], permuted)


@both
def test_an_absent_task_is_as_one_that_the_experiment_does_not_have(weighting, scaling):
    if WEIGHTINGS[weighting].load().needs_noise:
        pytest.skip("fewer tasks are fewer draws; see the test of softmax over present tasks")
    options = {"preference": [1.0, 9.0, 3.0]} if weighting == "smooth-tchebycheff" else {}
    fewer = {"preference": [1.0, 3.0]} if options else {}
    taught = torch.tensor([[True, False, True]])
    whole = balance_of(rules_of(weighting, scaling=scaling, options=options))
    small = balance_of(rules_of(weighting, ("a", "c"), scaling=scaling, options=fewer))
    before = {name: values[:, 1].clone() for name, values in whole.state.items()}
    found = run_rounds(whole, steps_of(), taught)
    assert (found[:, :, 1] == 0).all()
    assert all(torch.equal(whole.state[name][:, 1], value) for name, value in before.items())
    torch.testing.assert_close(found[:, :, [0, 2]], run_rounds(small, steps_of(places=(0, 2))))
    for name, values in small.state.items():
        torch.testing.assert_close(whole.state[name][:, [0, 2]], values)


@both
def test_a_task_that_comes_and_goes_keeps_what_was_remembered_of_it(weighting, scaling):
    balance = balance_of(rules_of(weighting, scaling=scaling))
    run_rounds(balance, steps_of())
    before = {name: values[:, 1].clone() for name, values in balance.state.items()}
    run_rounds(balance, steps_of(), torch.tensor([[True, False, True]]))
    assert all(torch.equal(balance.state[name][:, 1], value) for name, value in before.items())


@both
def test_a_step_that_teaches_nothing_weighs_nothing_and_changes_nothing(weighting, scaling):
    balance = balance_of(rules_of(weighting, scaling=scaling))
    run_rounds(balance, steps_of())
    before = {name: values.clone() for name, values in balance.state.items()}
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert (run_rounds(balance, steps_of(), nothing) == 0).all()
    assert all(torch.equal(balance.state[name], value) for name, value in before.items())


@both
def test_clients_side_by_side_weigh_and_learn_as_each_alone(weighting, scaling):
    rules, steps = rules_of(weighting, scaling=scaling), steps_of(clients=3)
    taught = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    together = balance_of(rules, 3)
    found = run_rounds(together, steps, taught)
    for k in range(3):
        alone = balance_of(rules)
        own = run_rounds(alone, [step[k : k + 1] for step in steps], taught[k : k + 1])
        torch.testing.assert_close(found[:, k], own[:, 0], rtol=1e-12, atol=1e-12)
        for name, values in alone.state.items():
            torch.testing.assert_close(together.state[name][k], values[0], rtol=1e-12, atol=1e-12)


@both
def test_the_first_clients_step_on_and_leave_the_others_as_they_are(weighting, scaling):
    balance = balance_of(rules_of(weighting, scaling=scaling), 3)
    run_rounds(balance, steps_of(clients=3))
    before = {name: values[2].clone() for name, values in balance.state.items()}
    for step in steps_of(clients=2):
        take_step(balance, step)
    assert all(torch.equal(balance.state[name][2], value) for name, value in before.items())


@both
def test_a_new_balance_remembers_only_what_it_is_given(weighting, scaling):
    rules = rules_of(weighting, scaling=scaling)
    first = run_rounds(balance_of(rules), steps_of())
    assert torch.equal(first, run_rounds(balance_of(rules), steps_of()))


@pytest.mark.parametrize("weighting", LOSS_WEIGHTINGS)
@pytest.mark.parametrize("scaling", ["initial", "running-mean"])
def test_a_scaled_loss_has_no_unit(weighting, scaling):
    """Gram or kilogram: the weight of the loss changes inversely, and no other weight at all."""
    rules, unit = rules_of(weighting, scaling=scaling), torch.tensor([1.0, 1000.0, 0.01])
    found = run_rounds(balance_of(rules), steps_of(), norms=torch.ones(1, 3))
    scaled = run_rounds(
        balance_of(rules), [step * unit for step in steps_of()], norms=unit.unsqueeze(0)
    )
    torch.testing.assert_close(scaled * unit, found, rtol=1e-5, atol=1e-7)


@both
def test_recorded_means_are_those_of_the_weights(weighting, scaling):
    balance = balance_of(rules_of(weighting, scaling=scaling, record="gradients"))
    norms = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    weights = torch.cat([take_step(balance, step, norms=norms) for step in steps_of()])
    report = balance.report(torch.full((1, 3), 8.0))
    for place, task in enumerate(NAMES):
        total, steps = report[task]["weight"][0].tolist()
        assert total / steps == pytest.approx(float(weights[:, place].mean()))
        total, steps = report[task]["pull"][0].tolist()
        expected = float(weights[:, place].mean()) * (place + 1)
        assert total / steps == pytest.approx(expected)


# What is remembered, on its way.

REMEMBERED = [(w, s) for w, s in COMBINATIONS if w in LEARNING or SCALINGS[s].observe]


@pytest.fixture(params=REMEMBERED, ids=lambda pair: "-".join(pair))
def learned(request):
    """Rules, and a balance that remembers something of two tasks and nothing of the third."""
    weighting, scaling = request.param
    rules = rules_of(weighting, scaling=scaling)
    balance = balance_of(rules, dtype=torch.float32)
    taught = torch.tensor([[True, False, True]])
    run_rounds(balance, [step.float() for step in steps_of()], taught)
    return rules, balance


def same_state(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(values, right[name]) for name, values in left.items())


def test_state_comes_back_from_what_rules_recall(learned):
    rules, balance = learned
    remembered = rules.remember(rules.recall(balance.state), torch.device("cpu"))
    assert same_state(remembered, balance.state)


def test_state_comes_back_from_an_instruction(learned):
    rules, balance = learned
    sent = Instruction("{}", round=1, memory=rules.recall(balance.state))
    received = Instruction.from_record(sent.to_record())
    assert same_state(rules.remember(received.memory, torch.device("cpu")), balance.state)
    assert sent.size_bytes() > Instruction("{}", round=1).size_bytes()


def test_state_comes_back_from_a_checkpoint(learned, tmp_path):
    rules, balance = learned
    memory = rules.recall(balance.state)
    checkpoints = Checkpoints(tmp_path / "checkpoint", None)
    checkpoints.save(Progress("one", round=1, loss_memory=memory), {})
    progress, _ = checkpoints.load("one")
    assert same_state(rules.remember(progress.loss_memory, torch.device("cpu")), balance.state)


def test_state_comes_back_from_flowers_own_context(learned):
    rules, balance = learned
    experiment = rules.experiment.model_copy(
        update={"loss": rules.experiment.loss.model_copy(update={"scope": "local"})}
    )
    context = Context(
        run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={}
    )
    trainer, other = (Trainer(experiment, {"x": (2,)}, torch.device("cpu")) for _ in range(2))
    trainer.load({}, {})
    recalled = rules.recall(balance.state)
    trainer._memory = {task: recalled[task] for task in ("a", "c")}
    kept = trainer.own_arrays(NAMES)
    assert {name for name in kept if name.startswith(MEMORY)} == {f"{MEMORY}a", f"{MEMORY}c"}
    for number in (1, 2):  # a second time into the same memory
        open_state(context, "client", "r").save(number, kept)
    other.load({}, open_state(context, "client", "r").load(3))
    assert same_state(rules.remember(other._memory, torch.device("cpu")), balance.state)


def test_a_shared_state_is_reported_for_the_tasks_that_were_taught_and_averages_to_itself(learned):
    rules, balance = learned
    report = balance.report(torch.tensor([[8.0, 0.0, 2.0]]))
    assert all(count == 0 for count in report["b"]["state-" + next(iter(rules.initial))][:, 1])
    memory = json.loads(json.dumps(rules.recall(balance.state)))
    for task in ("a", "c"):
        for name in rules.initial:
            total, count = report[task][f"state-{name}"][0].tolist()
            assert total / count == pytest.approx(memory[task][name])


def test_a_state_of_ones_own_is_not_reported():
    rules = rules_of("uncertainty", scope="local")
    report = balance_of(rules).report(torch.full((1, 3), 8.0))
    assert not any(name.startswith("state-") for name in report["a"])


# Half precision and other devices.


@both
def test_autocast_changes_no_weight(weighting, scaling):
    rules = rules_of(weighting, scaling=scaling)
    plain = run_rounds(balance_of(rules, dtype=torch.float32), [s.float() for s in steps_of()])
    with torch.autocast("cpu", torch.bfloat16):
        cast = run_rounds(balance_of(rules, dtype=torch.float32), [s.float() for s in steps_of()])
    assert torch.equal(plain, cast)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@both
def test_weights_on_a_gpu_are_those_on_the_cpu(weighting, scaling):
    rules = rules_of(weighting, scaling=scaling)
    cpu = run_rounds(balance_of(rules), steps_of())
    device = torch.device("cuda")
    state = {name: values.double() for name, values in rules.remember({}, device).items()}
    balance = Balance(rules, state, dict.fromkeys(NAMES, 1.0))
    balance.start_epoch(1, 0)
    found = run_rounds(balance, [step.to(device) for step in steps_of()])
    torch.testing.assert_close(found.cpu(), cpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@gradients
def test_gradients_on_a_gpu_are_combined_as_on_the_cpu(method):
    if WEIGHTINGS[method].load().draws_on_device:
        pytest.skip("a GPU draws other numbers")
    combined = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        found, _ = rules_of(method).gradients.combine(jacobian().to(device), (0, 1, 2))
        combined.append(found.cpu())
    torch.testing.assert_close(*combined, rtol=1e-4, atol=1e-4)


# Gradient methods.


def combine(method, matrix, places, rules=None, seed=0, **options):
    torch.manual_seed(seed)
    rules = rules or rules_of(method, ("a", "b", "c", "d"), options=options)
    return rules.gradients.combine(matrix, places)


@gradients
def test_a_gradient_alone_is_its_own(method):
    matrix = jacobian(1)
    combined, weights = combine(method, matrix, (2,))
    assert torch.equal(combined, matrix[0])
    assert weights.tolist() == [1.0]


@gradients
def test_the_combined_gradient_is_the_weighted_sum(method):
    matrix = jacobian()
    combined, weights = combine(method, matrix, (0, 1, 2))
    assert torch.isfinite(combined).all()
    assert not WEIGHTINGS[method].load().non_negative or (weights >= -1e-9).all()
    nearest = torch.linalg.lstsq(matrix.T, combined.unsqueeze(1)).solution[:, 0]
    torch.testing.assert_close(weights, nearest, rtol=1e-6, atol=1e-6)
    if WEIGHTINGS[method].load().weighs_whole_gradients:
        torch.testing.assert_close(weights @ matrix, combined, rtol=1e-6, atol=1e-6)


ODD = {
    "nothing": lambda m: m * 0,
    "one stands still": lambda m: m * torch.tensor([[1.0], [0.0], [1.0]]).double(),
    "one and the same": lambda m: m[:1].repeat(3, 1),
    "opposite": lambda m: torch.stack([m[0], -m[0], m[2]]),
    "at a front": lambda m: torch.stack([m[0], m[1], -m[0] - m[1]]),
    "tiny": lambda m: m * 1e-6,
    "huge": lambda m: m * 1e6,
    "unlike": lambda m: m * torch.tensor([[1.0], [1e3], [1e-3]]).double(),
}


@gradients
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_odd_gradients_are_combined_into_something_finite(method, case, dtype):
    matrix = ODD[case](jacobian()).to(dtype)
    combined, weights = combine(method, matrix, (0, 1, 2))
    assert torch.isfinite(combined).all()
    assert torch.isfinite(weights).all()
    assert combined.dtype == weights.dtype == dtype
    if case == "nothing":
        assert not combined.any()


@gradients
def test_the_order_of_gradients_only_orders_their_weights(method):
    if WEIGHTINGS[method].load().minds_order:
        pytest.skip("goes through the tasks one by one, in a drawn order")
    matrix, order = jacobian(), [2, 0, 1]
    combined, weights = combine(method, matrix, (0, 1, 2))
    again, permuted = combine(method, matrix[order], (0, 1, 2))
    # Iterations and conic programs stop near the solution, not at it.
    torch.testing.assert_close(permuted, weights[order], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(again, combined, rtol=5e-3, atol=5e-3)


@gradients
def test_gradients_are_combined_without_the_tasks_that_are_not_there(method):
    matrix = jacobian()
    of_four, _ = combine(method, matrix, (0, 2, 3))
    of_three, _ = combine(method, matrix, (0, 1, 2), rules_of(method))
    assert torch.equal(of_four, of_three)


WITH_PREFERENCE = [
    m for m in GRADIENT_METHODS if "preference" in WEIGHTINGS[m].load().Options.model_fields
]


@pytest.mark.parametrize("method", WITH_PREFERENCE)
def test_a_preference_is_cut_to_the_tasks_that_are_there_and_only_ratios_count(method):
    matrix = jacobian()
    found, _ = combine(method, matrix, (0, 2, 3), preference=[2.0, 7.0, 4.0, 6.0])
    three = rules_of(method, options={"preference": [1.0, 2.0, 3.0]})
    torch.testing.assert_close(found, combine(method, matrix, (0, 1, 2), three)[0])
    # No preference is an even one.
    plain, _ = combine(method, matrix, (0, 1, 2))
    even, _ = combine(method, matrix, (0, 1, 2), preference=[5.0, 5.0, 5.0, 5.0])
    torch.testing.assert_close(plain, even)


@gradients
def test_a_new_round_forgets_what_gradients_taught(method):
    rules = rules_of(method)
    first = [combine(method, jacobian(seed=s), (0, 1, 2), rules)[0] for s in (1, 2)]
    Balance(rules, {}, dict.fromkeys(NAMES, 1.0))  # a round begins
    again = [combine(method, jacobian(seed=s), (0, 1, 2), rules)[0] for s in (1, 2)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@gradients
def test_what_a_set_of_tasks_taught_is_kept_apart(method):
    rules = rules_of(method, ("a", "b", "c", "d"))
    alone = [combine(method, jacobian(seed=s), (0, 1, 2), rules)[0] for s in (1, 2)]
    rules.gradients.reset()
    mixed = []
    for seed in (1, 2):
        mixed.append(combine(method, jacobian(seed=seed), (0, 1, 2), rules)[0])
        combine(method, jacobian(seed=9), (1, 2, 3), rules)
    assert all(torch.equal(one, other) for one, other in zip(alone, mixed, strict=True))


@gradients
def test_autocast_changes_no_combination(method):
    plain, _ = combine(method, jacobian().float(), (0, 1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = combine(method, jacobian().float(), (0, 1, 2))
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("ratio", [1e4, 1e5])
@pytest.mark.parametrize("method", ["imtl-g", "aligned-mtl", "config"])
def test_what_balances_directions_does_so_beside_a_gradient_of_another_size(method, ratio):
    """The combination has like cosines with all gradients, in whatever units they are."""
    matrix = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    matrix[0] *= ratio
    combined, _ = combine(method, matrix, (0, 1, 2))
    cosines = matrix @ combined / matrix.norm(dim=1) / combined.norm()
    assert cosines.max() < 1.2 * cosines.min()


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("ratio", [1.0, 1e4, 1e5])
def test_cagrad_keeps_its_distance_from_the_mean_whatever_the_gradients_measure(ratio, factor):
    # Liu et al. 2021, eq. 4: |d - g0| <= c |g0|, with equality off the Pareto front.
    matrix = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    matrix[0] *= ratio
    combined, _ = combine("cagrad", matrix * factor, (0, 1, 2), c=0.4)
    mean = (matrix * factor).mean(0)
    assert (combined - mean).norm() / mean.norm() == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_gradients_that_are_no_numbers_give_none(method):
    matrix = torch.ones(3, 5)
    matrix[1, 2] = torch.inf
    combined, _ = combine(method, matrix, (0, 1, 2))
    assert combined.isnan().all()
