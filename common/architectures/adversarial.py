"""Adversarial shared-private trunks: common features that do not tell which task a row is for.

Liu, Qiu & Huang, "Adversarial multi-task learning for text classification", ACL 2017.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from common.architectures.trunk import SharedTrunk
from common.encoder import InputShapes, build_encoder
from common.experiment import Experiment
from common.settings import Finite, Settings


class Adversarial(SharedTrunk):
    """A shared encoder S and a private P_t for each task; task t reads ``[S(x), P_t(x)]``.

    The loss gains ``adversarial * L_adv + orthogonality * L_diff``:

    - L_adv is the cross-entropy of a discriminator ``softmax(W S(x) + b)`` over the tasks. It
      learns to tell which task a row is for, while the gradient that S gets from it is reversed, so
      that S learns to hide it. A row may have labels of several tasks: the target is the uniform
      distribution over them. Where every row has every task there is nothing to tell apart, and
      L_adv moves next to nothing; it is for clients, or rows, with unlike tasks.
    - ``L_diff = sum over tasks of ||S^T P_t / n||_F^2`` over the n rows with a label of t: the two
      encoders are to say different things. The paper does not divide by n; dividing, as every loss
      here is a mean over rows, frees the weight of the batch size.

    In a federation the shared encoder and the discriminator travel. Private encoders belong to
    their tasks, and stay home unless told otherwise. A client with one task teaches the
    discriminator that task alone; what it learns at unlike clients meets in the average.
    """

    class Options(Settings):
        """Options of sharing ``adversarial``."""

        adversarial: Finite = Field(0.05, ge=0, description="Weight of the discriminator's loss.")
        orthogonality: Finite = Field(
            0.01, ge=0, description="Weight of the overlap of shared and private features."
        )

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__(experiment, shapes)
        shared = build_encoder(experiment.trunk, shapes)
        # In front of the encoder, whose last layer is the last that all tasks' losses reach.
        self.discriminator = nn.Linear(shared.width, len(self.tasks))
        self.shared = shared
        self.private = self.for_each_task(
            "private", lambda: build_encoder(experiment.trunk, shapes)
        )
        self.width = 2 * shared.width

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> shared and private features [N, width]."""
        shared = self.shared(inputs)
        return {t: torch.cat([shared, self.private[f"task-{t}"](inputs)], 1) for t in tasks}

    def penalty(
        self, features: Mapping[str, Tensor], labelled: Mapping[str, Tensor]
    ) -> Tensor | None:
        """Compute the weighted L_adv and L_diff of a batch, []."""
        shared = next(iter(features.values()))[:, : self.shared.width]
        private = {task: both[:, self.shared.width :] for task, both in features.items()}
        none = torch.zeros(len(shared), dtype=torch.bool, device=shared.device)
        masks = torch.stack([labelled.get(task, none) for task in self.tasks], dim=1)  # [N, T]
        guesses = self.discriminator(reverse_gradient(shared))
        confusion = cross_entropy_to_uniform(guesses, masks)
        overlaps = [overlap(shared[mask], private[task][mask]) for task, mask in labelled.items()]
        options = self.options
        total: Tensor = options.adversarial * confusion + options.orthogonality * sum(overlaps)
        return total


def reverse_gradient(values: Tensor) -> Tensor:
    """Pass values on, and their gradient back with its sign changed (Ganin & Lempitsky 2015).

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> y = reverse_gradient(x); y.backward(); (y.item(), x.grad.item())
    (3.0, -1.0)
    """
    return 2 * values.detach() - values


def cross_entropy_to_uniform(logits: Tensor, masks: Tensor) -> Tensor:
    """Compare each row's softmax with the uniform distribution over its tasks, in nats.

    Args:
        logits: [N, T].
        masks: bool [N, T], the tasks that a row has labels of; rows without any are left out.

    Returns:
        [] the mean over the other rows; 0 where there are none.

    >>> cross_entropy_to_uniform(torch.zeros(1, 4), torch.tensor([[True, False, True, False]]))
    tensor(1.3863)
    """
    counts = masks.sum(dim=1, keepdim=True)
    targets = masks / counts.clamp(min=1)  # all 0 for a row without any
    return -(targets * logits.log_softmax(dim=1)).sum() / (counts > 0).sum().clamp(min=1)


def overlap(shared: Tensor, private: Tensor) -> Tensor:
    """Measure how much two sets of features say the same: ``||S^T P / n||_F^2``; 0 of no rows.

    >>> overlap(torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    tensor(5.)
    """
    return (shared.T @ private / max(len(shared), 1)).square().sum()
