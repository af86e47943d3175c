"""The learning rate of a round, as the experiment's schedules have it."""

from typing import TYPE_CHECKING

from common.methods import make_options
from common.schedules.schedule import Schedule
from common.schedules.table import SCHEDULES

if TYPE_CHECKING:
    from common.experiment import Experiment
    from common.sections.training import Training


def round_schedule(training: "Training") -> Schedule:
    """Make the schedule over rounds."""
    return _make(training.schedule, training.schedule_options)


def step_schedule(training: "Training") -> Schedule | None:
    """Make the schedule over the steps of a stretch; None where all steps are alike."""
    if training.step_schedule == "constant":
        return None
    return _make(training.step_schedule, training.step_schedule_options)


def rate_of_round(experiment: "Experiment", number: int) -> float:
    """Get the learning rate of a round, numbered from 1, before any schedule over its steps."""
    training = experiment.training
    if training.schedule == "constant":
        return training.lr
    rounds = experiment.federation.rounds
    return training.lr * round_schedule(training).factor(max(0, number - 1), rounds)


def settings_of_round(experiment: "Experiment", number: int) -> "Training":
    """Get the settings of training with the learning rate of a round."""
    training = experiment.training
    if training.schedule == "constant":
        return training
    return training.model_copy(update={"lr": rate_of_round(experiment, number)})


def _make(name: str, options: dict[str, object]) -> Schedule:
    made: Schedule = SCHEDULES[name].load()(make_options(SCHEDULES, name, options))
    return made
