"""The multi-task model: a trunk that is shared, one head per task that is not.

How tasks share the trunk is the sharing architecture's (`common.architectures`). Parameters are
named ``trunk.*`` and ``heads.task-<name>.*``; what travels is decided by names alone
(`common.sharing`).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.architectures.table import SHARINGS
from common.architectures.trunk import SharedTrunk
from common.encoder import Encoder, InputShapes, Seeded, SeededDropout
from common.errors import ConfigError
from common.experiment import Experiment
from common.pretrained.naming import plain_name
from common.pretrained.prepare import prepare_trunk
from common.sections.rows import Task
from common.seeding import derive_key


def output_width(task: Task, targets: int) -> int:
    """Number of outputs of a task's head; `targets` is its number of target columns."""
    if task.kind == "multiclass":
        if task.class_count is None:
            raise ValueError("a multiclass task without classes passed the schema")
        return task.class_count
    return 1 if task.kind == "binary" else targets


def build_head(task: Task, features: int, targets: int) -> nn.Sequential:
    """Make one task's head: hidden ReLU layers, then a linear layer to its outputs.

    Dropout comes before every layer: a linear head has some too, of features that the heads of
    other tasks read whole.
    """
    widths = [features, *task.hidden, output_width(task, targets)]
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(widths):
        if task.dropout:
            layers.append(SeededDropout(task.dropout))
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    if task.init == "zero":
        for parameter in layers[-2].parameters():
            nn.init.zeros_(parameter)
    return nn.Sequential(*layers[:-1])


class MultiTaskModel(nn.Module):
    """A trunk and the heads of all tasks of an experiment.

    Args:
        trunk: a sharing architecture; one of `common.architectures`.
        heads: task name -> its head.
    """

    def __init__(self, trunk: SharedTrunk, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        # A plain ModuleDict refuses task names such as "type", which are attributes of modules.
        self.heads = nn.ModuleDict({f"task-{name}": head for name, head in heads.items()})
        self.dropouts = [m for m in self.modules() if isinstance(m, Seeded)]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Name every parameter, by names that a library's wrapping of layers does not change."""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            yield plain_name(name), parameter

    def call_with(self, parameters: Mapping[str, Tensor], *arguments: Any) -> Any:
        """Compute `forward` with other parameters, by the names of `named_parameters`."""
        inner = {plain_name(name): name for name, _ in super().named_parameters()}
        given = {inner.get(name, name): values for name, values in parameters.items()}
        return torch.func.functional_call(self, given, arguments)

    def give_generator(self, generator: torch.Generator | None) -> None:
        """Let dropout, and what a ready model draws, come from a generator."""
        self.begin_batch()
        for dropout in self.dropouts:
            dropout.generator = generator

    def begin_batch(self) -> None:
        """Let dropout forget the masks of the batch before."""
        for dropout in self.dropouts:
            dropout.begin_batch()

    def take_micro_batch(self, rows: int, place: slice) -> None:
        """Let dropout expect these rows next, of a batch of so many, as if that came as a whole."""
        for dropout in self.dropouts:
            dropout.take_micro_batch(rows, place)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        tasks: Sequence[str],
        labelled: Mapping[str, Tensor] | None = None,
        precision: torch.dtype | None = None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Compute the outputs of the tasks asked for.

        Args:
            inputs: input name -> [N, ...].
            tasks: names of tasks.
            labelled: in training, task name -> bool [N].
            precision: of the trunk's products, by PyTorch's automatic mixed precision
                (Micikevicius et al., "Mixed precision training", ICLR 2018). Parameters, heads and
                what the architecture adds to the loss are float32 in any case.

        Returns:
            Task name -> [N, outputs]; and, where `labelled` is given, what the sharing architecture
            adds to the weighted loss, [] or None.
        """
        if precision is None:
            features = self.trunk(inputs, tasks)
        else:
            with torch.autocast(next(iter(inputs.values())).device.type, precision):
                features = self.trunk(inputs, tasks)
            features = _to_float32(features)
        outputs = {name: self.heads[f"task-{name}"](features[name]) for name in tasks}
        return outputs, None if labelled is None else self.trunk.penalty(features, labelled)


def _to_float32(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert features; those that tasks have in common once, and their gradients add up so."""
    found = {id(values): values.float() for values in features.values()}
    return {task: found[id(values)] for task, values in features.items()}


def build_model(experiment: Experiment, shapes: InputShapes) -> MultiTaskModel:
    """Build the model of an experiment, initialised from its seed.

    Trunk and every head draw from streams of their own, so that adding a task changes no other
    head. The caller's global random state is left as it was.

    Args:
        experiment: trunk, tasks and seed.
        shapes: input name -> shape of one row, without the batch dimension.

    Raises:
        ConfigError: a ready model cannot be used.
    """
    settings, seed = experiment.trunk, experiment.seed
    ordered = {name: shapes[name] for name in experiment.inputs}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, "init", "trunk"))
        trunk: SharedTrunk = SHARINGS[settings.sharing].load()(experiment, ordered)
        prepare_trunk(trunk, experiment)
        heads = {}
        for name, task in experiment.tasks.items():
            torch.manual_seed(derive_key(seed, "init", "head", name))
            heads[name] = build_head(task, trunk.width, len(experiment.targets(name)))
    if experiment.training.recompute_activations:
        for module in trunk.modules():
            if isinstance(module, Encoder):
                module.recompute()
    if settings.is_ready:
        _refuse_batch_norm(trunk, experiment)
    return MultiTaskModel(trunk, heads)


def _refuse_batch_norm(trunk: nn.Module, experiment: Experiment) -> None:
    """Refuse a ready model with running statistics where these would be wrong, or no secret.

    Raises:
        ConfigError: it has some.
    """
    from common.backbones.backbone import has_running_statistics

    reasons = {
        "[privacy.example-level]": experiment.privacy.example_level is not None
        and "its statistics follow the rows without noise",
        "training.micro-batch": experiment.training.micro_batch is not None
        and "it normalises by the rows of a whole batch",
    }
    for setting, reason in reasons.items():
        if reason and has_running_statistics(trunk):
            raise ConfigError(
                f"trunk.model must have no batch norm under {setting}, got "
                f"'{experiment.trunk.model}': {reason}; use a model without, such as a ViT"
            )
