"""What a model trains on: a client's rows as tensors, with a label mask per task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.fitted import Fitted

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        inputs: input name -> float32 [N, width]; for images, [N, channels, height, width]; for
            texts, [N, 1, tokens] as `common.text` numbers them.
        targets: task name -> int64 [N] (multiclass), float32 [N] (binary), float32 [N, outputs]
            (multilabel, regression). A task that the client does not hold is absent. Entries of
            rows without a label are 0 and carry no meaning.
        labelled: task name -> bool [N], the same keys as `targets`.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    labelled: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def select(self, index: Tensor | slice) -> "Rows":
        """Take rows by index, int64 [M], or by a slice, which copies nothing."""
        return Rows(
            *({name: values[index] for name, values in part.items()} for part in self._parts())
        )

    def to(self, device: torch.device) -> "Rows":
        """Move to a device; a no-op where the rows are already there."""
        return Rows(*({name: v.to(device) for name, v in part.items()} for part in self._parts()))

    def side_by_side(self, names: Sequence[str]) -> Tensor:
        """Flatten inputs and lay them side by side, [N, D]; a single one is not copied."""
        flat = [self.inputs[name].flatten(1) for name in names]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)

    @classmethod
    def join(cls, parts: Sequence["Rows"]) -> "Rows":
        """Join the rows of clients; tasks that one lacks have no labels at its rows."""
        if len(parts) == 1:
            return parts[0]
        inputs = {name: torch.cat([p.inputs[name] for p in parts]) for name in parts[0].inputs}
        targets, labelled = {}, {}
        for task, like in {t: v for p in parts for t, v in p.targets.items()}.items():
            targets[task] = torch.cat(
                [
                    p.targets[task]
                    if task in p.targets
                    else like.new_zeros(len(p), *like.shape[1:])
                    for p in parts
                ]
            )
            none = torch.zeros(1, dtype=torch.bool, device=like.device)
            labelled[task] = torch.cat(
                [p.labelled[task] if task in p.labelled else none.expand(len(p)) for p in parts]
            )
        return cls(inputs, targets, labelled)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        return self.inputs, self.targets, self.labelled


@dataclass(frozen=True)
class TargetScale:
    """How a standardised regression target returns to its unit: ``mean + deviation * output``.

    Both are float32 [outputs].
    """

    mean: Tensor
    deviation: Tensor

    def undo(self, values: Tensor) -> Tensor:
        """Return standardised values [N, outputs] to their unit."""
        return self.mean.to(values) + self.deviation.to(values) * values


@dataclass(frozen=True)
class ClientData:
    """Everything one client trains and evaluates on.

    Attributes:
        name: stable name of the client.
        splits: "train", "validation", "test" -> rows; validation and test may be empty.
        target_scales: regression tasks whose targets are standardised -> scale; their tensors in
            `splits` are standardised already, so a metric must undo it.
        notes: one line each on what was left out, for the log; counts and names only.
        fitted: what encoding learned from the training rows; new rows are encoded by it.
        resident: whether rows may be copied whole, to where they are computed with; otherwise they
            stay where they are, such as in a mapped file, and are taken batch by batch.
    """

    name: str
    splits: dict[str, Rows]
    target_scales: Mapping[str, TargetScale] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fitted: Fitted = field(default_factory=Fitted)
    resident: bool = True

    @property
    def train(self) -> Rows:
        """The training rows."""
        return self.splits["train"]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that this client holds."""
        return tuple(self.train.targets)
