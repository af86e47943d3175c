"""What a gradient inversion optimises: rows, labels where they are unknown, heads likewise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor

from common.dataset import Rows
from common.experiment import Experiment
from common.model import MultiTaskModel, build_model, output_width
from common.pretrained.naming import is_frozen
from simulations.attacks.observed import Observed

Parameters = dict[str, Tensor]


@dataclass
class Guess:
    """M rows that might have given an update.

    Attributes:
        inputs: input name -> float64 [M, ...], leaves of autograd.
        labels: task name -> what the target is made of: logits of soft labels, [M, classes] or [M]
            or [M, labels], or the value itself, [M, outputs]; leaves where they are learned.
        are_logits: whether `labels` are such leaves, or the targets themselves.
        labelled: task name -> bool [M].
        own: parameters that stay at the client -> value; leaves where they are learned.
        learned: the leaves.
    """

    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    are_logits: bool
    labelled: dict[str, Tensor]
    own: Parameters
    learned: list[Tensor] = field(default_factory=list)

    def target(self, experiment: Experiment, task: str) -> Tensor:
        """Make the target of a task: probabilities, or values of a regression."""
        kind, raw = experiment.tasks[task].kind, self.labels[task]
        if not self.are_logits or kind == "regression":
            return raw
        return raw.softmax(1) if kind == "multiclass" else raw.sigmoid()

    def hard_labels(self, experiment: Experiment) -> dict[str, Tensor]:
        """Read the guessed labels: int64 classes [M], or numbers."""
        found = {}
        for task in self.labels:
            target = self.target(experiment, task).detach()
            kind = experiment.tasks[task].kind
            if kind == "multiclass":
                target = target.argmax(1)
            elif kind != "regression":
                target = (target > 0.5).long()
            found[task] = target
        return found


def soft_loss(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Compute a task's mean loss for targets that may be probabilities; as `common.losses`.

    Args:
        kind: of the task.
        output: [N, outputs].
        target: [N, classes] probabilities, [N], [N, labels] or [N, outputs].
    """
    if kind == "multiclass":
        return -(target * output.log_softmax(1)).sum(1).mean()
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(output[:, 0], target)
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(output, target)
    return (output - target).square().mean()


def weighted_loss(
    observed: Observed,
    model: MultiTaskModel,
    parameters: Mapping[str, Tensor],
    guess: Guess,
    index: Tensor,
) -> Tensor:
    """Compute ``L = sum_t w_t L_t`` of some guessed rows, as the client's step does, [].

    Args:
        observed: names tasks and weights.
        model: of the run's form.
        parameters: all of the model, by name.
        guess: the rows.
        index: int64 [B], which of them.
    """
    inputs = {name: values[index] for name, values in guess.inputs.items()}
    outputs, _ = model.call_with(parameters, inputs, tuple(guess.labels))
    total = torch.zeros((), dtype=torch.float64)
    for task in guess.labels:
        mask = guess.labelled[task][index]
        if not bool(mask.any()):
            continue
        target = guess.target(observed.experiment, task)[index][mask]
        kind = observed.experiment.tasks[task].kind
        total = total + observed.weights[task] * soft_loss(kind, outputs[task][mask], target)
    return total


def make_model(observed: Observed, seed: int | None = None) -> MultiTaskModel:
    """Build the model of the run in float64, at rest; another seed draws other heads."""
    settings = observed.experiment
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    model = build_model(settings, observed.shapes)
    if seed is not None and not settings.trunk.trains_everything:
        frozen = dict(build_model(observed.experiment, observed.shapes).named_parameters())
        for name, parameter in model.named_parameters():
            if is_frozen(name, settings.trunk):  # which everybody knows
                parameter.data = frozen[name].data
    return model.double().eval()


def own_parameters(model: MultiTaskModel, observed: Observed) -> Parameters:
    """Select what stays at the client, as a model has it."""
    return {
        n: p.detach().clone()
        for n, p in model.named_parameters()
        if n not in observed.received and not is_frozen(n, observed.experiment.trunk)
    }


def draw_inputs(observed: Observed, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw rows to start from, input name -> [M, ...]: standard normal, or uniform in a box."""
    inputs = {}
    for name, shape in observed.shapes.items():
        size = (observed.rows, *shape)
        if name in observed.box:
            low, high = (end.reshape(1, -1, 1, 1) for end in observed.box[name])
            drawn = torch.rand(size, dtype=torch.float64, generator=generator)
            inputs[name] = low + (high - low) * drawn
        else:
            inputs[name] = torch.randn(size, dtype=torch.float64, generator=generator)
    return inputs


def known_labels(experiment: Experiment, rows: Rows, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Turn true targets into probabilities and values."""
    labels = {}
    for task in tasks:
        target = rows.targets[task]
        if experiment.tasks[task].kind == "multiclass":
            target = F.one_hot(target, experiment.tasks[task].class_count or 0)
        labels[task] = target.double()
    return labels


def draw_labels(observed: Observed, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw what unknown labels start from."""
    labels = {}
    for task in observed.tasks:
        settings = observed.experiment.tasks[task]
        width = output_width(settings, len(observed.experiment.targets(task)))
        size = (observed.rows,) if settings.kind == "binary" else (observed.rows, width)
        labels[task] = torch.randn(size, dtype=torch.float64, generator=generator)
    return labels
