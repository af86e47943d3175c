"""What is wrong with a loss weighting is told in one line, before anything is read or trained."""

import importlib
import subprocess
import sys

import pytest

from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.weighting.table import WEIGHTINGS
from tests.balances import GRADIENT_METHODS

ONE_TASK = """
name = "single"
[data]
source = "folder"
path = "rows"
[inputs.x]
columns = ["a"]
[tasks.t]
kind = "regression"
"""


def problem_of(*overrides: str, experiment: str = "digits") -> str:
    """The only line that is said."""
    with pytest.raises(ConfigError) as caught:
        load_experiment(experiment, overrides)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["weighting=gradnrom"], ["loss.weighting must be one of 'equal'", "mean 'gradnorm'?"]),
        (["scaling=lgo"], ["loss.scaling must be one of 'none'", "got 'lgo'", "mean 'log'?"]),
        (["scope=both"], ["loss.scope must be one of 'global', 'local', got 'both'"]),
        (["record=all"], ["loss.record must be one of 'weights', 'gradients', got 'all'"]),
        (
            ["weighting=gradnorm", "options.alfa=1"],
            ["loss.options.alfa is no setting", "mean 'alpha'?", "alpha, lr, optimiser, layer"],
        ),
        (["options.alpha=1"], ["loss.options.alpha is no setting. It has none", "'equal'"]),
        (["weighting=dwa", "options=3"], ["loss.options must be a table, got 3"]),
        (
            ["weighting=upgrad", "options.preference=[1, 2]"],
            ["preference must have one number per task (3: digit, parity, ink), got 2"],
        ),
        (
            ["weighting=smooth-tchebycheff", "options.preference=[]"],
            ["preference must have one number per task (3: digit, parity, ink), got 0"],
        ),
        (
            ["weighting=config", "options.preference=[0, 0, 0]"],
            ["preference must have a number above 0, got none; give a task one"],
        ),
        (
            ["weighting=upgrad", "options.preference=[1, -2, 1]"],
            ["preference must be a list of finite numbers of at least 0, got [1, -2, 1]"],
        ),
        (
            ["weighting=upgrad", "options.preference=[1, nan, 1]"],
            ["preference must be a list of finite numbers of at least 0, got [1, nan, 1]"],
        ),
        (["weighting=upgrad", "options.preference=3"], ["preference must be a list of", "got 3"]),
        (
            ["scope=local"],
            ["loss.scope must be left out, got 'local'", "'equal'", "remembers nothing"],
        ),
        (["weighting=dwa", "options.temperature=1e-9"], ["a finite number of at least 0.01"]),
        (["weighting=fairgrad", "options.alpha=0.01"], ["a finite number of at least 0.1"]),
        (["weighting=mgda", "scope=local"], ["loss.scope must be left out", "'mgda'"]),
        (
            ["weighting=gradnorm", "scaling=log"],
            ["loss.scaling must not be 'log' under", "'gradnorm'", "choose 'initial' or"],
        ),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else None,
)
def test_a_wrong_setting_is_named_with_what_it_must_be_and_a_way_out(overrides, parts):
    line = problem_of(*(f"loss.{override}" for override in overrides))
    assert all(part in line for part in parts), line


def numbers_of(weighting: str) -> dict[str, dict]:
    """Name -> schema of a method's numeric options."""
    schema = WEIGHTINGS[weighting].load().Options.model_json_schema()
    kinds = ("number", "integer")
    return {n: s for n, s in schema["properties"].items() if s.get("type") in kinds}


NUMBERS = [(w, name) for w in WEIGHTINGS for name in numbers_of(w)]


@pytest.mark.parametrize(("weighting", "option"), NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "fast", "true", "[1]"])
def test_every_numeric_option_refuses_what_is_no_number_for_it(weighting, option, value):
    line = problem_of(f"loss.weighting={weighting}", f"loss.options.{option}={value}")
    assert line.startswith(f"loss.options.{option} must be a ")
    assert "got " in line
    assert f"(loss.weighting is '{weighting}')" in line


@pytest.mark.parametrize("weighting", [w for w, m in WEIGHTINGS.items() if m.fewest_tasks > 1])
def test_one_task_has_nothing_to_be_weighed_against(tmp_path, weighting):
    (tmp_path / "single.toml").write_text(ONE_TASK)
    line = problem_of(f"loss.weighting={weighting}", experiment=str(tmp_path / "single.toml"))
    assert f"loss.weighting '{weighting}' needs at least 2 tasks, got 1" in line
    assert "remove it" in line


def test_all_manual_weights_0_would_teach_nothing():
    zeros = [f"tasks.{task}.weight=0" for task in ("digit", "parity", "ink")]
    assert "every weight is 0" in problem_of("loss.weighting=manual", *zeros)


@pytest.mark.parametrize("weighting", ["dwa", "mgda"])
def test_a_task_weight_that_a_method_does_not_use_is_refused(weighting):
    line = problem_of(f"loss.weighting={weighting}", "tasks.digit.weight=2")
    assert line.startswith(f"tasks.digit.weight must be 1 under loss.weighting '{weighting}'")


@pytest.mark.parametrize("weighting", ["gradnorm", *GRADIENT_METHODS])
def test_gradients_of_a_trunk_without_layers_cannot_be_balanced(weighting):
    line = problem_of(f"loss.weighting={weighting}", "trunk.widths=[]")
    assert "needs parameters that all tasks share, got trunk.widths = []; give" in line


def test_gradients_of_a_trunk_without_layers_cannot_be_recorded():
    line = problem_of("loss.record=gradients", "trunk.widths=[]")
    assert line.startswith("loss.record must be 'weights'")


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("weighting", GRADIENT_METHODS)
def test_a_library_that_is_missing_is_named_with_the_way_to_install_it(
    weighting, scope, monkeypatch
):
    real = importlib.import_module

    def refuse(name, package=None):
        if name == "torchjd":
            raise ModuleNotFoundError("No module named 'torchjd'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)
    line = problem_of(f"loss.weighting={weighting}", f"loss.scope={scope}")
    assert line.startswith(f"loss.weighting '{weighting}' needs the library torchjd, which is not")
    assert "pip install 'fedmtl[gradients]'" in line


def test_the_extra_that_is_told_is_one_of_the_package():
    import tomllib
    from pathlib import Path

    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    offered = tomllib.loads(text)["project"]["optional-dependencies"]
    for method in WEIGHTINGS.values():
        for module, extra in (method.needs or {}).items():
            assert any(line.startswith(module) for line in offered.get(extra, ())), (module, extra)


def test_an_ordinary_experiment_is_read_without_pytorch():
    script = (
        "import sys; from common.experiment_file import load_experiment; "
        "load_experiment('digits'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


@pytest.mark.parametrize("rate", ["weight-decay", "l1"])
def test_a_rate_for_a_trunk_that_tasks_do_not_share_is_refused(rate):
    line = problem_of("trunk.sharing=soft", f"trunk.{rate}=0.5")
    assert line.startswith(f"trunk.{rate} is for what all tasks share, got 0.5 with")
