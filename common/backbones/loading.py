"""A model of transformers out of a folder, whose files are read here and not by the library.

The library would follow what a folder says: an adapter beside the model, other names of weights,
shards outside of it, configurations for other versions, kernels and models of the hub. None of
that is in the folder's digest (`common.model_folder`). So it is given a configuration and tensors.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from common.cells import list_names
from common.errors import ConfigError
from common.model_folder import CONFIG, read_json, weight_files
from common.sections.model import Trunk
from common.text import NEEDS

# What a configuration may say of code, files and places; a model's layers do not depend on it.
ELSEWHERE = (
    "auto_map",
    "configuration_files",
    "transformers_weights",
    "name_or_path",
    "_name_or_path",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "fusion_config",
    "distributed_config",
)
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTS = (torch.int64, torch.int32, torch.uint8, torch.bool)  # of buffers: positions, masks


def load_model(folder: Path, settings: Trunk) -> Any:
    """Build the model of a folder, with its weights or from PyTorch's global random state.

    Raises:
        ConfigError: the library is missing, or the folder cannot be used.
    """
    try:
        from transformers import MODEL_MAPPING, AutoModel
    except ImportError as error:
        raise ConfigError(
            "trunk.architecture 'transformer' needs the library transformers, which cannot be "
            f"imported ({(str(error).splitlines() or [''])[0]}): {NEEDS}"
        ) from error
    kind = {"attn_implementation": "eager", "dtype": torch.float32}
    found: Mapping[str, Any] = {}
    try:
        with _quiet():
            config = _read_config(folder)
            if settings.pretrained:
                model, found = _class_of(config, MODEL_MAPPING).from_pretrained(
                    None,
                    config=config,
                    state_dict=_read_weights(folder),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    local_files_only=True,
                    **kind,
                )
            else:
                model = AutoModel.from_config(config, trust_remote_code=False, **kind)
    except ConfigError:
        raise
    except Exception as error:  # whatever the library, or what it reads by, raises
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"trunk.model: transformers cannot load '{folder}': {type(error).__name__}: {reason}; "
            "save the model anew with save_pretrained, or use another"
        ) from error
    if found:
        _require_whole(model, found, folder)
    return model


def _read_config(folder: Path) -> Any:
    """Make the configuration of ``config.json`` alone, without what leads elsewhere."""
    from transformers import CONFIG_MAPPING

    content = _without_elsewhere(read_json(folder, CONFIG))
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"trunk.model: transformers cannot load '{folder}': model_type in {CONFIG} must be one "
            f"that the library has without code of the folder, got {kind!r}; use another model"
        )
    if content.get("quantization_config") is not None:
        raise ConfigError(
            f"trunk.model: '{folder}' must hold weights of full width, got a quantised model, "
            "which cannot be trained; save it without quantization_config"
        )
    return CONFIG_MAPPING[kind].from_dict(content)


def _without_elsewhere(content: Mapping[str, Any]) -> dict[str, Any]:
    """Leave `ELSEWHERE` out, at every depth.

    Raises:
        ConfigError: a part of the model is timm's, which finds models by itself.
    """
    if str(content.get("model_type", "")).startswith("timm") or content.get("use_timm_backbone"):
        raise ConfigError(
            "trunk.model: a transformer must not be built on a model of timm, which may come from "
            f"elsewhere than the folder, got model_type '{content.get('model_type')}'; set "
            "trunk.architecture to 'timm', or use another model"
        )
    return {
        name: _without_elsewhere(value) if isinstance(value, dict) else value
        for name, value in content.items()
        if name not in ELSEWHERE
    }


def _class_of(config: Any, known: Any) -> Any:
    """Find the class of models that a configuration is of; of several, the one it names."""
    found = known[type(config)]
    if not isinstance(found, (tuple, list)):
        return found
    named = [one for one in found if one.__name__ in (config.architectures or ())]
    return (named or list(found))[0]


def _read_weights(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= load_file(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMBERS + COUNTS:
            raise ConfigError(
                f"trunk.model: {name} in '{folder}' must be of 16, 32 or 64 bits, got "
                f"{tensor.dtype}, as quantised weights are; save the model in float32"
            )
    return tensors


def _require_whole(model: Any, found: Mapping[str, Any], folder: Path) -> None:
    """Check that every parameter came out of the weights, as a number."""
    missing = sorted(n for n in found["missing_keys"] if not n.startswith("pooler."))
    if missing:
        raise ConfigError(
            f"trunk.model: the weights in '{folder}' lack {len(missing)} of the model: "
            f"{list_names(missing)}; use a whole model, or set trunk.pretrained to false"
        )
    if found["mismatched_keys"]:
        name = sorted(str(key[0]) for key in found["mismatched_keys"])[0]
        raise ConfigError(
            f"trunk.model: {name} in '{folder}' has another shape than {CONFIG} gives it, "
            f"{list(model.get_parameter(name).shape)}; put the two files of one model there"
        )
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ConfigError(
                f"trunk.model: {name} in '{folder}' must be finite, got NaN or infinite numbers; "
                "use other weights"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from talking and drawing bars; what matters is checked."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
