"""What every ready model is made into: a module from one input to features, seeded as ours are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.encoder import Seeded
from common.errors import ConfigError
from common.sections.model import Trunk


class Backbone(Seeded):
    """A ready model that maps one input of N rows to features [N, width].

    What it draws in training (dropout of layers and of attention, dropped paths) comes from
    PyTorch's global state, wherever its library hid it. So each pass starts that state from a
    number of the caller's generator, and leaves it as it was: a result does not depend on who
    trained before.

    Running statistics of batch norm become parameters that are not trained, called ``norm_mean``
    and ``norm_variance`` as ours are (`common.norms`): they travel, and are averaged. A batch of
    one row is normalised by them, also in training: it may have no variance. So is every batch by a
    norm that is frozen (`common.pretrained`).

    Attributes:
        width: number of features; set by the maker, see `measure`.
        normalisations: batch norms with running statistics.
    """

    def __init__(self) -> None:
        super().__init__()
        self.width = 0
        self.normalisations: list[_BatchNorm] = []

    def compute(self, values: Tensor) -> Tensor:
        """Map [N, ...] to [N, width]."""
        raise NotImplementedError

    def recompute(self) -> None:
        """Forget what layers gave, and compute it again for the backward pass.

        The library does it layer by layer, from the random state that each began with.

        Raises:
            ConfigError: the model cannot, or its batch norm would count each batch twice.
        """
        if self.normalisations or not self.start_recomputing():
            raise ConfigError(
                "training.recompute-activations must be false with this trunk.model, which "
                + ("has batch norm" if self.normalisations else "its library cannot do it for")
                + "; remove it, or use another model, such as a ViT"
            )

    def start_recomputing(self) -> bool:
        """Ask the library; returns whether it can."""
        raise NotImplementedError

    def forward(self, values: Tensor) -> Tensor:
        """Map [N, ...] to [N, width]."""
        if not self.training:
            return self.compute(values)
        if self.generator is None:
            raise RuntimeError("a ready model needs a generator before training")
        seed = int(torch.randint(2**62, (), generator=self.generator))
        devices = [values.device] if values.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self._settled(len(values)):
            torch.manual_seed(seed)
            return self.compute(values)

    def complete(self, settings: Trunk, shape: tuple[int, ...], row: Tensor) -> None:
        """Take over running statistics; find the width, and what is not used, by a try.

        Args:
            settings: name the model in messages.
            shape: of one row of the input.
            row: one to try, [1, ...].

        Raises:
            ConfigError: the model cannot read such rows.
        """
        self._take_statistics()
        self.eval()
        try:
            with torch.enable_grad():
                features = self.compute(row)
        except ConfigError:
            raise
        except Exception as error:  # whatever a library's model raises
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(
                f"trunk.model '{settings.model}' cannot read rows of shape {list(shape)}: "
                f"{type(error).__name__}: {reason}; correct the input's shape or max-length, or "
                "use another model"
            ) from error
        if features.ndim != 2 or len(features) != 1:
            raise ConfigError(
                f"trunk.model '{settings.model}' must give one vector a row, got shape "
                f"{list(features.shape)}; use another model"
            )
        self.width = features.shape[1]
        self._drop_unused(features)
        self.train()

    def _drop_unused(self, features: Tensor) -> None:
        """Turn parameters that the features do not depend on into constants.

        Such are the mask token of DINOv2, or SigLIP's own pooling: they would travel, decay and
        take noise for nothing. Which of several experts a row goes to depends on the row.
        """
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        reached = torch.autograd.grad(features.sum(), [*trained.values()], allow_unused=True)
        for name, gradient in zip(trained, reached, strict=True):
            if gradient is None and "expert" not in name:
                owner, _, own = name.rpartition(".")
                module = self.get_submodule(owner)
                value = module._parameters.pop(own)
                module.register_buffer(own, value.detach(), persistent=False)

    def _take_statistics(self) -> None:
        for module in self.modules():
            if not isinstance(module, _BatchNorm) or module.running_mean is None:
                continue
            for old, new in (("running_mean", "norm_mean"), ("running_var", "norm_variance")):
                statistic = nn.Parameter(module._buffers.pop(old), requires_grad=False)  # type: ignore[arg-type]
                module.register_parameter(new, statistic)
                # Batch norm's own code reads it by its old name, past what a module registers.
                module.__dict__[old] = statistic
            module._buffers["num_batches_tracked"] = None  # a counter that would not travel
            self.normalisations.append(module)

    @contextmanager
    def _settled(self, rows: int) -> Iterator[None]:
        """Let norms go by running statistics for a while: frozen ones, and all for a single row."""
        moved = [
            module
            for module in self.normalisations
            if module.training and (rows == 1 or getattr(module, "is_frozen", False))
        ]
        for module in moved:
            module.eval()
        try:
            yield
        finally:
            for module in moved:
                module.train()


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a module has a ready model with batch norm in it."""
    return any(isinstance(part, Backbone) and part.normalisations for part in module.modules())
