"""Models of timm (PyTorch Image Models): by name from the seed, or from a folder with weights."""

from typing import Any

import torch
from torch import Tensor

from common.backbones.backbone import Backbone
from common.errors import ConfigError
from common.model_folder import WEIGHTS, open_folder, require_file
from common.ready_models import reads_folder
from common.sections.model import Trunk


class TimmModel(Backbone):
    """A model of images as ``timm.create_model`` makes it, without its classifier.

    From a folder, as timm's ``save_for_hf`` writes it, come its weights, and the mean and deviation
    of pixels that they were trained with.

    Args:
        settings: a name, or a folder.
        shape: of one row of the input, (channels, height, width).

    Raises:
        ConfigError: timm, the name or the folder cannot be used.
    """

    def __init__(self, settings: Trunk, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.model = _create(settings, shape)
        about: Any = self.model.pretrained_cfg if settings.pretrained else {}
        self.normalises = bool(about.get("mean")) and len(about["mean"]) == shape[0]
        if self.normalises:
            for name, key in (("mean", "mean"), ("deviation", "std")):
                numbers = torch.tensor(about[key], dtype=torch.float32).view(1, -1, 1, 1)
                self.register_buffer(name, numbers, persistent=False)
        self.complete(settings, shape, torch.full((1, *shape), 0.5))

    def compute(self, values: Tensor) -> Tensor:
        """Map images [N, C, height, width] to features [N, width]."""
        if self.normalises:
            values = (values - self.mean) / self.deviation
        features: Tensor = self.model(values)
        return features

    def start_recomputing(self) -> bool:
        """As `Backbone`."""
        try:
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):  # what its models without it raise
            return False
        return True


def _create(settings: Trunk, shape: tuple[int, ...]) -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision for another PyTorch: RuntimeError
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            "trunk.architecture 'timm' needs the libraries timm and torchvision, which cannot be "
            f"imported ({reason}): pip install 'fedmtl[timm]', with a torchvision made for this "
            "torch"
        ) from error
    name = settings.model
    if settings.pretrained or reads_folder(settings):  # never a place on the hub
        folder = open_folder(settings)
        if settings.pretrained:
            require_file(folder, WEIGHTS, "timm would read others, pickles among them")
        name = f"local-dir:{folder}"
    chosen = {"pretrained": settings.pretrained, "num_classes": 0, "in_chans": shape[0]}
    try:
        try:
            return timm.create_model(name, img_size=shape[1:], **chosen)
        except TypeError:  # a convolutional model, which takes any size
            return timm.create_model(name, **chosen)
    except Exception as error:  # whatever timm raises
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"trunk.model: timm cannot make '{settings.model}': {type(error).__name__}: {reason}"
        ) from error
