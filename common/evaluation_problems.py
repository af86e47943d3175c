"""What cannot be judged by validation rows, or kept, as an experiment asks, a line each."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.algorithms import ALGORITHMS
from common.best import LOSS
from common.experiment_problems import show, suggest

if TYPE_CHECKING:
    from common.experiment import Experiment

JUDGES = ("patience", "best_by", "min_delta", "keep")  # settings that compare trunks


def evaluation_problems(experiment: "Experiment") -> list[str]:
    """Say what is wrong: what it must be, what was, a way out."""
    return [
        *_unknown_figure(experiment),
        *_unjudged(experiment),
        *_unkept(experiment),
    ]


def _unknown_figure(experiment: "Experiment") -> Iterator[str]:
    wanted, known = experiment.evaluation.best_by, [LOSS, *experiment.tasks]
    if wanted not in known:
        hint = suggest(wanted, known)
        yield (
            f"evaluation.best-by must be one of {', '.join(map(repr, known))}, got '{wanted}'"
            f"{'.' + hint if hint else '; correct it, or remove it'}"
        )


def _unjudged(experiment: "Experiment") -> Iterator[str]:
    """Refuse what compares trunks where there is nothing to compare them by."""
    data, withheld = experiment.data, experiment.privacy.sums_regime == "withheld"
    # A split column may name validation rows of its own.
    empty = not data.validation and data.split != "column"
    for name in JUDGES:
        if not experiment.evaluation.is_given(name):
            continue
        value = getattr(experiment.evaluation, name)
        key = name.replace("_", "-")
        if empty:
            yield (
                f"evaluation.{key} needs validation rows, got {show(value)} with data.validation = "
                f"0; set data.validation above 0, or remove {key}"
            )
        if withheld:
            yield (
                f"evaluation.{key} must be left out with privacy.sums 'withheld', which leaves "
                f"nothing to judge by, got {show(value)}; remove it"
            )


def _unkept(experiment: "Experiment") -> Iterator[str]:
    evaluation, federation = experiment.evaluation, experiment.federation
    if evaluation.keep == "last":
        return
    where = "evaluation.keep 'best'"
    if evaluation.by != "message":
        yield (
            f"evaluation.by must be 'message' with {where}, for which all clients judge a trunk "
            f"before anybody trains on, got '{evaluation.by}'; set it"
        )
    if ALGORITHMS[federation.algorithm].fits_last:
        yield (
            f"evaluation.keep must be 'last' under federation.algorithm '{federation.algorithm}', "
            "whose heads are fitted to the last trunk, got 'best'; remove it"
        )
    if federation.strategy == "clustered":
        yield (
            "evaluation.keep must be 'last' under federation.strategy 'clustered', where there are "
            "several trunks at a time, got 'best'; remove it"
        )
    if experiment.privacy.sums_regime == "noised":
        yield (
            "evaluation.keep must be 'last' with privacy.sums 'noised', whose figures are too "
            "uncertain to choose one trunk by, got 'best'; remove it"
        )
