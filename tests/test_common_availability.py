"""Availability traces: what they mean, what is wrong with them, what of them travels."""

import pytest

from common.availability import trace_of
from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_file import dump_experiment, load_experiment

HEADER = "client,from-round,to-round,delay-s"


def load(tmp_path, *lines, more=()):
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    settings = [f"federation.availability={tmp_path / 'trace.csv'}", *more]
    return load_experiment("digits", settings)


def test_a_client_with_lines_is_there_in_these_rounds_only_and_others_always():
    trace = trace_of([HEADER, "anna,2,3,1.5", "anna,6,6,", "bert,1,1,0"])
    assert [r for r in range(1, 9) if trace.is_there("anna", r)] == [2, 3, 6]
    assert [trace.delay_s("anna", r) for r in (1, 2, 6)] == [0.0, 1.5, 0.0]
    assert trace.is_there("cleo", 7)
    assert trace.has_delays
    assert not trace_of([HEADER, "bert,1,1,0"]).has_delays


def test_all_problems_of_a_trace_are_told_at_once_with_their_lines(tmp_path):
    lines = [
        "anna,x,2,1",
        "bert,5,2,1",
        "cleo,1,5,0",
        "cleo,3,6,",
        "dora,1,2,inf",
        "emil,1",
        ",1,1,",
    ]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, HEADER, *lines)
    told = str(caught.value).splitlines()
    assert len(told) == 6
    for line, words in {
        2: "from-round must be a whole number of at least 1, got 'x'",
        3: "from-round must be at most to-round, got 5 and 2",
        6: "delay-s must be a finite number",
        7: "must have 4 cells, got 2",
        8: "client must be a name",
    }.items():
        assert any(f"line {line}: {words}" in text for text in told)
    assert told[-1].startswith("federation.availability, line 5: a client's lines must not overlap")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["client,from-round", "anna,1"], "line 1: the columns must be client,from-round,to-round"),
        (["client,from-round,to-round,delay", "a,1,2,3"], "got 'client,from-round,to-round,delay'"),
        ([HEADER], "no client has a line"),
        ([HEADER, "a" * 200_000 + ",1,2,"], "line 2: cannot be read as CSV"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path, lines, words):
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, *lines)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.csv cannot be read: No such file"):
        load_experiment("digits", [f"federation.availability={tmp_path}/nowhere.csv"])


def test_the_resolved_experiment_holds_the_lines_and_loads_to_an_equal_one(tmp_path):
    experiment = load(tmp_path, HEADER, "client-001,1,2,3")
    (tmp_path / "trace.csv").unlink()
    (tmp_path / "resolved.toml").write_text(dump_experiment(experiment))
    assert load_experiment(str(tmp_path / "resolved.toml")) == experiment


def test_a_path_in_an_experiment_file_is_relative_to_that_file(tmp_path):
    own = dump_experiment(load_experiment("digits")).replace(
        "availability = []", 'availability = "trace.csv"'
    )
    (tmp_path / "own.toml").write_text(own)
    (tmp_path / "trace.csv").write_text(f"{HEADER}\nclient-001,1,2,3\n")
    found = load_experiment(str(tmp_path / "own.toml")).federation.availability
    assert found == (HEADER, "client-001,1,2,3")


def test_clients_are_sent_a_digest_of_the_trace_and_see_the_same_fingerprint(tmp_path):
    experiment = load(tmp_path, HEADER, "client-001,1,2,3")
    text = experiment.for_clients()
    assert "client-001" not in text
    assert str(tmp_path) not in text
    received = Experiment.model_validate_json(text)
    assert received.fingerprint() == experiment.fingerprint()


def test_another_trace_is_another_experiment_and_so_is_another_deadline_with_one(tmp_path):
    one = load(tmp_path, HEADER, "client-001,1,2,3").fingerprint()
    assert load(tmp_path, HEADER, "client-001,1,2,4").fingerprint() != one
    shorter = ["federation.round-timeout-s=2"]
    assert load(tmp_path, HEADER, "client-001,1,2,3", more=shorter).fingerprint() != one
    plain, hurried = load_experiment("digits"), load_experiment("digits", shorter)
    assert plain.fingerprint() == hurried.fingerprint()


@pytest.mark.parametrize(
    "setting",
    [
        "federation.sampling=by-size",
        "federation.over-selection=0.3",
        "federation.least-replies=0.5",
        "federation.too-few=skip",
        "federation.most-repeats=3",
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        load_experiment("digits", [setting])
