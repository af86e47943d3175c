"""Federations whose trunk is frozen, in part or but for adapters, on engines and by rules."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from client.exported_model import ExportedModel
from client.flat import FlatParameters
from client.personalise import HEADS, Limits, fit_contender
from client.place import Place
from client.private_autograd import RowGradients
from client.session import close_sessions, open_session
from client.training import Trainer
from common.agreement import input_shapes
from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS
from common.dataset import Rows
from common.errors import ConfigError, DataError
from common.experiment_file import dump_experiment, load_experiment
from common.metrics import METRICS
from common.model import build_model
from common.pretrained import prepare
from common.pretrained.naming import is_adapter, is_frozen
from common.pretrained.prepare import fixed_digest
from common.strategies import STRATEGIES
from simulations.baselines import read_clients, startable
from simulations.evaluation.answers import answer, model_of
from simulations.kept_federation import open_federation
from simulations.kept_run import open_run
from simulations.kept_trunk import open_trunk
from simulations.residents import Residents
from tests.algorithm_runs import assert_close, assert_equal, plan, run, stop_after, write_clients

VARIANTS = {
    "last layer": {"norm": "batch", "trains": ["layers.3.*", "layers.4.*"]},
    "norms": {"norm": "layer", "trains": ["norm_*"]},
    "first layer": {"trains": ["layers.0.*"], "dropout": 0.3},
    "adapters": {"adapters": {"rank": 2}},
    "half adapters": {
        "adapters": {"rank": 2, "freeze-a": True, "dropout": 0.3},
        "trains": ["bias"],
    },
}
STACKED = [name for name, trunk in VARIANTS.items() if "adapters" not in trunk]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    return {lacking: write_clients(root / f"not-{lacking}", lacking) for lacking in ("", "d")}


@pytest.fixture
def planned(folders):
    def make(algorithm="joint", variant="last layer", **tables):
        lacking = "" if ALGORITHMS[algorithm].shares == "all" else "d"
        trunk = {**VARIANTS[variant], **tables.pop("trunk", {})}
        return plan(folders[lacking], algorithm, trunk=trunk, **tables)

    return make


@pytest.fixture
def watched(monkeypatch):
    """Count how often frozen parameters were looked at, and that they are as at first."""
    looks = []

    def columns_of(trainer):
        settings, layout = trainer.experiment.trunk, trainer.flat.layout
        return [place for name, place in layout.slices.items() if is_frozen(name, settings)]

    def look(trainer, rows):
        for place in columns_of(trainer):
            looks.append(place)
            assert (rows[:, place] == trainer.initial[place]).all()

    keep, keep_rows = Trainer.keep, Residents._keep

    def kept(self, learners):
        look(self, learners.values)
        keep(self, learners)

    def kept_rows(self, members, learners, values):
        look(self.trainer, values)
        keep_rows(self, members, learners, values)

    monkeypatch.setattr(Trainer, "keep", kept)
    monkeypatch.setattr(Residents, "_keep", kept_rows)
    return looks


def first_values(experiment):
    _, agreement = read_clients(experiment)
    model = build_model(experiment, input_shapes(agreement))
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def assert_frozen_stayed_home_and_the_rest_learned(experiment, left):
    fresh = first_values(experiment)
    frozen = {name for name in fresh if is_frozen(name, experiment.trunk)}
    assert frozen
    travelled = {name for name in left.trunk if name in fresh}
    kept = {name for own in left.clients.values() for name in own.arrays}
    assert not frozen & travelled
    assert not [n for n in kept for f in frozen if n == f or n.endswith(f".{f}")]
    moving = [n for n in travelled if n.startswith("trunk.")]
    moving = [n for n in moving if not np.array_equal(left.trunk[n], fresh[n])]
    own = [n for n in kept if n in fresh]
    assert moving or own


# The law ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_frozen_parameters_never_move_never_travel_and_are_not_kept(
    planned, tmp_path, watched, algorithm, variant
):
    experiment = planned(algorithm, variant)
    left = run(experiment, tmp_path / "loopback")
    assert watched
    assert_frozen_stayed_home_and_the_rest_learned(experiment, left)
    losses = [line["train"]["loss"] for line in left.lines]
    assert np.isfinite(losses).all()
    if variant in STACKED:
        assert_close(left, run(experiment, tmp_path / "batched", "batched"))


@pytest.mark.parametrize("variant", ["last layer", "adapters"])
@pytest.mark.parametrize("place", ["shared", "home"])
@pytest.mark.parametrize("sharing", [s for s in SHARINGS if s != "hard"])
def test_so_it_is_under_every_sharing(planned, tmp_path, watched, sharing, place, variant):
    if place not in SHARINGS[sharing].task_parts:
        pytest.skip("its tasks' parts cannot be there")
    trunk = {"sharing": sharing, "task-parts": place}
    if sharing == "ple":  # its experts have a layer each
        trunk |= {"norm": "none"} | ({"trains": ["bias"]} if variant == "last layer" else {})
    experiment = planned(variant=variant, trunk=trunk)
    left = run(experiment, tmp_path / "run")
    assert watched
    assert_frozen_stayed_home_and_the_rest_learned(experiment, left)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_so_it_is_under_every_strategy(tmp_path, watched, strategy):
    settings = ["federation.rounds=2", "partition.clients=8", "trunk.widths=[8,8]"]
    options = {
        "krum": {"num-malicious-nodes": 1},
        "multikrum": {"num-malicious-nodes": 1},
        "bulyan": {"num-malicious-nodes": 1},
    }.get(strategy, {})
    settings += [f"federation.strategy-options.{key}={value}" for key, value in options.items()]
    settings += [f"federation.strategy={strategy}", "trunk.trains=['layers.2.*']"]
    experiment = load_experiment("digits", settings)
    left = run(experiment, tmp_path / "run", "batched")
    assert watched
    assert_frozen_stayed_home_and_the_rest_learned(experiment, left)


@pytest.mark.parametrize("variant", ["first layer", "half adapters"])
def test_a_run_that_was_killed_goes_on_exactly(planned, tmp_path, variant):
    experiment = planned(variant=variant)
    whole = run(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "part", listener=stop_after(2))
    close_sessions()
    assert_equal(whole, run(experiment, tmp_path / "part", resume=True))


@pytest.mark.parametrize("variant", ["norms", "half adapters"])
def test_batches_in_pieces_and_activations_computed_again_change_nothing(
    planned, tmp_path, variant
):
    sparing = {"micro-batch": 2, "recompute-activations": True}
    whole = run(planned(variant=variant, trunk={"dropout": 0.3}), tmp_path / "whole")
    experiment = planned(variant=variant, trunk={"dropout": 0.3}, training=sparing)
    assert_close(whole, run(experiment, tmp_path / "pieces"))


def test_a_run_that_returns_to_its_best_trunk_leaves_that(planned, tmp_path):
    """Learning goes astray after the first rounds, so that the best trunk is not the last."""
    experiment = planned(evaluation={"keep": "best", "by": "message"}, training={"lr": 0.5})
    left = run(experiment, tmp_path / "run")
    best = left.results["final"]["trunk-round"]
    assert best < experiment.federation.rounds
    kept = load_file(next((left.folder / "checkpoint").glob("best-*.safetensors")))
    given = load_file(left.folder / "trunk.safetensors")
    assert any(not np.array_equal(left.trunk[name], kept[name]) for name in kept)
    for name, value in kept.items():
        np.testing.assert_array_equal(given[name], value)


def test_workers_train_as_one_process_does(planned, tmp_path):
    experiment = planned(variant="half adapters")
    whole = run(experiment, tmp_path / "one")
    assert_equal(whole, run(experiment, tmp_path / "two", workers=2))


# What is refused ----------------------------------------------------------------------------------


def test_a_run_that_would_share_nothing_is_refused(planned, tmp_path):
    experiment = planned(trunk={"trains": "none", "norm": "none"})
    with pytest.raises(ConfigError, match=r"trunk.trains leaves nothing to share .*per-task"):
        run(experiment, tmp_path / "run")
    heads = {"heads": "per-task", "rounds": 2}
    left = run(planned(trunk={"trains": "none", "norm": "none"}, federation=heads), tmp_path / "2")
    assert {name.split(".")[0] for name in left.trunk} == {"heads"}


def test_adapters_have_no_stacked_form(planned, tmp_path):
    with pytest.raises(ConfigError, match=r"\[trunk.adapters\] has no stacked form"):
        run(planned(variant="adapters"), tmp_path / "run", "batched")


# From an earlier run ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["last layer", "adapters"])
def test_a_run_leaves_a_trunk_that_another_starts_from(planned, tmp_path, variant):
    """The file computes what the run's clients compute, adapters merged into plain layers."""
    first = planned(variant=variant, trunk={"norm": "none"} if variant == "adapters" else {})
    run(first, tmp_path / "first")
    given = load_file(tmp_path / "first" / "trunk.safetensors")
    assert not [name for name in given if "adapter" in name]
    plain = dict.fromkeys(("trains", "adapters"))
    following = first.model_copy(update={"trunk": first.trunk.model_copy(update=plain)})
    following = load(following, tmp_path, weights=str(tmp_path / "first"))
    started = first_values(following)
    for name, value in given.items():
        np.testing.assert_array_equal(started[name], value)
    model, inputs = open_run(tmp_path / "first", "a").build(), {"x": torch.randn(6, 3)}
    other = build_model(following, {"x": (3,)}).eval()
    for task, features in model.trunk(inputs, ("kind", "size")).items():
        torch.testing.assert_close(features, other.trunk(inputs, (task,))[task])


def load(experiment, folder, **trunk):
    """Write an experiment down, and read it with other keys of its trunk."""
    path = folder / "experiment.toml"
    path.write_text(dump_experiment(experiment))
    return load_experiment(str(path), [f"trunk.{key}='{value}'" for key, value in trunk.items()])


def test_adapters_send_fewer_bytes(planned, tmp_path):
    sizes = {}
    for name, trunk in {"all": {"trains": "all"}, "adapters": {"adapters": {"rank": 1}}}.items():
        wide = {"widths": [40, 40], **trunk, "norm": "none"}
        experiment = planned(variant="first layer", trunk={"trains": None, **wide})
        run(experiment, tmp_path / name)
        results = json.loads((tmp_path / name / "results.json").read_text())
        sizes[name] = results["traffic"]["received-bytes"]
    assert sizes["adapters"] < sizes["all"] / 4


@pytest.mark.parametrize("variant", ["last layer", "adapters"])
def test_an_exported_model_gives_the_numbers_of_the_kept_one(planned, tmp_path, variant):
    """Adapters are merged on export, and not where predictions are made."""
    left = run(planned(variant=variant), tmp_path / "run")
    kept, inputs = open_run(left.folder, "a"), {"x": torch.randn(6, 3)}
    exported = ExportedModel(kept)
    names = [name for name, _ in exported.model.named_parameters()]
    assert not [name for name in names if is_adapter(name)]
    assert [name for name in kept.arrays if is_adapter(name)] or variant != "adapters"
    expected = kept.build()(inputs, ("size",))[0]["size"]
    torch.testing.assert_close(exported.model(inputs, ("size",))[0]["size"], expected)


@pytest.mark.parametrize("variant", ["last layer", "adapters"])
def test_held_out_rows_are_answered_as_the_run_evaluated_them(planned, tmp_path, variant):
    """Also by a client that was never asked, whose own parts are new."""
    federation = {"clients-per-round": 2, "rounds": 1}
    left = run(planned(variant=variant, federation=federation), tmp_path / "run")
    assert len(left.clients) == 2
    kept = open_federation(left.folder)
    metric = kept.experiment.tasks["size"].metric_name
    for data in read_clients(kept.experiment)[0]:
        answers = answer(model_of(kept, data), data, "test")
        told = left.results["clients"][data.name]["tasks"]["size"]["test"]
        found = METRICS[metric].figure(answers.sums["size"])
        assert found == pytest.approx(told[metric], rel=1e-4)


def test_a_newcomer_fits_heads_on_a_frozen_trunk(planned, tmp_path):
    experiment = planned(variant="adapters")
    left = run(experiment, tmp_path / "run")
    kept = open_trunk(left.folder)
    trainer = Trainer(kept.experiment, input_shapes(kept.agreement), torch.device("cpu"))
    data = read_clients(kept.experiment)[0][0]
    before = trainer.initial.clone()
    fit_contender(trainer, data, kept.arrays, HEADS, Limits(2))
    for name, place in trainer.flat.layout.slices.items():
        found = trainer.flat.values[place]
        if name in kept.arrays:
            np.testing.assert_array_equal(found, kept.arrays[name].reshape(-1))
        else:
            assert torch.equal(found, before[place]) == name.startswith("trunk."), name


def test_a_baseline_whose_one_trunk_cannot_have_the_weights_starts_from_the_seed(planned, tmp_path):
    experiment = planned(variant="adapters", trunk={"sharing": "mmoe"})
    run(experiment, tmp_path / "first")
    experiment = load(experiment, tmp_path, weights=str(tmp_path / "first"))
    _, agreement = read_clients(experiment)
    hard = {"sharing": "hard", "options": {}, "task_parts": None}
    trunk = experiment.trunk.model_copy(update=hard)
    single = startable(experiment.model_copy(update={"trunk": trunk}), agreement)
    assert single.trunk.weights is None
    assert single.trunk.trains_everything
    assert startable(experiment, agreement) is experiment


def test_a_client_with_other_frozen_values_answers_why(planned, tmp_path, monkeypatch):
    """One client's file differs: it is left out by name, and the others go on."""
    experiment, turns, fixed = planned(variant="last layer"), [], prepare.fixed_digest

    def other(model, settings):
        turns.append(1)
        return "another" if len(turns) == 2 else fixed(model, settings)

    monkeypatch.setattr(prepare, "fixed_digest", other)
    close_sessions()
    left = run(experiment, tmp_path / "run")
    reasons = left.lines[0]["clients"]["left-out"]
    (reason,) = reasons.values()
    assert reason.startswith("the trunk's values that do not travel must be those of the server")
    assert left.lines[0]["clients"] == {"asked": 4, "answered": 3, "left-out": reasons}


# Nodes --------------------------------------------------------------------------------------------


@pytest.fixture
def sent(planned, tmp_path):
    """What a server sends of an experiment that starts from a file, and the file."""

    def make(**trunk):
        experiment = planned(variant="first layer", trunk={"trains": None, **trunk})
        folder = tmp_path / f"first{len(trunk)}"
        run(experiment, folder)
        first = folder / "trunk.safetensors"
        experiment = load(experiment, tmp_path, weights=str(first))
        _, agreement = read_clients(experiment)
        model = build_model(experiment, input_shapes(agreement))
        agreed = agreement.model_copy(update={"frozen": fixed_digest(model, experiment)})
        return experiment.for_clients(), agreed.to_json(), first

    return make


def test_a_node_needs_the_file_only_where_some_of_it_never_travels(sent, monkeypatch):
    monkeypatch.delenv("FEDMTL_SIMULATION", raising=False)
    experiment, agreement, _ = sent()
    assert '"frozen"' not in agreement
    open_session(experiment, agreement, Place())
    experiment, agreement, first = sent(norm="batch", **{"norm-parameters": "local"})
    with pytest.raises(ConfigError, match="a node names its copy by --node-config"):
        open_session(experiment, agreement, Place())  # though the server names a file that is here
    open_session(experiment, agreement, Place(weights=str(first)))


def test_a_node_with_another_file_is_refused(sent, tmp_path):
    experiment, agreement, first = sent(norm="batch", **{"norm-parameters": "local"})
    other = tmp_path / "other.safetensors"
    save_file({n: a + 1 for n, a in load_file(first).items()}, other)
    with pytest.raises(ConfigError, match="another content than the experiment began with"):
        open_session(experiment, agreement, Place(weights=str(other)))
    telling_nothing = json.loads(experiment)
    telling_nothing["trunk"]["weights-digest"] = ""
    with pytest.raises(ConfigError, match="another content"):
        open_session(json.dumps(telling_nothing), agreement, Place(weights=str(first)))
    wrong = agreement.replace('"frozen":"', '"frozen":"0')
    with pytest.raises(DataError, match=r"digest .* got"):
        open_session(experiment, wrong, Place(weights=str(first)))


# Privacy ------------------------------------------------------------------------------------------

LEVEL = {"noise-multiplier": 1.0, "max-norm": 0.5, "delta": 1e-3}


@pytest.mark.parametrize("variant", ["norms", "first layer", "adapters", "half adapters"])
def test_private_steps_clip_what_trains_alone(planned, tmp_path, watched, variant):
    experiment = planned(variant=variant, privacy={"example-level": LEVEL})
    left = run(experiment, tmp_path / "loopback")
    assert watched
    assert_frozen_stayed_home_and_the_rest_learned(experiment, left)
    if variant in STACKED:
        assert_close(left, run(experiment, tmp_path / "batched", "batched"))


def test_the_norm_that_is_clipped_has_no_frozen_part(planned):
    """A row's gradient of what trains, within the bound, is left as it is."""
    experiment = planned(
        variant="first layer", trunk={"dropout": 0.0}, privacy={"example-level": LEVEL}
    )
    _, agreement = read_clients(experiment)
    model = build_model(experiment, input_shapes(agreement))
    flat = FlatParameters(model)
    rows = RowGradients(experiment, model, flat)
    batch = Rows(
        {"x": torch.randn(4, 3)},
        {"kind": torch.tensor([0, 1, 2, 0]), "size": torch.randn(4, 1)},
        {task: torch.ones(4, dtype=torch.bool) for task in ("kind", "size")},
    )
    gradients, _ = rows.find(batch, {"kind": 1.0, "size": 1.0})
    for name, place in flat.layout.slices.items():
        assert gradients[:, place].any() == (not is_frozen(name, experiment.trunk)), name


@pytest.mark.parametrize(
    "privacy",
    [
        {"client-level": {"noise-multiplier": 0.1, "max-norm": 1.0}},
        {"secure-aggregation": {"max-norm": 1.0}},
    ],
    ids=lambda privacy: next(iter(privacy)),
)
@pytest.mark.parametrize("variant", ["first layer", "half adapters"])
def test_updates_are_clipped_hidden_and_added_without_frozen_parts(
    planned, tmp_path, watched, variant, privacy
):
    federation = {"weight-by": "uniform"}
    experiment = planned(variant=variant, privacy=privacy, federation=federation)
    left = run(experiment, tmp_path / "run")
    assert watched
    assert_frozen_stayed_home_and_the_rest_learned(experiment, left)
