import subprocess
import sys
import tomllib

import pytest

from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_file import (
    dump_experiment,
    json_schema,
    known_experiments,
    load_experiment,
    parse_set,
)

SMALL = """
name = "small"
[data]
source = "folder"
path = "rows"
[inputs.x]
columns = ["a", "b"]
[tasks.t]
kind = "regression"
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def problems_of(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(path), overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", known_experiments())
def test_every_known_experiment_loads_under_its_own_name(name):
    assert load_experiment(name).name == name


@pytest.mark.parametrize("name", known_experiments())
def test_every_known_experiment_survives_writing_and_reading(name, tmp_path):
    experiment = load_experiment(name)
    path = tmp_path / "again.toml"
    path.write_text(dump_experiment(experiment))
    assert load_experiment(str(path)) == experiment


def test_settings_at_their_unusual_values_survive_writing_and_reading(small, tmp_path):
    experiment = load_experiment(
        str(small),
        [
            "tasks.c.kind=multiclass",
            "tasks.c.classes=['no', 'yes']",
            "tasks.c.hidden=[8]",
            "trunk.widths=[]",
            "evaluation.patience=3",
            "partition.kind=iid",
            'description="two\\nlines \\"quoted\\""',
        ],
    )
    path = tmp_path / "again.toml"
    path.write_text(dump_experiment(experiment))
    assert load_experiment(str(path)) == experiment


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.lr=1", lambda e: e.training.lr == 1.0),
        ("training.lr = 1e-3", lambda e: e.training.lr == 1e-3),
        ("trunk.widths=[32, 16]", lambda e: e.trunk.widths == (32, 16)),
        ("federation.clients-per-round=all", lambda e: e.federation.clients_per_round == "all"),
        ("federation.clients-per-round=3", lambda e: e.federation.clients_per_round == 3),
        ("tasks.u.kind=binary", lambda e: e.tasks["u"].kind == "binary"),
        ('name="7"', lambda e: e.name == "7"),
        ("description=a=b", lambda e: e.description == "a=b"),
    ],
)
def test_an_override_is_a_toml_literal_or_plain_text(small, override, read):
    assert read(load_experiment(str(small), [override]))


def test_the_last_override_of_a_key_wins(small):
    loaded = load_experiment(str(small), ["training.lr=1", "training.lr=2"])
    assert loaded.training.lr == 2.0


def test_a_seed_given_apart_overrides_the_file(small):
    assert load_experiment(str(small), ["seed=1"], seed=7).seed == 7


def test_a_data_path_in_a_file_is_relative_to_the_file(small, tmp_path):
    assert load_experiment(str(small)).data.path == str(tmp_path / "rows")


def test_a_data_path_given_apart_is_relative_to_the_working_folder(small, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    expected = str(tmp_path / "here" / "mine")
    assert load_experiment(str(small), data_path="mine").data.path == expected
    assert load_experiment(str(small), ["data.path=mine"]).data.path == expected


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.epochs=1.5", "training.epochs must be a whole number of at least 1, got 1.5. "),
        ("training.epochs=true", "training.epochs must be a whole number of at least 1, got true."),
        ("training.lr=inf", "training.lr must be a finite number above 0, got inf. Leave it out"),
        ("training.lr=fast", "training.lr must be a finite number above 0, got 'fast'. Leave it"),
        (
            "training.optimiser=agam",
            "training.optimiser must be one of 'sgd', 'adam', 'adamw', 'adadelta', 'adagrad', "
            "'adamax', 'asgd', 'nadam', 'radam', 'rmsprop', 'rprop', got 'agam'. "
            "Did you mean 'adam'?",
        ),
        (
            "federation.clients-per-round=0",
            "federation.clients-per-round must be a whole number of at least 1, or 'all', got 0. "
            "Leave it out for the default, 'all'.",
        ),
        (
            "tasks.t.classes=[1, 2]",
            "tasks.t.classes must be a whole number of at least 2, or a list of texts, got [1, 2].",
        ),
        ("trunk.widths=[3, 0]", "trunk.widths must be a list of whole numbers of at least 1, got"),
        ("inputs.x.columns=[]", "inputs.x.columns must be a list of texts (not empty), got []."),
        ("training=3", "training must be a table, got 3."),
        ("partition=none", "partition must be a table, got 'none'."),
        ("training.lr.x=3", "training.lr must be a finite number above 0, got a table."),
        ("name=a b", "name must be a text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*$, got 'a b'."),
        ("data.clients=[a]", "data.clients must be a TOML value, got [a]. Inside brackets, text"),
        ("training.lr", "An override must be key=value, as in training.lr=0.1, got 'training.lr'."),
        ("data.test=0.9", "data: validation and test together must be below 1, got 0.15 + 0.9;"),
        ("tasks.t.kind=multiclass", "tasks.t: a multiclass task needs classes: their number, or"),
        ("data.stratify=u", "data.stratify must name a task (t), got 'u'."),
        (
            "inputs.x.columns=['a', 't']",
            "inputs.x.columns must not name a target, got 't', which tasks.t predicts; remove it",
        ),
        (
            "tasks.t.weight=2",
            "tasks.t.weight must be 1 under loss.weighting 'equal', which does not use it, got 2; "
            'set loss.weighting = "manual", or remove it.',
        ),
        (
            "trunk.channels=[4]",
            "trunk.channels is for trunk.architecture 'cnn', got [4] with 'mlp'",
        ),
        ("data.client-column=who", "data.client-column is for data.source 'table', got 'who' with"),
        (
            "data.split-column=when",
            "data.split-column is for data.split 'ordered' or 'column', got",
        ),
        ("partition.by=a", "partition.by is for partition.kind 'dirichlet' or 'pathological' or"),
        ("partition.alpha=1", "partition.alpha is for partition.kind 'dirichlet', got 1.0 with"),
        ("partition.classes-per-client=1", "partition.classes-per-client is for partition.kind"),
        ("partition.tasks-per-client=2", "partition.tasks-per-client is for partition.task-skew"),
        ("trunk.norm-groups=2", "trunk.norm-groups is for trunk.norm 'group', got 2 with 'none';"),
        (
            "trunk.norm-parameters=local",
            "trunk.norm-parameters 'local' is for trunk.norm 'layer' or 'batch' or 'group', got",
        ),
        ("trunk.l1=-1", "trunk.l1 must be a finite number of at least 0, got -1."),
        ("tasks.é.kind=binary", "tasks: names are letters, digits, - and _, got 'é'."),
    ],
)
def test_a_wrong_value_gives_one_line_with_key_expectation_and_value(small, override, line):
    (found,) = problems_of(small, override)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("training.ephocs=3", "Did you mean 'epochs'? Keys of [training]: epochs, batch-size,"),
        ("training.batch_size=3", "Did you mean 'batch-size'? Keys of [training]: "),
        ("training.rounds=3", "Did you mean 'federation.rounds'? Keys of [training]: "),
        ("rounds=3", "Did you mean 'federation.rounds'? Keys and tables of an experiment: name,"),
        ("tasks.t.zzz=1", "Keys of [tasks.t]: kind, target,"),
    ],
)
def test_an_unknown_key_gives_the_nearest_and_all_known_ones(small, override, hint):
    key = override.partition("=")[0]
    (found,) = problems_of(small, override)
    assert found.startswith(f"{key} is no setting. {hint}")


def test_patience_needs_validation_rows(small):
    (found,) = problems_of(small, "evaluation.patience=3", "data.validation=0")
    assert found.startswith("evaluation.patience needs validation rows, got 3 with")


def test_a_categorical_input_has_no_scale(small):
    (found,) = problems_of(small, "inputs.x.kind=categorical", "inputs.x.scale=2")
    assert found.startswith("inputs.x.scale is for numbers and images, got 2 for an input")


def test_a_rate_that_every_part_overrules_is_refused(small):
    own = ["trunk.l1=0.1", "tasks.t.l1=0"]
    (found,) = problems_of(small, "training.l1=0.2", *own)
    assert found.startswith("training.l1 must be 0 where trunk and every task have their own, got")
    assert load_experiment(str(small), own).tasks["t"].l1 == 0


@pytest.mark.parametrize("setting", ["trunk.norm=layer", "trunk.dropout=0.1"])
def test_a_trunk_without_layers_has_nothing_to_normalise_or_drop(small, setting):
    (found,) = problems_of(small, "trunk.widths=[]", setting)
    assert found.startswith(setting.partition("=")[0])


def test_only_batch_norm_has_statistics_to_keep(small):
    (found,) = problems_of(small, "trunk.norm=layer", "trunk.norm-parameters=local-statistics")
    assert found.startswith("trunk.norm-parameters 'local-statistics' is for trunk.norm 'batch', ")


def test_groups_that_do_not_divide_a_layer_are_refused(small):
    (found,) = problems_of(small, "trunk.widths=[32, 12]", "trunk.norm=group")
    assert found.startswith("trunk: norm-groups must divide widths and channels, got 8 for 12;")


def test_groups_of_fewer_than_three_features_are_refused(small):
    norm = ["trunk.norm=group", "trunk.norm-groups=4"]
    (found,) = problems_of(small, "trunk.widths=[8]", *norm)
    assert found.startswith("trunk: norm-groups must leave groups of three features or more")


def test_every_setting_without_effect_is_a_line_of_its_own(small):
    idle = ["inputs.x.columns=['a', 't']", "trunk.channels=[4]", "data.split-column=when"]
    assert len(problems_of(small, *idle)) == 3


@pytest.mark.parametrize(
    "used",
    [
        ["loss.weighting=manual", "tasks.t.weight=2"],
        ["data.source=table", "data.client-column=who"],
        ["data.split=ordered", "data.split-column=when"],
        ["data.split=column", "data.split-column=s", "data.validation=0", "evaluation.patience=2"],
        ["partition.kind=dirichlet", "partition.by=a", "partition.alpha=1"],
        ["partition.kind=pathological", "partition.by=a", "partition.classes-per-client=1"],
        ["partition.task-skew=rotate", "partition.tasks-per-client=1"],
        ["trunk.widths=[8]", "trunk.norm=group", "trunk.norm-groups=2"],
        ["trunk.norm=batch", "trunk.norm-parameters=local-statistics"],
        ["trunk.l1=0.1", "training.l1=0.2", "tasks.t.weight-decay=0"],
    ],
)
def test_settings_with_an_effect_are_taken_and_survive_writing_and_reading(small, tmp_path, used):
    experiment = load_experiment(str(small), used)
    path = tmp_path / "again.toml"
    path.write_text(dump_experiment(experiment))
    assert load_experiment(str(path)) == experiment
    assert Experiment.model_validate_json(experiment.model_dump_json(by_alias=True)) == experiment


def test_a_missing_setting_says_what_it_is_for(small):
    (found,) = problems_of(small, "inputs.y.kind=numeric")
    assert found.startswith("inputs.y.columns is missing; it must be a list of texts (not empty).")


def test_all_problems_are_listed_at_once(small):
    overrides = ["training.lr=0", "trunk.x=1", "oops", "data.source=3", "seed=-1"]
    assert len(problems_of(small, *overrides)) == 5


def test_broken_toml_names_file_line_and_trouble(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text('name = "x"\nseed = = 3\n')
    assert problems_of(path) == [f"{path}, line 2, column 8: Invalid value."]


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"name = \xff")
    assert problems_of(path) == [f"{path} is not UTF-8 text: byte 7 is wrong."]


def test_an_unknown_name_lists_the_known_ones():
    (line,) = problems_of("no-such-experiment")
    assert all(name in line for name in known_experiments())


@pytest.mark.parametrize("name", ["missing.toml", "a/folder/file"])
def test_a_missing_file_is_called_missing(name):
    assert problems_of(name) == [f"There is no experiment file '{name}'."]


def test_a_folder_is_no_experiment(tmp_path):
    (line,) = problems_of(tmp_path)
    assert line.endswith("is a folder; name the .toml file in it.")


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("", []),
        ("  ", []),
        ("a=1 b=2", ["a=1", "b=2"]),
        ("a=[1, 2]  b={c = 3}", ["a=[1, 2]", "b={c = 3}"]),
        ("a=['x y', \"]\"] b='c d'", ["a=['x y', \"]\"]", "b='c d'"]),
        ('a="say \\"hi\\" now" b=2', ['a="say \\"hi\\" now"', "b=2"]),
    ],
)
def test_flower_set_splits_at_spaces_outside_quotes_and_brackets(text, overrides):
    assert parse_set(text) == overrides


def test_the_json_schema_speaks_kebab_case():
    assert "batch-size" in json_schema()["$defs"]["Training"]["properties"]


def test_a_dump_is_kebab_case_toml(small):
    tables = tomllib.loads(dump_experiment(load_experiment(str(small))))
    assert tables["training"]["batch-size"] == 16


def test_reading_experiments_needs_no_torch():
    code = "import sys, common.experiment_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
