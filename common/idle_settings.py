"""Settings that are given but change nothing: the user means something that will not happen.

"Given" is "different from the default": a resolved experiment is written with all its defaults and
must load again.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import ValidationError

from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS
from common.errors import ConfigError
from common.schedules.rates import round_schedule
from common.sections.rows import WITH_CLASSES
from common.strategies import STRATEGIES
from common.weighting.table import WEIGHTINGS

if TYPE_CHECKING:
    from common.experiment import Experiment
    from common.sections.federation import Federation
    from common.sections.model import Loss
    from common.sections.rows import Data, Partition


def idle_settings(experiment: "Experiment") -> list[str]:
    """Name every setting without an effect, a line each: what it needs, what was, a way out."""
    return [
        *_idle_weights(experiment),
        *_idle_loss(experiment),
        *_idle_data(experiment.data),
        *memory_problems(experiment.data, experiment.partition),
        *_idle_data_seed(experiment.data, experiment.partition),
        *_idle_inputs(experiment),
        *_idle_trunk(experiment),
        *_idle_participation(experiment.federation),
        *_idle_snapshots(experiment.federation),
        *_idle_client_weights(experiment.federation),
        *_idle_balance(experiment),
        *_idle_rates(experiment),
        *_idle_schedules(experiment),
        *_idle_task_parts(experiment),
        *_idle_sharing(experiment),
        *(_idle_partition(experiment.partition) if experiment.partition else ()),
    ]


def _idle_weights(experiment: "Experiment") -> Iterator[str]:
    if experiment.loss.weighting == "manual":
        if not any(task.weight for task in experiment.tasks.values()):
            yield "tasks: every weight is 0, nothing would be learned; give one a weight"
        return
    for name, task in experiment.tasks.items():
        if task.is_given("weight"):
            yield (
                f"tasks.{name}.weight must be 1 under loss.weighting "
                f"'{experiment.loss.weighting}', which does not use it, got {task.weight:g}; set "
                'loss.weighting = "manual", or remove it'
            )


def _idle_loss(experiment: "Experiment") -> Iterator[str]:
    loss = experiment.loss
    if loss.scaling != "none" and len(experiment.tasks) < 2:
        yield (
            f"loss.scaling must be 'none' for one task, got '{loss.scaling}': it has nothing to be "
            "on one scale with; remove it"
        )
    trunk = experiment.trunk
    if loss.record == "gradients" and not SHARINGS[trunk.sharing].has_common_parts:
        yield (
            "loss.record must be 'weights' without parameters that all tasks share, got "
            f"'gradients' with trunk.sharing '{trunk.sharing}'; remove it"
        )
    elif loss.record == "gradients" and not trunk.has_layers:
        yield (
            "loss.record must be 'weights' without parameters that all tasks share, got "
            "'gradients' with trunk.widths = []; give the trunk a layer"
        )
    if loss.is_given("scope") and not loss_memory(loss):
        yield (
            f"loss.scope must be left out, got '{loss.scope}': loss.weighting '{loss.weighting}' "
            f"with loss.scaling '{loss.scaling}' remembers nothing from round to round that a "
            "client or the server could own"
        )


def loss_memory(loss: "Loss") -> bool:
    """Tell whether weighting or scaling remember anything from round to round."""
    from common.weighting.scaling import SCALINGS

    try:
        state = WEIGHTINGS[loss.weighting].load().STATE
    except ConfigError:
        return True  # a library is missing; `method_problems` tells
    return bool(state or SCALINGS[loss.scaling].observe)


def _idle_data(data: "Data") -> Iterator[str]:
    if data.client_column and data.source != "table":
        yield (
            "data.client-column is for data.source 'table', got "
            f"'{data.client_column}' with source '{data.source}'; remove it"
        )
    if data.split_column and data.split == "random":
        yield (
            "data.split-column is for data.split 'ordered' or 'column', got "
            f"'{data.split_column}' with split 'random'; set data.split, or remove it"
        )


def memory_problems(data: "Data", partition: "Partition | None") -> Iterator[str]:
    """Refuse rows on disk where they come from no file of a client's own, read as it stands."""
    if data.memory == "ram":
        return
    if data.source not in ("table", "folder"):
        yield (
            "data.memory 'disk' is for data.source 'table' or 'folder', got source "
            f"'{data.source}', which is read whole; set memory to 'ram'"
        )
    if partition is not None:
        yield (
            "data.memory must be 'ram' with a [partition], which deals out the rows of all clients "
            "in memory, got 'disk'; set it to 'ram', or write a file for each client and take "
            "data.source 'folder'"
        )


def _idle_data_seed(data: "Data", partition: "Partition | None") -> Iterator[str]:
    """Refuse `data.seed` where neither clients nor tasks nor splits are drawn by a seed."""
    dealt = partition is not None and (
        partition.kind != "natural" or partition.task_skew == "random"
    )
    drawn = data.split != "ordered" and bool(data.validation or data.test)
    if data.seed is not None and not dealt and not drawn:
        yield (
            f"data.seed must be left out, got {data.seed}: data.split '{data.split}' with "
            f"data.validation = {data.validation:g} and data.test = {data.test:g}, and no "
            "[partition] that draws, are the same for every seed; remove it"
        )


def _idle_inputs(experiment: "Experiment") -> Iterator[str]:
    for name, settings in experiment.inputs.items():
        if settings.kind in ("categorical", "text") and settings.is_given("scale"):
            yield (
                f"inputs.{name}.scale is for numbers and images, got {settings.scale:g} for an "
                f"input of kind '{settings.kind}'; remove it"
            )
        if settings.kind != "text" and settings.is_given("max_length"):
            yield (
                f"inputs.{name}.max-length is for inputs of kind 'text', got "
                f"{settings.max_length} for kind '{settings.kind}'; remove it"
            )


def _idle_trunk(experiment: "Experiment") -> Iterator[str]:
    trunk = experiment.trunk
    if trunk.architecture != "cnn" and trunk.is_given("channels"):
        yield (
            f"trunk.channels is for trunk.architecture 'cnn', got {list(trunk.channels)} with "
            f"'{trunk.architecture}'; set the architecture, or remove channels"
        )

    convolves = trunk.architecture == "cnn" and trunk.channels
    if trunk.norm != "none" and not trunk.widths and not convolves:
        yield (
            f"trunk.norm must be 'none' in a trunk without layers, got '{trunk.norm}'; give it "
            "widths, or remove it"
        )
    if trunk.dropout and not trunk.widths:
        yield (
            "trunk.dropout needs fully connected layers, which it follows, got "
            f"{trunk.dropout:g} without any; give the trunk widths, or remove it"
        )
    if trunk.norm != "group" and trunk.is_given("norm_groups"):
        yield (
            f"trunk.norm-groups is for trunk.norm 'group', got {trunk.norm_groups} with "
            f"'{trunk.norm}'; set the norm, or remove it"
        )
    users = {"local": ("layer", "batch", "group"), "local-statistics": ("batch",)}
    wanted = users.get(trunk.norm_parameters)
    if wanted and trunk.norm not in wanted:
        yield (
            f"trunk.norm-parameters '{trunk.norm_parameters}' is for trunk.norm "
            f"{' or '.join(map(repr, wanted))}, got norm '{trunk.norm}'; set the norm, or remove it"
        )


def _idle_participation(federation: "Federation") -> Iterator[str]:
    everybody = federation.clients_per_round == "all"
    if everybody and federation.sampling != "uniform":
        yield (
            "federation.sampling is for a federation.clients-per-round that is a number, got "
            f"'{federation.sampling}' with 'all', which draws nobody; set a number, or remove it"
        )
    if everybody and federation.over_selection:
        yield (
            "federation.over-selection is for a federation.clients-per-round that is a number, got "
            f"{federation.over_selection:g} with 'all'; set a number, or remove it"
        )
    if federation.too_few == "use" and federation.least_replies:
        yield (
            "federation.least-replies must be 0 under federation.too-few 'use', which uses what is "
            f"there, got {federation.least_replies:g}; set too-few to 'skip' or 'repeat', or "
            "remove it"
        )
    if federation.too_few != "use" and not federation.least_replies:
        yield (
            "federation.too-few must be 'use' where federation.least-replies is 0 and no number of "
            f"replies is too few, got '{federation.too_few}'; set least-replies, or remove it"
        )
    if federation.too_few != "repeat" and federation.is_given("most_repeats"):
        yield (
            "federation.most-repeats is for federation.too-few 'repeat', got "
            f"{federation.most_repeats} with '{federation.too_few}'; set too-few, or remove it"
        )


def _idle_snapshots(federation: "Federation") -> Iterator[str]:
    every, rounds = federation.snapshot_every, federation.rounds
    if not every and federation.is_given("snapshots"):
        yield (
            "federation.snapshots is for a federation.snapshot-every above 0, got "
            f"{federation.snapshots} with 0; set snapshot-every, or remove it"
        )
    if every >= rounds:
        yield (
            f"federation.snapshot-every must be below federation.rounds = {rounds}, whose last "
            f"trunk is kept anyway, got {every}; lower it, or remove it"
        )
    if every and ALGORITHMS[federation.algorithm].fits_last:
        yield (
            f"federation.snapshot-every must be 0 under federation.algorithm "
            f"'{federation.algorithm}', which fits heads after the last round only, got {every}; "
            "remove it"
        )


def _idle_client_weights(federation: "Federation") -> Iterator[str]:
    if not STRATEGIES[federation.strategy].weighs and federation.is_given("weight_by"):
        yield (
            f"federation.weight-by must be left out under federation.strategy "
            f"'{federation.strategy}', which does not weigh clients by it, got "
            f"'{federation.weight_by}'; remove it"
        )


def _idle_balance(experiment: "Experiment") -> Iterator[str]:
    kinds = {task.kind for task in experiment.tasks.values()}
    if experiment.training.balance == "classes" and kinds.isdisjoint(WITH_CLASSES):
        yield (
            "training.balance 'classes' needs a multiclass or binary task, whose rows have one "
            f"class each, got tasks of kind {', '.join(sorted(kinds))}; remove it"
        )


def _idle_rates(experiment: "Experiment") -> Iterator[str]:
    trunk = experiment.trunk
    has_trunk = trunk.has_layers and SHARINGS[trunk.sharing].has_common_parts
    parts = (*((trunk,) if has_trunk else ()), *experiment.tasks.values())
    for name in ("weight_decay", "l1"):
        if not has_trunk and getattr(trunk, name) is not None:
            yield (
                f"trunk.{name.replace('_', '-')} is for what all tasks share, got "
                f"{getattr(trunk, name):g} with trunk.sharing '{trunk.sharing}' and trunk.widths = "
                f"{list(trunk.widths)}, where there is no such part; set it for training or tasks"
            )
    for name in ("weight_decay", "l1"):
        key = name.replace("_", "-")
        is_overruled = all(getattr(part, name) is not None for part in parts)
        if is_overruled and experiment.training.is_given(name):
            yield (
                f"training.{key} must be 0 where trunk and every task have their own, got "
                f"{getattr(experiment.training, name):g}; remove it, or one of theirs"
            )


def _idle_schedules(experiment: "Experiment") -> Iterator[str]:
    """Name a schedule of which this run sees no change; wrong options `method_problems` tells."""
    training, rounds = experiment.training, experiment.federation.rounds
    with suppress(ConfigError, ValidationError):
        if training.schedule != "constant":
            schedule = round_schedule(training)
            if all(schedule.factor(place, rounds) == 1 for place in range(rounds)):
                yield (
                    "training.schedule must be 'constant' where lr is the same in all rounds, got "
                    f"'{training.schedule}', which changes nothing in federation.rounds = "
                    f"{rounds}; remove it, or change its options or the rounds"
                )
            elif (first := getattr(schedule.options, "warm_up", 0)) >= rounds:
                yield (
                    "training.schedule-options.warm-up must be below federation.rounds, so that "
                    f"the rate of schedule '{training.schedule}' ever falls, got {first} with "
                    f"{rounds} rounds; lower it, or take schedule 'warm-up'"
                )


def _idle_task_parts(experiment: "Experiment") -> Iterator[str]:
    given, sharing = experiment.trunk.task_parts, experiment.trunk.sharing
    places = SHARINGS[sharing].task_parts
    if given is None:
        return
    if not places:
        users = ", ".join(f"'{name}'" for name, other in SHARINGS.items() if other.task_parts)
        yield (
            f"trunk.task-parts is for trunk.sharing {users}, got '{given}' with '{sharing}', whose "
            "trunk has no parts of single tasks; set trunk.sharing, or remove it"
        )
    elif given not in places:
        yield (
            f"trunk.task-parts must be 'shared' under trunk.sharing '{sharing}', whose trunk "
            f"consists of the tasks' parts: nothing else would be shared, got '{given}'; remove it"
        )
    elif (shares := ALGORITHMS[experiment.federation.algorithm].shares) != "trunk":
        yield (
            "trunk.task-parts is for a federation.algorithm that shares the trunk, got "
            f"'{given}' with '{experiment.federation.algorithm}', which shares "
            f"{'everything' if shares == 'all' else 'nothing'}; remove it"
        )


def _idle_sharing(experiment: "Experiment") -> Iterator[str]:
    """Name what says how something travels that an algorithm shares, or does not, anyway."""
    federation, trunk = experiment.federation, experiment.trunk
    shares = ALGORITHMS[federation.algorithm].shares
    if shares != "trunk" and federation.is_given("heads"):
        yield (
            "federation.heads is for an algorithm that shares the trunk, got 'per-task' with "
            f"federation.algorithm '{federation.algorithm}', which shares "
            f"{'everything' if shares == 'all' else 'nothing'}; remove it"
        )
    has_common = trunk.has_layers and SHARINGS[trunk.sharing].has_common_parts
    is_measured = federation.affinity_every and federation.is_given("affinity_every")
    if is_measured and (shares == "nothing" or not has_common):
        yield (
            "federation.affinity-every is for updates of a part of the trunk that all tasks share, "
            f"of which there is none here, got {federation.affinity_every}; remove it"
        )
    if shares != "nothing":
        return
    if trunk.is_given("norm_parameters"):
        yield (
            "trunk.norm-parameters must be 'shared' under federation.algorithm "
            f"'{federation.algorithm}', which shares nothing, got '{trunk.norm_parameters}'; "
            "remove it"
        )
    for name in ("strategy", "weight_by"):
        if federation.is_given(name):
            yield (
                f"federation.{name.replace('_', '-')} must be left out under federation.algorithm "
                f"'{federation.algorithm}', which sends nothing to combine, got "
                f"'{getattr(federation, name)}'; remove it"
            )


def _idle_partition(partition: "Partition") -> Iterator[str]:
    kinds = {  # setting -> the kinds that use it
        "by": ("dirichlet", "pathological", "natural"),
        "alpha": ("dirichlet",),
        "classes_per_client": ("pathological",),
    }
    for name, users in kinds.items():
        if partition.kind not in users and partition.is_given(name):
            yield (
                f"partition.{name.replace('_', '-')} is for partition.kind "
                f"{' or '.join(map(repr, users))}, got {getattr(partition, name)!r} with kind "
                f"'{partition.kind}'; set the kind, or remove it"
            )
    if partition.task_skew == "none" and partition.is_given("tasks_per_client"):
        yield (
            "partition.tasks-per-client is for partition.task-skew 'rotate' or 'random', got "
            f"{partition.tasks_per_client} with 'none'; set task-skew, or remove it"
        )
