"""A client that took no part in a federation fits heads on its trunk, which stays as it is.

Beside it, two ways to do without: trunk and heads from scratch on the same rows, and both trained
on from the federation's trunk. All three go through `Fitting`: what differs is where they start and
what may move.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.batches import epoch_order, row_patterns, shuffle_key
from client.flat import TRUNK, FloatArray
from client.optimisers import make_optimiser
from client.phases import within
from client.tally import TaskSums
from client.training import Trainer
from common.dataset import ClientData, Rows
from common.encoder import Seeded, SeededDropout
from common.losses import ROW_LOSSES, combine_losses
from common.seeding import torch_generator
from common.sharing import learned_names

SHARED = "trunk."  # begins the names of parameters that a trunk may consist of
NO_ROUND = 0  # names the shuffles, where those of a federation are named by rounds from 1 on


@dataclass(frozen=True)
class Contender:
    """One way to a model for a newcomer.

    Attributes:
        line: what it is.
        takes_trunk: it starts from the federation's trunk, else from a new one.
        is_frozen: that trunk stays as it is.
    """

    line: str
    takes_trunk: bool
    is_frozen: bool


HEADS, FINE_TUNED, ALONE = "heads", "fine-tuned", "alone"
CONTENDERS = {
    HEADS: Contender("heads, trunk frozen", True, True),
    FINE_TUNED: Contender("heads and trunk from it", True, False),
    ALONE: Contender("all from scratch", False, False),
}


@dataclass(frozen=True)
class Limits:
    """How long to fit.

    Attributes:
        epochs: at most so many passes over the training rows.
        patience: stop after so many without a lower validation loss; None to do all of them.
    """

    epochs: int
    patience: int | None = None


@dataclass(frozen=True)
class Fit:
    """What came of fitting.

    Attributes:
        epochs: passes after which the parameters were best, which are the ones kept.
        done: passes that were done.
        test: sums of loss and metric over the test rows, task by task.
    """

    epochs: int
    done: int
    test: TaskSums


def fit_contender(
    trainer: Trainer, data: ClientData, trunk: Mapping[str, FloatArray], name: str, limits: Limits
) -> Fit:
    """Fit one of `CONTENDERS` on a client's training rows; `trainer` holds its model afterwards.

    Heads are new, by the seed of the trainer's experiment, except where a federation shares heads:
    then `trunk` has them, and whoever takes it starts from them.

    Args:
        trainer: of the federation's experiment.
        data: the newcomer's rows, encoded by the federation's agreement.
        trunk: what the federation shares; its ``trunk.`` parameters are the trunk.
        name: of the contender.
        limits: how long.

    Raises:
        ShapeError: the trunk is none of this model's.
    """
    contender = CONTENDERS[name]
    trainer.load(trunk if contender.takes_trunk else {}, {})
    frozen = {p for p in trunk if p.startswith(SHARED)} if contender.is_frozen else set()
    learned = learned_names(trainer.flat.layout.slices, trainer.experiment)
    fitted = [parameter for parameter in learned if parameter not in frozen]
    epochs, done = Fitting(trainer, data, fitted).run(limits)
    return Fit(epochs, done, trainer.evaluate(data, "test"))


class Fitting:
    """Trains some parameters of a loaded model; all others stay bit for bit as they are.

    Optimiser, learning rate, batches, clipping and penalties are the experiment's; the optimiser's
    state lives for the whole fit, and no schedule changes its rate: they are of rounds. The loss is
    ``L = sum_t w_t * L_t`` with the experiment's weights, 1 under a weighting that finds its own.

    Args:
        trainer: with the model to start from; has the fitted one after `run`.
        data: a client's rows.
        names: parameters that may move. A trunk of which nothing may is computed once, as in
            evaluation: without dropout, and normalised by its running statistics.
    """

    def __init__(self, trainer: Trainer, data: ClientData, names: Collection[str]) -> None:
        self.experiment, self.model, self.flat = trainer.experiment, trainer.model, trainer.flat
        self.weights = self.experiment.task_weights()
        self.key = shuffle_key(self.experiment.seed, data.name)
        self.patterns = row_patterns(data.train, self.experiment)
        self.moving = _moving_modules(self.model, set(names))
        self.model.give_generator(
            torch_generator(self.experiment.seed, "dropout", data.name, NO_ROUND)
        )
        values, gradients = self.flat.values.unsqueeze(0), self.flat.gradients.unsqueeze(0)
        places = [self.flat.layout.slices[name] for name in names]
        self.parts = {name: within(part, places) for name, part in trainer.parts["all"].items()}
        self.optimiser = make_optimiser(
            values, self.experiment.training, self.parts.values(), gradients
        )
        self.from_features = not any(name.startswith(SHARED) for name in names)
        device = self.flat.values.device
        self.train = self._prepare(data.train.to(device))
        self.held_out = self._prepare(data.splits["validation"].to(device))
        self.is_judged = any(bool(mask.any()) for mask in self.held_out.labelled.values())

    def run(self, limits: Limits) -> tuple[int, int]:
        """Fit, and keep the parameters as they were after the epoch of lowest validation loss.

        Without a label among the validation rows they are kept as after the last epoch.

        Returns:
            The number of epochs after which the parameters were kept, and that of all done.
        """
        best, lowest, kept, epoch = self.flat.values.clone(), math.inf, 0, 0
        while epoch < limits.epochs:
            self._do_epoch(epoch)
            epoch += 1
            loss = self._validation_loss() if self.is_judged else math.nan
            if loss < lowest or not kept or not self.is_judged:
                best.copy_(self.flat.values)
                lowest, kept = min(lowest, loss), epoch  # NaN, of what diverged, is no lower
            elif limits.patience is not None and epoch - kept >= limits.patience:
                break
        self.flat.values.copy_(best)
        return kept, epoch

    def _do_epoch(self, epoch: int) -> None:
        self.model.eval()
        for module in self.moving:
            module.train()
        settings, count = self.experiment.training, len(self.train)
        order = epoch_order(count, self.patterns, settings.balance, self.key, NO_ROUND, epoch)
        index = torch.from_numpy(order).to(self.flat.values.device)
        for own in torch.split(index, settings.batch_size):
            losses, penalty = self._losses(self.train.select(own))
            if not losses:
                continue
            self.flat.gradients.zero_()
            total = combine_losses(losses, self.weights)
            torch.autograd.backward(total if penalty is None else total + penalty)
            self.optimiser.step(1, [self.parts[name] for name in (TRUNK, *losses)])

    def _prepare(self, rows: Rows) -> Rows:
        """Put the features that heads read in place of the inputs, if the trunk stays as it is."""
        if not self.from_features or not len(rows):
            return rows
        self.model.eval()
        with torch.no_grad():
            features = self.model.trunk(rows.inputs, tuple(rows.targets))
        return Rows(features, rows.targets, rows.labelled)

    def _losses(self, rows: Rows) -> tuple[dict[str, Tensor], Tensor | None]:
        """Compute the mean loss of each task with a label in these rows, and the trunk's penalty.

        Returns:
            Task -> []; and what the sharing architecture adds, [] or None.
        """
        penalty, outputs = None, {}
        if self.from_features:
            for task in rows.targets:
                outputs[task] = self.model.heads[f"task-{task}"](rows.inputs[task])
        else:
            outputs, penalty = self.model(rows.inputs, tuple(rows.targets), rows.labelled)
        losses = {}
        for task, mask in rows.labelled.items():
            if bool(mask.any()):
                row_loss = ROW_LOSSES[self.experiment.tasks[task].kind]
                losses[task] = row_loss(outputs[task][mask], rows.targets[task][mask]).mean()
        return losses, penalty

    def _validation_loss(self) -> float:
        """Compute ``sum_t w_t * L_t`` over validation rows."""
        self.model.eval()
        with torch.no_grad():
            losses, _ = self._losses(self.held_out)
        return float(combine_losses(losses, self.weights))


def _moving_modules(model: nn.Module, names: set[str]) -> Sequence[nn.Module]:
    """List the modules that act as in training: those of parameters that move, and their dropout.

    A frozen batch norm must neither normalise by the batch nor change its running statistics.
    """
    moving = []
    for path, module in model.named_modules():
        own = {name for name, _ in module.named_parameters(path, recurse=False)}
        # Dropout goes with the layers beside it; a ready model draws inside of itself.
        home = path.rpartition(".")[0] if isinstance(module, SeededDropout) else path
        drops = isinstance(module, Seeded) and any(n.startswith(f"{home}.") for n in names)
        if drops or own & names:
            moving.append(module)
    return moving
