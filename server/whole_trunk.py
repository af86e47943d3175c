"""The trunk of a run that ended, as a file that another experiment can start from.

It is whole: what travelled, what was frozen, and adapters merged into the layers they adapt. Parts
that stayed with the clients are not in it.
"""

from collections.abc import Mapping

import torch

from common.agreement import Agreement, input_shapes
from common.experiment import Experiment
from common.model import build_model
from common.pretrained.adapters import merge_adapters
from common.pretrained.files import WHOLE_TRUNK
from common.pretrained.naming import is_adapter, is_frozen
from common.wire import FloatArray
from server.checkpoint import Progress, replace_arrays, told_where
from server.run_folder import RunFolder


def whole_trunk(
    experiment: Experiment, agreement: Agreement, trunk: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """Make the trunk that a run's clients computed with, as plain layers.

    Args:
        experiment: the run's.
        agreement: has the shapes of inputs.
        trunk: what travelled.

    Returns:
        Parameter name -> value; nothing where no part of the trunk travelled or was frozen.
    """
    travelled = {name: array for name, array in trunk.items() if name.startswith("trunk.")}
    if experiment.trunk.trains_everything:
        return travelled
    model = build_model(experiment, input_shapes(agreement))
    parameters = dict(model.named_parameters())
    frozen = {n for n in parameters if n.startswith("trunk.") and is_frozen(n, experiment.trunk)}
    with torch.no_grad():
        for name, array in travelled.items():
            parameters[name].copy_(torch.tensor(array))
    known = {name for name in {*travelled, *frozen} if not is_adapter(name)}
    if not _knows_adapters(parameters, travelled, frozen):
        return {}
    merge_adapters(model)
    merged = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return {name: merged[name] for name in merged if name in known}


def _knows_adapters(
    parameters: Mapping[str, object], travelled: Mapping[str, object], frozen: set[str]
) -> bool:
    """Whether no client keeps adapters of its own, which a merged layer would lack."""
    adapters = [name for name in parameters if is_adapter(name)]
    return all(name in travelled or name in frozen for name in adapters)


def keep_whole_trunk(
    folder: RunFolder, settings: Experiment, progress: Progress, trunk: Mapping[str, FloatArray]
) -> None:
    """Write the trunk that a run ends with, where its clients share one.

    Raises:
        CheckpointError: it cannot be written.
    """
    arrays = whole_trunk(settings, Agreement.from_json(progress.agreement), trunk)
    if arrays:
        path = folder.path / WHOLE_TRUNK
        with told_where(path):
            replace_arrays(path, arrays, durable=folder.durable)
