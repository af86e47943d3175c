"""What is made of a trunk's first values: given weights, adapters, and what is frozen."""

import hashlib
from collections.abc import Mapping

from torch import Tensor, nn

from common.algorithms import ALGORITHMS
from common.cells import list_names
from common.errors import ConfigError, DataError
from common.experiment import Experiment
from common.pretrained.adapters import KEY as ADAPTERS
from common.pretrained.adapters import add_adapters
from common.pretrained.naming import (
    idle_patterns,
    is_frozen,
    name_some,
    plain_name,
    split_encoder,
)
from common.pretrained.weights import fill_trunk, is_there, read_weights
from common.sharing import shared_names, task_of
from common.strategies import STRATEGIES
from common.weighting.table import WEIGHTINGS


def prepare_trunk(trunk: nn.Module, experiment: Experiment) -> None:
    """Give a trunk its weights and adapters, and freeze what does not train, in place.

    Raises:
        FedMTLError: the weights, the adapters or the patterns do not fit the trunk.
    """
    settings = experiment.trunk
    if settings.weights is not None and (needs_file(trunk, experiment) or is_there(settings)):
        fill_trunk(trunk, read_weights(settings), experiment)
    if settings.trains_everything:
        return
    names = [name for name, _ in trunk.named_parameters(prefix="trunk")]
    _require_meant(names, experiment)
    if settings.adapters is not None:
        trains = {name: p.requires_grad for name, p in trunk.named_parameters(prefix="trunk")}
        adapted = add_adapters(trunk, settings.adapters, experiment.seed)
        _require_frozen(adapted, experiment)
        for name, parameter in trunk.named_parameters(prefix="trunk"):
            parameter.requires_grad_(trains.get(plain_name(name), True))
    for name, parameter in trunk.named_parameters(prefix="trunk"):
        if is_frozen(plain_name(name), settings):
            parameter.requires_grad_(False)
    for name, module in trunk.named_modules(prefix="trunk"):
        if hasattr(module, "norm_mean"):
            module.is_frozen = is_frozen(f"{plain_name(name)}.norm_mean", settings)
    _require_learning(trunk, experiment)


def require_weights(experiment: Experiment) -> None:
    """Check that the weights to start from can be read, whoever else needs them.

    Raises:
        ConfigError: they cannot.
    """
    if experiment.trunk.weights is not None:
        read_weights(experiment.trunk)


def needs_file(trunk: nn.Module, experiment: Experiment) -> bool:
    """Whether a participant needs the weights itself: some value of the trunk never travels."""
    names = [name for name, _ in trunk.named_parameters(prefix="trunk")]
    return len(shared_names(names, experiment)) < len(names)


def fixed_digest(model: nn.Module, experiment: Experiment) -> str:
    """Hash those first values of a trunk that never travel, where all must have the same.

    Args:
        model: as `common.model.build_model` made it.
        experiment: its settings.

    Returns:
        Empty where nothing was given and nothing is frozen: then all of it follows from the seed.
    """
    settings = experiment.trunk
    if settings.trains_everything and settings.weights is None:
        return ""
    values: Mapping[str, Tensor] = dict(model.named_parameters())
    travels = set(shared_names(values, experiment))
    fixed = [n for n in sorted(values) if n.startswith("trunk.") and n not in travels]
    if not fixed:
        return ""
    digest = hashlib.sha256()
    for name in fixed:
        digest.update(name.encode())
        digest.update(values[name].detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:32]


def require_same(model: nn.Module, experiment: Experiment, agreed: str) -> None:
    """Check that a participant's fixed values are the server's; see `fixed_digest`.

    Raises:
        DataError: they are others.
    """
    found = fixed_digest(model, experiment)
    if agreed and found != agreed:
        raise DataError(
            "the trunk's values that do not travel must be those of the server (digest "
            f"{agreed}), got {found}; use the server's file of trunk.weights, which node config "
            "'weights' can name, and the server's versions of fedmtl and PyTorch"
        )


def _require_meant(names: list[str], experiment: Experiment) -> None:
    inner = [split[1] for name in names if (split := split_encoder(name))]
    if idle := idle_patterns(inner, experiment.trunk.trained_patterns):
        raise ConfigError(
            f"trunk.trains: '{idle[0]}' means no parameter of the encoders; there are "
            f"{name_some(inner)}"
        )


def _require_frozen(adapted: list[str], experiment: Experiment) -> None:
    """Refuse to train a weight and its adapter."""
    both = [name for name in adapted if not is_frozen(name, experiment.trunk)]
    if both:
        raise ConfigError(
            f"trunk.trains must not mean weights that have an adapter, got {list_names(both)}; "
            f"leave them out of it, or their layers out of {ADAPTERS}.modules"
        )


def _require_learning(trunk: nn.Module, experiment: Experiment) -> None:
    """Refuse settings that are of trained parts, where none trains.

    Raises:
        ConfigError: a setting would change nothing.
    """
    settings = experiment.trunk
    trained = {n for n, p in trunk.named_parameters(prefix="trunk") if p.requires_grad}
    common = any(task_of(name) is None for name in trained)
    for setting, is_idle in _needs_common(experiment).items():
        if is_idle and not common:
            raise ConfigError(
                f"{setting} needs trained parameters that all tasks share, and trunk.trains leaves "
                f"none under trunk.sharing '{settings.sharing}'; let some train, or change it"
            )
    if settings.norm_parameters != "shared" and not any(".norm_" in name for name in trained):
        raise ConfigError(
            f"trunk.norm-parameters '{settings.norm_parameters}' is for norms that train, and "
            "trunk.trains leaves none; let it mean 'norm_*' too, or remove norm-parameters"
        )


def _needs_common(experiment: Experiment) -> dict[str, bool]:
    """Name what works on the common trunk, and whether the experiment has it."""
    trunk, loss, federation = experiment.trunk, experiment.loss, experiment.federation
    algorithm, strategy = ALGORITHMS[federation.algorithm], STRATEGIES[federation.strategy]
    return {
        f"loss.weighting '{loss.weighting}'": WEIGHTINGS[loss.weighting].load().needs_trunk,
        f"loss.record '{loss.record}'": loss.record == "gradients",
        f"federation.algorithm '{federation.algorithm}'": algorithm.needs_common,
        f"federation.strategy '{federation.strategy}'": strategy.needs_common,
        "trunk.weight-decay": trunk.weight_decay is not None,
        "trunk.l1": trunk.l1 is not None,
    }
