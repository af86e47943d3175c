"""What the outputs of a task's head say: classes and probabilities, or values in their own unit."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.dataset import TargetScale
from common.metrics import predicted_classes
from common.sections.rows import Task


class Answer(NamedTuple):
    """The answers of one task for N rows.

    Attributes:
        value: int64 classes, [N] (multiclass, binary) or [N, labels] (multilabel); or values in the
            target's unit, [N, outputs], float32, after ``log1p`` float64 (regression).
        probability: float32 [N, classes] (multiclass), [N] of the second class (binary) or
            [N, labels] (multilabel); None for regression.
    """

    value: Tensor
    probability: Tensor | None


def read_output(task: Task, output: Tensor, scale: TargetScale | None) -> Answer:
    """Read a head's outputs as its metric does, and undo what ``transform`` did.

    Args:
        task: the task's settings.
        output: [N, outputs].
        scale: of the client's targets, where they are standardised.

    >>> read_output(Task(kind="binary"), torch.tensor([[0.0], [2.0]]), None).value
    tensor([0, 1])
    """
    if task.kind == "regression":
        value = output if scale is None else scale.undo(output)
        return Answer(value.double().expm1() if task.transform == "log1p" else value, None)
    decided = predicted_classes(task.kind, output).to(torch.int64)
    if task.kind == "multiclass":
        return Answer(decided, output.softmax(dim=1))
    probability = output.sigmoid()
    if task.kind == "binary":
        return Answer(decided[:, 0], probability[:, 0])
    return Answer(decided, probability)


def average_answers(task: Task, answers: Sequence[Answer]) -> Answer:
    """Average what several models answer: probabilities, or values in the target's own unit.

    Classes are those of the mean probabilities. One model's answer stays as it is.

    >>> said = [Answer(torch.tensor([c]), torch.tensor([p])) for c, p in ((0, 0.4), (1, 0.9))]
    >>> average_answers(Task(kind="binary"), said).value
    tensor([1])
    """
    if len(answers) == 1:
        return answers[0]
    if task.kind == "regression":
        return Answer(torch.stack([answer.value for answer in answers]).mean(0), None)
    said = [answer.probability for answer in answers if answer.probability is not None]
    mean = torch.stack(said).mean(0)
    value = mean.argmax(dim=1) if task.kind == "multiclass" else (mean > 0.5).to(torch.int64)
    return Answer(value, mean)
