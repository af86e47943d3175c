"""What holds for every algorithm of the client's side, whatever it does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import MessageType
from pydantic import ValidationError
from safetensors.numpy import load_file

import client.job
from client.algorithms.algorithm import open_algorithm
from client.kept_model import open_kept
from client.node.dry_run import dry_run
from client.node.policy import Policy
from client.session import close_sessions
from client.state import OWN
from client.training import Trainer
from common.agreement import input_shapes
from common.algorithms import ALGORITHMS
from common.errors import CheckpointError
from common.losses import ROW_LOSSES
from common.wire import arrays_of, unpack_arrays
from server.federation import initial_trunk
from simulations.baselines import read_clients
from simulations.kept_run import open_run
from simulations.loopback import LoopbackGrid
from simulations.simulate import simulate
from tests.algorithm_runs import (
    Run,
    assert_close,
    assert_equal,
    assert_same_figures,
    plan,
    run,
    stop_after,
    write_clients,
)

SHARING_TRUNK = [name for name, line in ALGORITHMS.items() if line.shares == "trunk"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of rows: of clients that hold all tasks, and of such that do not."""
    root = tmp_path_factory.mktemp("rows")
    return {
        "whole": write_clients(root / "whole", lacking=""),
        "partial": write_clients(root / "partial"),
    }


@pytest.fixture
def planned(folders):
    """Make an experiment; one client lacks a task, where the algorithm can do with that."""

    def make(algorithm, *, whole=False, **tables):
        needs_all = whole or ALGORITHMS[algorithm].shares == "all"
        return plan(folders["whole" if needs_all else "partial"], algorithm, **tables)

    return make


def pairs(names, is_often=lambda algorithm, name: False):
    """Every algorithm with every name; what runs on request only is marked."""
    return [
        pytest.param(a, n, marks=() if is_often(a, n) else pytest.mark.slow)
        for n in names
        for a in ALGORITHMS
    ]


def plan_or_none(planned, algorithm, **tables):
    """Make an experiment, or None where the algorithm refuses such settings."""
    try:
        return planned(algorithm, **tables)
    except ValidationError as error:
        if f"'{algorithm}'" not in str(error):  # who refuses says so
            raise
        return None


def plan_or_skip(planned, algorithm, **tables):
    """Make an experiment, or skip the test."""
    experiment = plan_or_none(planned, algorithm, **tables)
    if experiment is None:
        pytest.skip(f"'{algorithm}' refuses these settings")
    return experiment


# The engines --------------------------------------------------------------------------------------

SAMPLED = {"clients-per-round": 2, "rounds": 4}
BATCH_NORM = {"norm": "batch", "norm-parameters": "local"}
DROPOUT = {"dropout": 0.3}
SCHEDULED = {
    "schedule": "exponential",
    "step-schedule": "cyclic",
    "step-schedule-options": {"half": 2},
    "clip-norm": 0.5,
}
CASES = {
    "plain": {},
    "sampled": {"federation": SAMPLED},
    "uncertainty": {"loss": {"weighting": "uncertainty"}, "federation": SAMPLED},
    "own uncertainty": {
        "loss": {"weighting": "uncertainty", "scope": "local"},
        "federation": SAMPLED,
    },
    "batch norm": {"trunk": {"norm": "batch"}, "federation": SAMPLED},
    "batch norm at home": {"trunk": BATCH_NORM, "federation": SAMPLED},
    "statistics at home": {
        "trunk": {"norm": "batch", "norm-parameters": "local-statistics"},
        "federation": SAMPLED,
    },
    "dropout": {"trunk": DROPOUT, "federation": SAMPLED},
    "adam": {"training": {"optimiser": "adam", "lr": 0.01}},
    "rates": {"training": {"weight-decay": 0.1, "l1": 0.01}},
    "scheduled and clipped": {"training": SCHEDULED, "federation": SAMPLED},
    "personal": {"evaluation": {"model": "personal"}, "federation": SAMPLED},
    "personal by message": {
        "evaluation": {"model": "personal", "by": "message"},
        "federation": SAMPLED,
    },
    "per-task heads": {"federation": SAMPLED | {"heads": "per-task"}},
    "many at once": {
        "trunk": {**BATCH_NORM, **DROPOUT},
        "loss": {"weighting": "uncertainty", "scope": "local"},
        "evaluation": {"model": "personal"},
        "federation": {"clients-per-round": 3},
    },
    "personal, own uncertainty": {
        "loss": {"weighting": "uncertainty", "scope": "local"},
        "evaluation": {"model": "personal"},
        "federation": SAMPLED,
    },
    "late": {"federation": {"availability": ["client,from-round,to-round", "b,3,9", "c,9,9"]}},
}


EXPERTS = {"trunk": {"sharing": "mmoe", "norm": "batch"}, "federation": SAMPLED}
ANYWHERE = {**CASES, "experts": EXPERTS}  # experts have no stacked form


def merge(federation, tables):
    """Merge a table over those of a case."""
    return {**tables, "federation": {**tables.get("federation", {}), **federation}}


@pytest.mark.parametrize(
    ("algorithm", "case"),
    pairs(
        CASES,
        lambda a, case: (
            case in ("sampled", "many at once")
            or (a in ("fedrep", "scaffold", "apfl") and case == "scheduled and clipped")
        ),
    ),
)
def test_batched_equals_loopback(planned, tmp_path, algorithm, case):
    """A client that comes late, or trains never, is among them."""
    experiment = plan_or_skip(planned, algorithm, **CASES[case])
    one = run(experiment, tmp_path / "loopback")
    other = run(experiment, tmp_path / "batched", "batched")
    assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_number_of_workers_changes_no_bit(planned, tmp_path, algorithm):
    experiment = planned(algorithm, federation={"clients-per-round": 3}, trunk=DROPOUT)
    one = run(experiment, tmp_path / "one")
    assert_equal(one, run(experiment, tmp_path / "two", workers=2))


# What a run that is cut in two keeps --------------------------------------------------------------


KEPT_CASES = [
    "sampled",
    "own uncertainty",
    "batch norm at home",
    "personal",
    "per-task heads",
    "experts",
    "personal, own uncertainty",
]
FEW = ("fedbabu", "ditto", "scaffold", "fedala")


def skip_unstacked(engine, case):
    if engine == "batched" and case == "experts":
        pytest.skip("experts have no stacked form")


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize(
    ("algorithm", "case"), pairs(KEPT_CASES, lambda a, case: a in FEW and case == "sampled")
)
def test_a_run_stopped_in_the_middle_and_resumed_is_the_run_never_stopped(
    planned, tmp_path, algorithm, case, engine
):
    experiment = plan_or_skip(planned, algorithm, **ANYWHERE[case])
    skip_unstacked(engine, case)
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, engine=engine, out=tmp_path / "cut", listener=stop_after(2))
    cut = run(experiment, tmp_path / "cut", engine, resume=True)
    assert_equal(run(experiment, tmp_path / "whole", engine), cut)


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize(
    ("algorithm", "case"),
    pairs(KEPT_CASES, lambda a, case: a == "fedbabu" and case == "batch norm at home"),
)
def test_more_rounds_after_the_last_evaluation_are_those_of_a_longer_run(
    planned, tmp_path, algorithm, case, engine
):
    tables = ANYWHERE[case]
    short = plan_or_skip(planned, algorithm, **merge({"rounds": 2}, tables))
    longer = planned(algorithm, **merge({"rounds": 4}, tables))
    skip_unstacked(engine, case)
    run(short, tmp_path / "cut", engine)
    cut = run(longer, tmp_path / "cut", engine, resume=True)
    whole = run(longer, tmp_path / "whole", engine)
    assert cut.lines == whole.lines
    assert_equal(whole, cut)


@pytest.mark.parametrize(
    ("algorithm", "case"), pairs(KEPT_CASES, lambda a, case: a == "ditto" and case == "sampled")
)
def test_nodes_that_restart_before_every_message_lose_nothing(
    planned, tmp_path, monkeypatch, algorithm, case
):
    experiment = plan_or_skip(planned, algorithm, **ANYWHERE[case])
    expected = run(experiment, tmp_path / "memory")
    opened = client.job.open_session

    def open_anew(*arguments):
        close_sessions()
        return opened(*arguments)

    monkeypatch.setattr("client.job.open_session", open_anew)
    monkeypatch.setenv("FEDMTL_STATE", str(tmp_path / "state"))
    restarted = run(experiment, tmp_path / "folders")
    for name, values in expected.trunk.items():
        np.testing.assert_array_equal(restarted.trunk[name], values, err_msg=name)
    assert restarted.lines == expected.lines
    assert restarted.results == expected.results
    for name, own in expected.clients.items():
        (place,) = (tmp_path / "state" / "runs").glob(f"*/{name}")
        found = load_file(max(place.glob("own-*")))
        assert found.keys() == own.arrays.keys()
        for array, values in own.arrays.items():
            np.testing.assert_array_equal(found[array], values, err_msg=array)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_another_algorithm_kept_in_an_earlier_run_is_let_go(planned, algorithm):
    experiment = planned(algorithm)
    clients, agreement = read_clients(experiment)
    trainer = Trainer(experiment, input_shapes(agreement), torch.device("cpu"))
    trunk = initial_trunk(experiment, agreement)
    kinds = ("personal", "mixing", "control", "unheard-of")
    names = list(trainer.flat.layout.slices)
    own = {f"kept.{kind}.{n}": trainer.flat.read([n])[n] for kind in kinds for n in names}
    trainer.load(trunk, own)
    found = {n.split(".")[1] for n in trainer.own_arrays(clients[0].tasks) if n.startswith("kept.")}
    assert found == set(trainer.algorithm.KEEPS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_under_batch_norm_every_reply_is_usable(planned, tmp_path, algorithm):
    """Unlike clients' variances move far in a round; a variance below 0 would give no number."""
    tables = {"trunk": {"norm": "batch"}, "training": {"epochs": 5}}
    made = run(planned(algorithm, **tables), tmp_path / "run")
    assert [line["clients"]["left-out"] for line in made.lines] == [{}] * 3
    assert all(np.isfinite(values).all() for values in made.numbers().values())


# What is predicted --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "case"),
    pairs(
        ["sampled", "batch norm", "batch norm at home", "per-task heads", "experts"],
        lambda a, case: a in FEW and case == "batch norm",
    ),
)
def test_a_kept_model_is_the_one_that_was_evaluated_last(
    planned, tmp_path, monkeypatch, algorithm, case
):
    experiment = plan_or_skip(planned, algorithm, **ANYWHERE[case])
    simulated = run(experiment, tmp_path / "run")
    monkeypatch.setenv("FEDMTL_STATE", str(tmp_path / "state"))
    run(experiment, tmp_path / "folders")
    if algorithm == "fedala":
        assert_mixed_by_weights_learned_last(simulated)
        return
    for one in read_clients(experiment)[0]:
        figures = simulated.results["clients"][one.name]["tasks"]
        models = [open_run(tmp_path / "run", one.name), open_kept(tmp_path / "state", "", one.name)]
        for model in models:
            for task in figures:
                expected = figures[task]["test"]["loss"]
                assert loss_on_test(model.build(), experiment, one, task) == pytest.approx(
                    expected, rel=1e-4
                ), (one.name, task)


def test_heads_that_no_evaluation_has_fitted_yet_are_not_predicted_with(planned, tmp_path):
    experiment = planned("fedbabu")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "run", listener=stop_after(2))
    with pytest.raises(CheckpointError, match=r"'a' has heads that were never fitted.*let the run"):
        open_run(tmp_path / "run", "a").build()


def assert_mixed_by_weights_learned_last(run_of):
    """FedALA learns its weights anew on every trunk, from rows that a prediction has not."""
    moved = False
    for name, own in run_of.clients.items():
        arrays = open_run(run_of.folder, name).arrays
        for parameter, received in run_of.trunk.items():
            if f"kept.personal.{parameter}" not in own.arrays:
                assert "heads.task-kind" in parameter  # of a task that the client lacks
                continue
            personal = own.arrays[f"kept.personal.{parameter}"]
            shares = own.arrays[f"kept.mixing.{parameter}"]
            moved |= bool((shares < 1).any())
            mixed = personal + (received - personal) * shares
            np.testing.assert_allclose(arrays[parameter], mixed, rtol=1e-6, atol=1e-6)
    assert moved


@torch.inference_mode()
def loss_on_test(model, experiment, data, task):
    rows = data.splits["test"]
    outputs, _ = model(rows.inputs, (task,))
    mask = rows.labelled[task]
    rule = ROW_LOSSES[experiment.tasks[task].kind]
    return float(rule(outputs[task][mask], rows.targets[task][mask]).mean())


# What leaves a client -----------------------------------------------------------------------------


@pytest.fixture
def captured(monkeypatch):
    """Every message to train, with the arrays that came, that were sent back and that were kept."""
    found = []
    deliver = LoopbackGrid.deliver

    def listen(grid, message):
        reply = deliver(grid, message)
        if message.metadata.message_type == MessageType.TRAIN:
            node = message.metadata.dst_node_id
            came = unpack_arrays(arrays_of(message.content))
            sent = unpack_arrays(arrays_of(reply.content))
            kept = {n: a.copy() for n, a in unpack_arrays(grid.context(node).state[OWN]).items()}
            found.append((grid.name_of(node), came, sent, kept, reply.content))
        return reply

    monkeypatch.setattr(LoopbackGrid, "deliver", listen)
    return found


@pytest.mark.parametrize(
    ("algorithm", "heads"), pairs(["local", "per-task"], lambda a, heads: heads == "local")
)
def test_what_travels_is_what_the_table_says(planned, tmp_path, captured, algorithm, heads):
    experiment = plan_or_skip(planned, algorithm, federation={"heads": heads})
    run(experiment, tmp_path / "run")
    line = ALGORITHMS[algorithm]
    _, agreement = read_clients(experiment)
    names = set(initial_trunk(experiment, agreement))
    own_kinds = open_algorithm(experiment).KEEPS
    assert len(captured) == 12
    for _, came, sent, kept, content in captured:
        assert set(came) == set(sent) == names
        assert not any(name.startswith("kept.") for name in sent)
        if heads == "local" and line.shares != "all":
            assert not any("heads." in name for name in sent)
        assert all(name.startswith(("trunk.", "heads.", *line.travels)) for name in sent)
        if line.shares == "nothing":
            assert not sent
        # What stays whole at home is not among what leaves under another name either.
        left = b"".join(array.tobytes() for array in sent.values())
        for name, array in kept.items():
            private = not name.startswith("kept.") or own_kinds[name.split(".")[1]] == "model"
            assert not (private and array.tobytes() in left), name
        numbers = {name for record in content.metric_records.values() for name in record}
        assert not any("trunk" in name or "heads" in name or "kept" in name for name in numbers)
    kinds = {name.split(".")[1] for *_, kept, _ in captured for name in kept if "kept." in name}
    assert kinds == set(own_kinds)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_node_that_is_checked_without_a_server_lets_its_replies_out(planned, tmp_path, algorithm):
    config = {"client": "a", "device": "cpu", "state": str(tmp_path / "state")}
    made = dry_run(planned(algorithm), config, Policy())
    assert [(one.kind, one.refused, one.withheld) for one in made.exchanges] == [
        (kind, "", []) for kind in (MessageType.QUERY, MessageType.TRAIN, MessageType.EVALUATE)
    ]


@pytest.mark.parametrize("algorithm", SHARING_TRUNK)
def test_a_tasks_head_is_moved_by_its_holders_alone(planned, tmp_path, captured, algorithm):
    """A client that lacks the task sends its head back as it came, and keeps nothing of it."""
    federation = {"heads": "per-task", "rounds": 3}
    experiment = plan_or_skip(planned, algorithm, federation=federation)
    trunk = run(experiment, tmp_path / "run").trunk
    rows = {data.name: len(data.train) for data in read_clients(experiment)[0]}
    rounds = [captured[begin : begin + 4] for begin in (0, 4, 8)]
    following = [rounds[1][0][1], rounds[2][0][1], trunk]
    for replies, after in zip(rounds, following, strict=True):
        for name in [n for n in after if n.startswith("heads.")]:
            holders = set("abcd") if "size" in name else set("abc")
            sent = {client: arrays[name] for client, _, arrays, _, _ in replies}
            came = replies[0][1][name]
            assert {client for client, array in sent.items() if (array != came).any()} == holders
            mean = sum(rows[c] * sent[c] for c in holders) / sum(rows[c] for c in holders)
            np.testing.assert_allclose(after[name], mean, rtol=1e-5, atol=1e-6)
    kept = {client: own for client, _, _, own, _ in captured}
    assert not any("heads.task-kind" in name for name in kept["d"])
    predicting = open_run(tmp_path / "run", "d").arrays
    for name in [n for n in predicting if n.startswith("heads.task-kind")]:
        np.testing.assert_array_equal(predicting[name], trunk[name])


# Evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "engine"),
    pairs(["loopback", "batched"], lambda a, engine: a == "fedala" and engine == "batched"),
)
def test_evaluation_changes_nothing_that_is_trained(planned, tmp_path, algorithm, engine):
    tables = {"trunk": {"norm": "batch", "dropout": 0.3}, "loss": {"weighting": "uncertainty"}}
    numbers = {}
    for name, evaluation in {
        "never": {"every": 9},
        "always": {},
        "by message": {"by": "message"},
        "personal": {"model": "personal"},
        "personal by message": {"model": "personal", "by": "message"},
    }.items():
        experiment = planned(algorithm, evaluation=evaluation, federation=SAMPLED, **tables)
        numbers[name] = run(experiment, tmp_path / name, engine).numbers()
    expected = numbers.pop("never")
    for how, found in numbers.items():
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=f"{how}: {name}")


@pytest.mark.parametrize("algorithm", ["local", "ditto", "mr-mtl"])
def test_a_personal_model_is_evaluated_as_it_will_be_before_the_next_round(
    planned, tmp_path, algorithm
):
    before = run(planned(algorithm), tmp_path / "shared").lines
    after = run(planned(algorithm, evaluation={"model": "personal"}), tmp_path / "own").lines
    for number in (0, 1):
        for split in ("validation", "test"):
            one, other = after[number]["evaluation"][split], before[number + 1]["evaluation"][split]
            assert one == other


# Algorithms that are others in disguise -----------------------------------------------------------

FULL = {"batch-size": 1000, "epochs": 3}
SAME = {  # algorithm, its options and the kind that is kept -> the algorithm it is then
    "fedprox without a pull": ("fedprox", {"mu": 1e-12}, "joint"),
    "scaffold in its first round": ("scaffold", {}, "joint"),
    "fedala in its first round": ("fedala", {}, "joint"),
    "ditto's shared model": ("ditto", {"pull": 0.7}, "joint"),
    "apfl's shared model": ("apfl", {"alpha": 0.3}, "joint"),
}
PERSONAL = {
    "ditto without a pull": ("ditto", {"pull": 0.0}),
    "mr-mtl without a pull": ("mr-mtl", {"pull": 0.0}),
    "apfl with nothing shared": ("apfl", {"alpha": 1.0}),
}


@pytest.mark.parametrize("case", SAME)
def test_what_is_shared_is_joint_training(planned, tmp_path, case):
    algorithm, options, other = SAME[case]
    federation = {"rounds": 1 if "first" in case else 3}
    expected = run(planned(other, federation=federation), tmp_path / "joint").numbers()
    federation |= {"algorithm-options": options}
    found = run(planned(algorithm, federation=federation), tmp_path / "run").numbers()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


def test_scaffolds_variate_is_the_mean_gradient_whatever_the_rates(planned, tmp_path):
    """One batch of all rows, and rates of which no step leaves the tangent."""
    found = []
    for more in ({}, {"schedule": "step", "step-schedule": "cosine"}, {"schedule": "warm-up"}):
        options = {"schedule-options": {"every": 1}} if more.get("schedule") == "step" else {}
        training = {**FULL, "lr": 1e-3, **more, **options}
        experiment = planned("scaffold", training=training, federation={"rounds": 2})
        found.append(run(experiment, tmp_path / f"run-{len(found)}").clients)
    for name, own in found[0].items():
        kept = [array for array in own.arrays if array.startswith("kept.control.")]
        assert kept
        for array in kept:
            expected = own.arrays[array]
            for other in found[1:]:
                close = np.abs(other[name].arrays[array] - expected).max()
                assert close < 0.05 * np.abs(expected).max(), array


@pytest.mark.parametrize("case", PERSONAL)
def test_without_a_pull_a_personal_model_is_trained_alone(planned, tmp_path, case):
    algorithm, options = PERSONAL[case]
    alone = run(planned("local", training=FULL), tmp_path / "local").clients
    federation = {"algorithm-options": options}
    found = run(planned(algorithm, training=FULL, federation=federation), tmp_path / "run").clients
    for client_name, own in alone.items():
        for name, values in own.arrays.items():
            arrays = found[client_name].arrays
            ours = arrays.get(f"kept.personal.{name}", arrays.get(name))
            np.testing.assert_allclose(ours, values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_heads_per_task_at_clients_with_all_tasks_are_the_whole_model(planned, tmp_path, engine):
    per_task = planned("joint", whole=True, federation={"heads": "per-task"})
    one = run(per_task, tmp_path / "heads", engine)
    assert_close(one, run(planned("whole-model"), tmp_path / "whole", engine), 1e-6)


# Autograd -----------------------------------------------------------------------------------------

BY_AUTOGRAD = {
    "plain": {},
    "adam": {"training": {"optimiser": "adam", "lr": 0.01}},
    "batch norm": {"trunk": {"norm": "batch"}},
    "dropout": {"trunk": DROPOUT},
    "momentum": {"training": {"momentum": 0.9}},
    "scheduled and clipped": {"training": SCHEDULED},
    "own uncertainty": {"loss": {"weighting": "uncertainty", "scope": "local"}},
    "per-task heads": {"federation": {"heads": "per-task"}},
}


@pytest.mark.parametrize(
    ("algorithm", "case"), pairs(BY_AUTOGRAD, lambda a, case: case == "batch norm")
)
def test_autograd_trains_as_the_stacked_form_does(planned, algorithm, case):
    experiment = plan_or_skip(planned, algorithm, **BY_AUTOGRAD[case])
    clients, agreement = read_clients(experiment)
    found = []
    for is_stacked in (True, False):
        trainer = Trainer(experiment, input_shapes(agreement), torch.device("cpu"))
        if not is_stacked:
            trainer.cohorts = None
        for data in (clients[0], clients[-1]):
            received, own = initial_trunk(experiment, agreement), {}
            for number in (1, 2, 3):
                trainer.load(received, own)
                learners = trainer.begin(data, experiment.task_weights(), number)
                model = trainer.algorithm.model(learners).clone()
                trained = trainer.complete(learners)
                # Another's trunk comes back.
                received = {
                    name: array * np.float32(0.9) + np.float32(0.01)
                    for name, array in trainer.sent_arrays(learners).items()
                }
                own = {name: array.copy() for name, array in trainer.own_arrays(data.tasks).items()}
                found.append((is_stacked, received, own, {"model": model.numpy()}, trained))
    half = len(found) // 2
    for stacked, plain in zip(found[:half], found[half:], strict=True):
        for one, other in zip(stacked[1:4], plain[1:4], strict=True):
            assert one.keys() == other.keys()
            for name, values in one.items():
                np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
        assert_same_figures(stacked[4], plain[4])


# Settings that do not fit ------------------------------------------------------------------------

ADAM = {"training": {"optimiser": "adam", "momentum": 0.0}}
REFUSED = {
    "unknown option": ("fedprox", {"muu": 1.0}, {}, "algorithm-options.muu is no setting.*'mu'"),
    "option of another": ("joint", {"mu": 1.0}, {}, "algorithm-options.mu is no setting"),
    "no head epochs": ("fedrep", {"head-epochs": 0}, {}, "at least 1, got 0"),
    "too many layers": ("fedala", {"layers": 3}, {}, "layers must be at most 2.*got 3"),
    "adam": ("scaffold", {}, ADAM, "must be 'sgd' without momentum.*got 'adam'"),
    "momentum": ("scaffold", {}, {"training": {"momentum": 0.9}}, "with momentum 0.9"),
    "nothing in common": ("scaffold", {}, {"trunk": {"sharing": "soft"}}, "layers that all tasks"),
    "no layers": ("fedala", {}, {"trunk": {"widths": []}}, "layers that all tasks share"),
    "standing heads": (
        "fedbabu",
        {},
        {"federation": {"heads": "per-task"}},
        "heads must be 'local'.*got 'per-task'",
    ),
    "lone strategy": ("local", {}, {"federation": {"strategy": "krum"}}, "nothing to combine"),
    "lone norms": ("local", {}, {"trunk": BATCH_NORM}, "norm-parameters must be 'shared'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_would_change_nothing_or_do_harm_are_refused(planned, case):
    algorithm, options, tables, expected = REFUSED[case]
    tables = {
        **tables,
        "federation": {**tables.get("federation", {}), "algorithm-options": options},
    }
    with pytest.raises(ValidationError, match=expected):
        planned(algorithm, **tables)


# Flower's own engine ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_flowers_simulation_runtime_gives_what_loopback_gives(planned, tmp_path, algorithm):
    """In a process of its own: Ray and the runtime leave threads behind."""
    script = (
        "import sys; from pathlib import Path\n"
        "from common.experiment_file import load_experiment\n"
        "from simulations.simulate import simulate\n"
        "experiment = load_experiment(sys.argv[1])\n"
        "simulate(experiment, engine='flower', out=Path(sys.argv[2]))\n"
    )
    expected = run(planned(algorithm, federation={"rounds": 2}), tmp_path / "loopback")
    written = tmp_path / "loopback" / "experiment.toml"
    subprocess.run(
        [sys.executable, "-c", script, str(written), str(tmp_path / "flower")],
        cwd=Path(__file__).parent.parent,
        check=True,
        timeout=240,
    )
    found = Run(tmp_path / "flower")
    assert expected.trunk.keys() == found.trunk.keys()
    for name, values in expected.trunk.items():
        np.testing.assert_allclose(found.trunk[name], values, rtol=1e-6, atol=1e-6)
    assert_same_figures(expected.results, found.results)
