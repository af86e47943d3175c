"""A policy says no by its rule, what it allows and what was asked."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from client.node.policy import Policy, read_policy
from common.errors import ConfigError, PolicyError
from common.experiment_file import load_experiment
from common.wire import Instruction
from tests.conftest import make_experiment

EXPERIMENT = make_experiment(federation={"rounds": 20})
ASKED = Instruction("{}", round=3, clients=5)


def check(policy, kind="train", instruction=ASKED, experiment=EXPERIMENT):
    Policy.model_validate(policy).check(instruction, experiment, kind)


def test_the_default_allows_what_the_documentation_names():
    for kind in ("query", "train", "evaluate"):
        check({}, kind)


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        ({"experiments": {"names": ["other"]}}, "experiments.names"),
        ({"experiments": {"fingerprints": ["0123"]}}, "experiments.fingerprints"),
        ({"experiments": {"most-rounds": 19}}, "experiments.most-rounds"),
        ({"experiments": {"least-clients": 6}}, "experiments.least-clients"),
        ({"leaves": {"allow": ["training-sums"]}}, "leaves.allow"),
        ({"protections": {"secure-aggregation": True}}, "protections.secure-aggregation"),
        ({"protections": {"least-noise-multiplier": 0.5}}, "protections.least-noise-multiplier"),
        ({"protections": {"largest-epsilon": 3.0}}, "protections.largest-epsilon"),
    ],
)
def test_what_goes_beyond_a_rule_is_refused_by_its_name(policy, rule):
    with pytest.raises(PolicyError, match=rule):
        check(policy)


@pytest.mark.parametrize(
    "policy",
    [
        {"experiments": {"names": ["tiny"], "fingerprints": [EXPERIMENT.fingerprint()]}},
        {"experiments": {"most-rounds": 20, "least-clients": 5}},
    ],
)
def test_what_keeps_to_a_rule_is_allowed(policy):
    check(policy)


def test_a_round_beyond_the_experiments_own_is_counted_as_asked():
    with pytest.raises(PolicyError, match="allowed 20, asked 21"):
        check({"experiments": {"most-rounds": 20}}, instruction=Instruction("{}", round=21))


def test_a_changed_setting_is_another_fingerprint():
    policy = {"experiments": {"fingerprints": [EXPERIMENT.fingerprint()]}}
    with pytest.raises(PolicyError, match="fingerprints"):
        check(policy, experiment=make_experiment(federation={"rounds": 20}, seed=1))


def test_the_ledger_counts_over_all_runs():
    policy = Policy.model_validate({"experiments": {"most-rounds-in-all": 3}})
    policy.check_ledger({"rounds": 2, "evaluations": 9}, "train")
    policy.check_ledger({"rounds": 3, "evaluations": 9}, "evaluate")
    with pytest.raises(PolicyError, match="most-rounds-in-all"):
        policy.check_ledger({"rounds": 3, "evaluations": 9}, "train")


def test_evaluations_are_limited_on_their_own():
    policy = Policy.model_validate({"experiments": {"most-evaluations-in-all": 3}})
    policy.check_ledger({"rounds": 9, "evaluations": 2}, "evaluate")
    policy.check_ledger({"rounds": 9, "evaluations": 3}, "train")
    with pytest.raises(PolicyError, match="most-evaluations-in-all"):
        policy.check_ledger({"rounds": 9, "evaluations": 3}, "evaluate")


def test_a_bundle_has_no_network_unless_its_owner_says_so():
    listed = {"run": "bundle", "bundles": ["cd" * 32]}
    assert Policy().code.keeps_network
    assert not Policy.model_validate({"code": listed}).code.keeps_network
    assert Policy.model_validate({"code": {**listed, "network": True}}).code.keeps_network
    assert not Policy.model_validate({"code": {"network": False}}).code.keeps_network


def test_bundles_are_held_against_the_list_only_where_they_run():
    digest = "ab" * 32
    Policy().check_bundle(digest)
    listed = Policy.model_validate({"code": {"run": "bundle", "bundles": ["cd" * 32]}})
    listed.check_bundle("cd" * 32)
    with pytest.raises(PolicyError, match=digest):
        listed.check_bundle(digest)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = [", "no TOML"),
        ("[experiment]", "experiment: Extra inputs are not permitted"),
        ("[leaves]\nsmallest-group = 0", "leaves.smallest-group: .* got 0"),
        ("[leaves]\nsmallest-group = '5'", "leaves.smallest-group: .* valid integer"),
        ("[leaves]\nallow = ['rows']", "leaves.allow.0"),
        ("[code]\nrun = 'bundle'", "needs bundles"),
        ("[code]\nbundles = ['" + "ab" * 32 + "']", "bundles are for run = 'bundle'"),
        ("[code]\nrun = 'bundle'\nbundles = ['zz']", "code.bundles.0"),
    ],
)
def test_a_wrong_file_is_told_in_a_line(tmp_path, text, told):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_policy(path)


def test_the_policy_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "node.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    path = tmp_path / "policy.toml"
    path.write_text(block)
    assert read_policy(path).leaves.smallest_group == 5
    path.write_text(re.sub("^# ", "", block, flags=re.MULTILINE))
    assert read_policy(path).protections.largest_epsilon == 3.0


def test_a_missing_file_is_told_in_a_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_policy(tmp_path / "none.toml")


LEVEL = ["federation.weight-by='uniform'", "federation.rounds=10"]


def private(*overrides):
    return load_experiment("digits", [*LEVEL, *overrides])


NOISE = private("privacy.client-level.noise-multiplier=2.0")  # epsilon 8.08 after 10 rounds
BUDGET = private("privacy.client-level.epsilon=3.0")
ROWS = private("privacy.example-level.noise-multiplier=2.0")
SAMPLED = private(
    "privacy.client-level.noise-multiplier=2.0",
    "federation.sampling='poisson'",
    "federation.clients-per-round=2",
    "privacy.client-level.amplification=true",
)
MASKED = private("privacy.secure-aggregation.max-norm=1.0")
FROM_100 = Instruction("{}", round=3, clients=5, privacy={"population": 100})


@pytest.mark.parametrize(
    ("rules", "experiment", "instruction"),
    [
        ({"least-noise-multiplier": 2.0}, NOISE, ASKED),
        ({"least-noise-multiplier": 2.0}, ROWS, ASKED),
        ({"largest-epsilon": 8.1}, NOISE, ASKED),
        ({"largest-epsilon": 3.0}, BUDGET, ASKED),
        ({"largest-epsilon": 0.5}, ROWS, ASKED),  # goes by the rows, which the client knows
        ({"largest-epsilon": 1.0}, SAMPLED, FROM_100),
        ({"secure-aggregation": True}, MASKED, ASKED),
    ],
)
def test_an_experiment_with_the_protections_is_served(rules, experiment, instruction):
    for kind in ("query", "train", "evaluate"):
        check({"protections": rules}, kind, instruction, experiment)


@pytest.mark.parametrize(
    ("rules", "experiment", "asked"),
    [
        ({"least-noise-multiplier": 2.1}, NOISE, "2"),
        ({"least-noise-multiplier": 2.1}, ROWS, "2"),
        ({"least-noise-multiplier": 9.0}, BUDGET, "4.7"),  # found from its epsilon
        ({"largest-epsilon": 8.0}, NOISE, "8.079"),
        ({"largest-epsilon": 2.9}, BUDGET, "3 for each client"),
        ({"largest-epsilon": 3.0, "delta": 1e-9}, BUDGET, "for each client"),
        ({"largest-epsilon": 1.0}, SAMPLED, "for each client"),  # nobody says of how many
        ({"secure-aggregation": True}, NOISE, "none"),
    ],
)
def test_an_experiment_with_less_protection_is_refused(rules, experiment, asked):
    instruction = replace(ASKED, privacy={"population": 2})
    with pytest.raises(PolicyError, match=rf"protections\.{next(iter(rules))}.*asked.*{asked}"):
        check({"protections": rules}, instruction=instruction, experiment=experiment)


def test_a_query_of_a_sampled_experiment_does_not_tell_of_how_many():
    check({"protections": {"largest-epsilon": 1.0}}, "query", Instruction("{}"), SAMPLED)


@pytest.mark.parametrize("rule", ["largest-epsilon", "least-noise-multiplier", "delta"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_protection_is_a_positive_number(rule, value, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(f"[protections]\n{rule} = {value}\n")
    with pytest.raises(ConfigError, match=rf"protections\.{rule}"):
        read_policy(path)
