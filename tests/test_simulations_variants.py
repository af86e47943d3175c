"""What `--vary` means: values, grids, and everything that is refused before training."""

import re

import pytest

from common.errors import ConfigError
from common.experiment_file import split_values
from simulations.gains import YARDSTICK
from simulations.variants import name_folder, parse_axes, plan_variants

FEW = ["partition.clients=2", "federation.rounds=2"]


def plan(*options, overrides=(), **more):
    return plan_variants("digits", options, [*FEW, *overrides], **more)


def problems(*options, overrides=()):
    with pytest.raises(ConfigError) as error:
        plan(*options, overrides=overrides)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("equal,manual", ["equal", "manual"]),
        ("[64],[64, 64]", ["[64]", "[64, 64]"]),
        ('{widths = [8, 4], norm = "none"},{}', ['{widths = [8, 4], norm = "none"}', "{}"]),
        ("'a, b', \"c,d\"", ["'a, b'", '"c,d"']),
        ("[[1, 2], [3]],[]", ["[[1, 2], [3]]", "[]"]),
        ("1", ["1"]),
    ],
)
def test_commas_split_outside_brackets_and_quotes_only(text, values):
    assert split_values(text) == values


def test_values_are_parsed_as_set_parses_them():
    variants = plan("trunk.widths=[64],[64, 32]", "evaluation.model=shared,'personal'").variants
    assert [v.experiment.trunk.widths for v in variants] == [(64,), (64,), (64, 32), (64, 32)]
    assert [v.experiment.evaluation.model for v in variants] == ["shared", "personal"] * 2


def test_keys_of_one_table_move_together_as_a_table():
    tables = 'training={optimiser="sgd", lr=0.1},{optimiser="adam", lr=0.001}'
    variants = plan(tables).variants
    chosen = [(v.experiment.training.optimiser, v.experiment.training.lr) for v in variants]
    assert chosen == [("sgd", 0.1), ("adam", 0.001)]


def test_every_combination_is_a_variant_and_the_last_key_runs_fastest():
    found = plan("training.lr=0.1,0.01", "training.epochs=1,2")
    assert [v.name for v in found.variants] == [
        "training.lr=0.1, training.epochs=1",
        "training.lr=0.1, training.epochs=2",
        "training.lr=0.01, training.epochs=1",
        "training.lr=0.01, training.epochs=2",
    ]
    assert found.axes == {"training.lr": ["0.1", "0.01"], "training.epochs": ["1", "2"]}


def test_overrides_hold_for_all_variants_and_a_varied_key_wins():
    found = plan("training.lr=0.1", overrides=["training.lr=0.5", "training.epochs=7"])
    assert found.experiment.training.lr == 0.5
    assert found.variants[0].experiment.training.lr == 0.1
    assert found.variants[0].experiment.training.epochs == 7


@pytest.mark.parametrize("option", ["training.lr", "training.lr=", "=1", "", "training.lr=1,,2"])
def test_an_option_without_key_or_values_is_one_line(option):
    (line,) = problems(option)
    assert line.startswith("--vary must be KEY=VALUE,VALUE,..., as in training.lr=0.1,0.01, got ")


@pytest.mark.parametrize(
    ("key", "way_out"),
    [
        ("seed", "--seeds N repeats every variant"),
        ("name", "it changes no result; remove it"),
        ("description", "it changes no result; remove it"),
        ("data.path", "with --data"),
        ("data.source", "with an experiment each"),
        ("data", "with --data"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_way_out(key, way_out):
    (line,) = problems(f"{key}=1,2")
    assert line.startswith(f"--vary cannot vary {key}: ")
    assert way_out in line


def test_a_key_is_given_once():
    assert problems("training.lr=1", "training.lr=2") == [
        "--vary names training.lr twice; give all of its values in one --vary."
    ]


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("training.lr=0.1,0.10", ["training.lr=0.1", "training.lr=0.10"]),
        ("loss.weighting=equal,'equal'", ["loss.weighting=equal", "loss.weighting='equal'"]),
    ],
)
def test_the_same_settings_twice_are_refused(option, names):
    assert problems(option) == [
        f"--vary: '{names[0]}' and '{names[1]}' are the same settings; remove one."
    ]


def test_the_problems_of_all_variants_are_told_with_their_names():
    lines = problems("training.lr=-1,0.1,word", "trunk.widths=[8],[8")
    assert [re.sub(r": .*", "", line) for line in lines] == [
        "training.lr=-1, trunk.widths=[8]",
        "training.lr=-1, trunk.widths=[8",
        "training.lr=-1, trunk.widths=[8",  # both keys are wrong
        "training.lr=0.1, trunk.widths=[8",
        "training.lr=word, trunk.widths=[8]",
        "training.lr=word, trunk.widths=[8",
        "training.lr=word, trunk.widths=[8",
    ]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("trainin.lr=1", "trainin is no setting. Did you mean 'training'?"),
        ("federation.clients-per-round=3", "must be at most 2, the number of clients, got 3"),
        ("partition.clients=5000", "partition.clients must be at most 1797"),
        ("data.test=0", "data.test must be above 0 for a comparison"),
        ("trunk.widths=[]", "there is no trunk to share"),
        ("training.device=cuda:77", "training.device must be a device of this machine"),
    ],
)
def test_what_would_end_a_run_later_is_told_first(option, reason):
    (line,) = problems(option)
    assert line.startswith(f"{option}: ")
    assert reason in line


@pytest.mark.parametrize("setting", ["metric=rmse", "transform=log1p", "target=digit"])
def test_variants_that_measure_something_else_are_refused(setting):
    (line,) = problems(f"tasks.ink.{setting}")
    assert "tasks must be the same in all variants" in line


def test_how_a_task_is_learned_can_be_varied():
    variants = plan("tasks.ink.hidden=[],[8]", "tasks.ink.standardise=none,client").variants
    assert {variant.yardstick for variant in variants} == {YARDSTICK}


def test_the_yardstick_has_the_settings_of_the_experiment_not_of_a_variant():
    found = plan("training.lr=0.1,0.01", "trunk.widths=[8]")
    assert found.yardsticks == {YARDSTICK: found.experiment}


def test_other_rows_need_a_yardstick_of_their_own_but_no_more_than_one_each():
    found = plan("training.lr=0.1,0.01", "partition.clients=2,3")
    names = [f"{YARDSTICK}, partition.clients={n}" for n in (2, 3)]
    assert list(found.yardsticks) == names
    assert [v.yardstick for v in found.variants] == names * 2
    assert [e.partition.clients for e in found.yardsticks.values()] == [2, 3]
    assert {e.training.lr for e in found.yardsticks.values()} == {found.experiment.training.lr}


def test_without_a_yardstick_there_is_none():
    assert plan("training.lr=0.1,0.01", with_yardstick=False).yardsticks == {}


def test_each_variant_runs_on_the_engine_that_auto_takes():
    variants = plan("federation.clients-per-round=1,2").variants
    assert [variant.engine for variant in variants] == ["loopback", "batched"]


def test_folders_differ_even_where_names_only_differ_in_other_characters():
    folders = []
    for name in ("a=[x y]", "a=[x, y]", "a=[X;y]"):
        folders.append(name_folder(name, folders))
    assert folders == ["a=x_y", "a=x_y-2", "a=X_y-3"]


def test_a_folder_stays_below_its_parent():
    for name in ("data.clients=['..']", "a=../../b", "k=" + "v" * 300):
        folder = name_folder(name, [])
        assert "/" not in folder
        assert folder.strip(".") == folder
        assert len(folder) <= 80


def test_axes_name_all_that_is_wrong_at_once():
    with pytest.raises(ConfigError) as error:
        parse_axes(["seed=1", "x"])
    assert len(str(error.value).splitlines()) == 2
