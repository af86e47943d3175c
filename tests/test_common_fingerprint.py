"""What a fingerprint goes by, and so what a resumed run may change."""

import pytest

from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.fingerprint import NEVER, SOMETIMES
from common.resuming import check_changes

DIGITS = load_experiment("digits").fingerprint()
CHANGES = {  # of what no result depends on; trunk.weights has a test of its own
    "description": "'another'",
    "training.device": "'cpu'",
    "training.micro-batch": "4",
    "training.recompute-activations": "true",
    "federation.affinity-every": "3",
    "federation.checkpoint-interval-s": "1.0",
    "federation.snapshot-every": "2",
    "federation.rounds": "77",
    "federation.round-timeout-s": "7.0",
}


@pytest.mark.parametrize("setting", CHANGES)
def test_what_no_result_depends_on_does_not_count(setting):
    changed = load_experiment("digits", [f"{setting}={CHANGES[setting]}"])
    assert changed != load_experiment("digits")
    assert changed.fingerprint() == DIGITS


@pytest.mark.parametrize(
    "override",
    ["seed=5", "data.seed=5", "training.precision='bfloat16'", "trunk.widths=[8]", "data.test=0.3"],
)
def test_any_other_setting_counts(override):
    assert load_experiment("digits", [override]).fingerprint() != DIGITS


def test_rounds_count_where_a_budget_is_shared_out_over_them():
    level = "privacy.client-level={max-norm=1.0, epsilon=3.0, delta=0.01}"
    wanted = ["federation.weight-by='uniform'", level]
    ten, twenty = (load_experiment("digits", [*wanted, f"federation.rounds={n}"]) for n in (10, 20))
    assert ten.fingerprint() != twenty.fingerprint()


@pytest.mark.parametrize("setting", [*NEVER, *SOMETIMES])
def test_a_resumed_run_may_change_what_does_not_count(setting):
    check_changes([f"{setting}=1"], "With --resume, --set")


def test_a_resumed_run_may_change_nothing_else():
    with pytest.raises(ConfigError, match=r"may change only federation\.rounds, .* got 'seed=1'"):
        check_changes(["seed=1"], "With --resume, --set")
