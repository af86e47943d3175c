"""Models of Hugging Face's transformers, of text or of images, from a local folder.

Only weights in safetensors are read, no code of the folder is run, and nothing is downloaded.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.backbones.backbone import Backbone
from common.backbones.loading import load_model
from common.errors import ConfigError
from common.model_folder import PREPROCESSOR, open_folder, read_json, tokenizer_file
from common.sections.model import Trunk
from common.text import PADDING, read_tokenizer

KINDS = {"pixel_values": "image", "input_ids": "text"}  # what a model reads -> kind of an input
Hidden = tuple[Tensor, Tensor | None]  # what is pooled: hidden states [N, T, W] or map, and mask


class Transformer(Backbone):
    """A model as ``AutoModel`` loads it; its last hidden states, pooled to [N, width].

    Text: [N, 1, L] numbers of tokens (`common.text`). A batch is cut after its longest row.

    Images: [N, C, height, width]. Weights that were trained elsewhere bring the mean and deviation
    of ``preprocessor_config.json``; one channel stands for all of a model that wants colour.
    Position embeddings are interpolated to another size of image where the model can.

    Attention is computed plainly, not fused: so gradients of gradients exist.

    Args:
        settings: folder, pooling, and where weights come from.
        shape: of one row of the input.

    Raises:
        ConfigError: the folder cannot be used, or its model does not fit.
    """

    def __init__(self, settings: Trunk, shape: tuple[int, ...]) -> None:
        super().__init__()
        folder = open_folder(settings)
        self.reads_text = len(shape) == 2
        self.model = load_model(folder, settings)
        self._check_kind(settings)
        _drop_pooler(self.model)
        self.pooling = settings.pooling or self._usual_pooling()
        self._check_pooling(settings)
        self.options: dict[str, Any] = {}
        self.mean: Tensor
        self.deviation: Tensor
        self.normalises = False
        if self.reads_text:
            row = self._prepare_text(settings)
        else:
            row = self._prepare_images(folder, settings, shape)
        self.complete(settings, shape, row.expand(1, *shape))

    def compute(self, values: Tensor) -> Tensor:
        """Map texts [N, 1, L] or images [N, C, height, width] to features [N, width]."""
        hidden, mask = self._read_text(values) if self.reads_text else self._read_images(values)
        if hidden.ndim == 4:  # a map of features, [N, W, height, width]
            return hidden.mean((2, 3))
        if self.pooling == "cls":
            return hidden[:, 0]
        if mask is None:
            return hidden.mean(1)
        weights = mask.unsqueeze(2).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)

    def start_recomputing(self) -> bool:
        """As `Backbone`."""
        if self.model.supports_gradient_checkpointing:
            # By its name from 5.24 on, or that of earlier versions.
            old = getattr(self.model, "gradient_checkpointing_enable", None)
            start: Any = getattr(self.model, "activation_checkpointing_enable", old)
            start({"use_reentrant": False})
        return bool(self.model.supports_gradient_checkpointing)

    def _read_text(self, values: Tensor) -> Hidden:
        numbers = values.flatten(1)
        mask = numbers > PADDING
        # A text without any token has a mean, too: of what stands for its padding.
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], 1)
        if not torch.compiler.is_compiling():  # an exported program has no such lengths
            longest = int(mask.sum(1).max())
            numbers, mask = numbers[:, :longest], mask[:, :longest]
        padding = self.model.config.get_text_config().pad_token_id or 0
        ids = torch.where(numbers > PADDING, numbers, padding).long()
        output = self.model(input_ids=ids, attention_mask=mask.long(), **self.options)
        return output.last_hidden_state, mask

    def _read_images(self, images: Tensor) -> Hidden:
        images = images.expand(-1, self.channels, -1, -1)
        if self.normalises:
            images = (images - self.mean) / self.deviation
        output = self.model(pixel_values=images, **self.options)
        hidden = output.last_hidden_state
        own = output.get("pooler_output")
        if hidden.ndim == 4 and own is not None:  # the model's own mean, and its norm
            hidden = own.reshape(len(own), -1, 1, 1)
        return hidden, None

    def _check_kind(self, settings: Trunk) -> None:
        wanted, config = "text" if self.reads_text else "image", self.model.config
        found = KINDS.get(self.model.main_input_name)
        if found != wanted or config.is_encoder_decoder:
            what = found or f"'{self.model.main_input_name}'"
            more = " and has a decoder beside its encoder" if config.is_encoder_decoder else ""
            raise ConfigError(
                f"trunk.model must be an encoder of kind '{wanted}', as its input is, got "
                f"'{settings.model}' ({config.model_type}), which reads {what}{more}; name another"
            )

    def _usual_pooling(self) -> str:
        return "cls" if not self.reads_text and self._has_class_token() else "mean"

    def _has_class_token(self) -> bool:
        if self.reads_text:
            from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

            # Others read from left to right: their first token has seen nothing.
            return self.model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        return any(name.endswith("cls_token") for name, _ in self.model.named_parameters())

    def _check_pooling(self, settings: Trunk) -> None:
        if self.pooling == "cls" and not self._has_class_token():
            raise ConfigError(
                f"trunk.pooling must be 'mean' for trunk.model '{settings.model}' "
                f"({self.model.config.model_type}), which has no token that stands for the whole "
                "row, got 'cls'; remove it"
            )

    def _prepare_text(self, settings: Trunk) -> Tensor:
        """Check that the folder's tokenizer and model go together; returns a token to try."""
        config = self.model.config.get_text_config()
        tokens = read_tokenizer(tokenizer_file(settings)).get_vocab_size()
        if tokens > config.vocab_size:
            raise ConfigError(
                f"trunk.model: the tokenizer in '{settings.model}' must have at most "
                f"{config.vocab_size} tokens, which the model knows, got {tokens}; use the "
                "tokenizer that the model was made for"
            )
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            self.options["use_cache"] = False
        return torch.tensor(float(((config.pad_token_id or 0) + 1) % config.vocab_size))

    def _prepare_images(self, folder: Path, settings: Trunk, shape: tuple[int, ...]) -> Tensor:
        """Find channels, size and normalisation; returns a grey pixel to try."""
        config = self.model.config
        self.channels = int(getattr(config, "num_channels", shape[0]))
        if shape[0] not in (1, self.channels):
            raise ConfigError(
                f"trunk.model '{settings.model}' reads images of {self.channels} channels, or of "
                f"one that stands for all, got inputs of shape {list(shape)}; use another model"
            )
        size = getattr(config, "image_size", None)
        wanted = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        parameters = inspect.signature(self.model.forward).parameters
        if size is not None and wanted != shape[1:] and "interpolate_pos_encoding" in parameters:
            self.options["interpolate_pos_encoding"] = True
        if settings.pretrained:
            self._take_normalisation(read_json(folder, PREPROCESSOR), settings)
        return torch.tensor(0.5)

    def _take_normalisation(self, content: Mapping[str, Any], settings: Trunk) -> None:
        mean, deviation = content.get("image_mean"), content.get("image_std")
        if not content.get("do_normalize", True) or mean is None or deviation is None:
            return
        try:
            found = [
                torch.tensor(x, dtype=torch.float32).view(1, -1, 1, 1) for x in (mean, deviation)
            ]
            fits = all(x.shape[1] == self.channels for x in found) and bool((found[1] > 0).all())
        except (TypeError, ValueError, RuntimeError):
            fits = False
        if not fits:
            raise ConfigError(
                f"trunk.model: {PREPROCESSOR} in '{settings.model}' must have image_mean and "
                f"image_std of {self.channels} numbers, deviations above 0; correct or remove it"
            )
        for name, numbers in zip(("mean", "deviation"), found, strict=True):
            self.register_buffer(name, numbers, persistent=False)
        self.normalises = True


def _drop_pooler(model: Any) -> None:
    """Leave out the layer behind the first token, which our pooling does not read."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and next(pooler.parameters(), None) is not None:
        model.pooler = None
