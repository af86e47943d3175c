"""Given weights, put over the values that a trunk's architecture began with."""

from collections.abc import Iterable, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.cells import list_names
from common.errors import ConfigError, ShapeError
from common.experiment import Experiment
from common.pretrained.files import KEY, digest_of, find_file
from common.pretrained.naming import split_encoder
from common.sections.model import Trunk
from common.sharing import STAYS, task_of

Tensors = Mapping[str, Tensor]


def is_there(settings: Trunk) -> bool:
    """Whether this machine has the file of ``trunk.weights``, with the content it began with."""
    try:
        return digest_of(settings.weights or "") == settings.weights_digest
    except ValueError:
        return False


def read_weights(settings: Trunk) -> dict[str, Tensor]:
    """Read the file of ``trunk.weights``.

    Raises:
        ConfigError: it is not there, cannot be read, or is not what the experiment began with.
    """
    weights = settings.weights or ""
    try:
        path, digest = find_file(weights), digest_of(weights)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if settings.weights_digest != digest:
        raise ConfigError(
            f"{KEY}: {path} has another content than the experiment began with (digest {digest}, "
            f"was {settings.weights_digest}); restore it, or start a new run with it"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{KEY}: {path} must be a safetensors file, and cannot be read: {reason}; write it "
            "with safetensors.torch.save_file"
        ) from error


def fill_trunk(trunk: nn.Module, given: Tensors, experiment: Experiment) -> None:
    """Put given weights over a trunk's values.

    Names that are the trunk's own are taken as they are; what the file lacks stays as it began, if
    it belongs to a task, or to a norm whose parameters stay with every client. Else the file must
    hold one encoder, under any prefix, and every encoder of the trunk starts from it; of several,
    an encoder takes that of its own task.

    Args:
        trunk: the sharing architecture, before adapters.
        given: name -> values.
        experiment: its settings.

    Raises:
        ConfigError: the names do not fit.
        ShapeError: a shape does not fit.
    """
    parameters = dict(trunk.named_parameters(prefix="trunk"))
    wanted = {name for name in parameters if task_of(name) is None} or set(parameters)
    known = wanted & given.keys()
    if known:
        stays = STAYS[experiment.trunk.norm_parameters]
        lacks = wanted - known if any(task_of(name) is None for name in wanted) else ()
        if missing := sorted(name for name in lacks if not stays(name)):
            raise ConfigError(
                f"{KEY}: the file lacks {len(missing)} parameters that all tasks share: "
                f"{list_names(missing)}; it must be of a trunk of the same layers"
            )
        _copy(parameters, {name: name for name in parameters if name in given}, given)
        return
    tasks = [*experiment.tasks]
    only_task = tasks[0] if len(tasks) == 1 else None
    _copy(parameters, _by_encoder(parameters, given, only_task), given)


def _by_encoder(names: Iterable[str], given: Tensors, only_task: str | None) -> dict[str, str]:
    """Find for each encoder's parameters those of the file; parameter -> name there."""
    encoders: dict[str, list[str]] = {}
    for name in names:
        if (split := split_encoder(name)) is not None:
            encoders.setdefault(split[0], []).append(split[1])
    found: dict[str, str] = {}
    for encoder, inner in encoders.items():
        task = task_of(f"{encoder}.") or only_task
        prefix = _choose_prefix(_prefixes(inner, given), task, encoder, inner, given)
        found |= {f"{encoder}.{name}": f"{prefix}{name}" for name in inner}
    return found


def _prefixes(inner: list[str], given: Tensors) -> list[str]:
    """List what stands before an encoder's names in the file, wherever all of them are there."""
    first = inner[0]
    ends = [name[: -len(first)] for name in given if name == first or name.endswith(f".{first}")]
    return [prefix for prefix in ends if all(f"{prefix}{name}" in given for name in inner)]


def _choose_prefix(
    prefixes: list[str], task: str | None, encoder: str, inner: list[str], given: Tensors
) -> str:
    own = [prefix for prefix in prefixes if task is not None and task_of(prefix) == task]
    chosen = own or [prefix for prefix in prefixes if task_of(prefix) is None]
    if len(chosen) == 1:
        return chosen[0]
    if prefixes:
        raise ConfigError(
            f"{KEY}: the file must hold one encoder for {encoder}, got {len(prefixes)}: "
            f"{list_names(sorted(prefixes))}; write the one that is meant into a file of its own"
        )
    raise ConfigError(
        f"{KEY}: the file holds no encoder with the parameters of {encoder}, {list_names(inner)}, "
        f"under any prefix; it has {list_names(sorted(given))}"
    )


def _copy(parameters: Mapping[str, Tensor], names: Mapping[str, str], given: Tensors) -> None:
    for ours, theirs in names.items():
        parameter, values = parameters[ours], given[theirs]
        if parameter.shape != values.shape:
            raise ShapeError(
                f"{KEY}: {ours} must have shape {list(parameter.shape)}, got "
                f"{list(values.shape)} from {theirs}; give the trunk the sizes of the weights, or "
                "weights of these sizes"
            )
        if not values.is_floating_point() or not bool(values.isfinite().all()):
            raise ConfigError(
                f"{KEY}: {theirs} must be finite floating-point numbers, got {values.dtype}; "
                "write the weights anew"
            )
        with torch.no_grad():
            parameter.copy_(values)
