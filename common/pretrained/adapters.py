"""Low-rank adapters of a trunk's layers, made by the library `peft`.

Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022: ``W + alpha / r * B A``
with W frozen, A [r, in] random and B [out, r] zero at first, so that nothing changes before the
first step. Averaged over clients, ``mean(B) mean(A)`` is not ``mean(B A)`` (Zhang et al., "Towards
building the federated GPT", ICASSP 2024, FedIT, average the factors all the same); with A frozen it
is (Sun et al., "Improving LoRA in privacy-preserving federated learning", ICLR 2024, FFA-LoRA).
"""

import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from common.encoder import SeededDropout
from common.errors import ConfigError
from common.pretrained.naming import idle_patterns, matches, name_some, split_encoder
from common.sections.model import Adapters
from common.seeding import derive_key

KEY = "trunk.adapters"
ADAPTED = (nn.Linear, nn.Conv2d)


def add_adapters(trunk: nn.Module, settings: Adapters, seed: int) -> list[str]:
    """Fit adapters to layers of a trunk's encoders, in place.

    Every encoder draws from a random stream of its own, so that a task more changes no other.

    Args:
        trunk: the sharing architecture.
        settings: rank, scale and which layers.
        seed: the experiment's.

    Returns:
        Names of the weights that have one now.

    Raises:
        ConfigError: `peft` is not installed, no layer is meant, or one is smaller than the rank.
    """
    layers = dict(_chosen_layers(trunk, settings))
    for name, layer in layers.items():
        _check_rank(name, layer, settings.rank)
    encoders: dict[str, list[str]] = {}
    for name in layers:
        encoder, inner = split_encoder(name) or ("", name)
        encoders.setdefault(encoder, []).append(inner)
    for encoder, own in encoders.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_key(seed, "init", "adapters", encoder))
            _inject(trunk.get_submodule(encoder.removeprefix("trunk.")), own, settings)
    return [f"{name}.weight" for name in layers]


def merge_adapters(module: nn.Module) -> None:
    """Put plain layers in the place of adapted ones, with the same function, in place."""
    for name, child in list(module.named_children()):
        if hasattr(child, "base_layer"):
            layer: Any = child
            layer.merge()
            setattr(module, name, layer.get_base_layer())
        else:
            merge_adapters(child)


def _inject(encoder: nn.Module, names: list[str], settings: Adapters) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that it could use
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            f"[{KEY}] needs the library peft, which is not installed: pip install "
            "'fedmtl[adapters]'"
        ) from error
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="|".join(map(re.escape, names)),  # a list would match ends of names
        bias="none",
    )
    inject_adapter_in_model(config, encoder)
    for name in names if settings.dropout else ():
        dropouts: Any = encoder.get_submodule(name).lora_dropout
        dropouts["default"] = SeededDropout(settings.dropout)


def _chosen_layers(trunk: nn.Module, settings: Adapters) -> Iterator[tuple[str, nn.Module]]:
    """List the layers to adapt by their full names."""
    there = {}
    for name, module in trunk.named_modules(prefix="trunk"):
        split = split_encoder(name)
        if isinstance(module, ADAPTED) and "weight" in module._parameters and split is not None:
            there[name] = (split[1], module)  # else its weight is a constant, which nothing reads
    inner = [own for own, _ in there.values()]
    if idle := idle_patterns(inner, settings.modules):
        raise ConfigError(
            f"{KEY}.modules: '{idle[0]}' means no fully connected layer or convolution of the "
            f"encoders; there are {name_some(inner)}"
        )
    if not there:
        raise ConfigError(f"[{KEY}] needs a trunk with layers; give it one, or remove the table")
    for name, (own, module) in there.items():
        if not settings.modules or any(matches(own, p) for p in settings.modules):
            yield name, module


def _check_rank(name: str, layer: nn.Module, rank: int) -> None:
    weight = layer.weight
    if not isinstance(weight, nn.Parameter):
        raise TypeError(f"{name} has no weight")
    largest = min(len(weight), math.prod(weight.shape[1:]))
    if rank > largest:
        raise ConfigError(
            f"{KEY}.rank must be at most {largest} for {name}, whose weight has shape "
            f"{list(weight.shape)}, got {rank}; lower it, or leave the layer out of {KEY}.modules"
        )
    groups = getattr(layer, "groups", 1)
    if rank % groups:
        raise ConfigError(
            f"{KEY}.rank must be a multiple of {groups} for {name}, a convolution of so many "
            f"groups, got {rank}; change it, or leave the layer out of {KEY}.modules"
        )
