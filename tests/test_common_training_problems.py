"""Precision and memory settings that cannot be, or would change nothing, are told in a line."""

import pytest
from pydantic import ValidationError

from client.stacked_model import find_obstacle
from common.errors import ConfigError
from common.experiment_file import load_experiment
from simulations.simulate import check_options, choose_engine
from tests.conftest import make_experiment

NO_LAYERS = "trunk.widths=[]"
PRIVATE = "privacy.example-level.noise-multiplier=1"
REFUSED = {
    "coarse rows' gradients": (
        ["training.precision=bfloat16", PRIVATE],
        r"training\.precision must be 'float32' under \[privacy\.example-level\].*got 'bfloat16'",
    ),
    "forgotten rows' gradients": (
        ["training.recompute-activations=true", PRIVATE],
        r"training\.recompute-activations must be false under \[privacy\.example-level\]",
    ),
    "no products": (
        ["training.precision=float16", NO_LAYERS],
        r"training\.precision must be 'float32' for a trunk without layers.*got 'float16'",
    ),
    "nothing to forget": (
        ["training.recompute-activations=true", NO_LAYERS],
        r"training\.recompute-activations must be false for a trunk without layers",
    ),
    "a compiler forgets by itself": (
        ["training.recompute-activations=true", "training.compile=true"],
        r"training\.recompute-activations must be false under training\.compile",
    ),
    "one piece": (
        ["training.micro-batch=16", "training.batch-size=16"],
        r"training\.micro-batch must be below training\.batch-size, 16,.*got 16",
    ),
    "half a batch's mean": (
        ["training.micro-batch=2", "trunk.norm=batch"],
        r"training\.micro-batch must be left out under trunk\.norm 'batch'",
    ),
    "half a batch's overlap": (
        ["training.micro-batch=2", "trunk.sharing=adversarial"],
        r"training\.micro-batch must be left out under trunk\.sharing 'adversarial'",
    ),
    "no rows": (["training.micro-batch=0"], r"training\.micro-batch must be a whole number of at"),
    "no precision": (
        ["training.precision=half"],
        r"training\.precision must be one of 'float32', 'bfloat16', 'float16', got 'half'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_told_with_a_way_out(case):
    settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        load_experiment("digits", settings)


def test_pieces_may_be_private():
    load_experiment("digits", ["training.micro-batch=2", PRIVATE])


OWN = {
    "precision": ("bfloat16", "training.precision 'bfloat16' has no stacked form"),
    "micro-batch": (2, "training.micro-batch '2' has no stacked form"),
    "recompute-activations": (True, "training.recompute-activations 'true' has no stacked form"),
}


@pytest.mark.parametrize("setting", OWN)
def test_clients_then_train_one_by_one(setting):
    value, why = OWN[setting]
    experiment = make_experiment(training={setting: value})
    assert find_obstacle(experiment) == why
    assert choose_engine(experiment) == ("loopback", why)
    with pytest.raises(ConfigError, match=f"engine 'batched' cannot train this model: {why}"):
        check_options(experiment, "batched", workers=1, profile=False)


def test_what_changes_no_step_is_not_part_of_a_result():
    plain = make_experiment()
    for setting in ("micro-batch", "recompute-activations"):
        value, _ = OWN[setting]
        assert make_experiment(training={setting: value}).fingerprint() == plain.fingerprint()
    coarse = {
        make_experiment(training={"precision": p}).fingerprint() for p in ("bfloat16", "float16")
    }
    assert len(coarse - {plain.fingerprint()}) == 2


def test_a_number_of_rows_is_whole():
    with pytest.raises(ValidationError):
        make_experiment(training={"micro-batch": 2.5})
