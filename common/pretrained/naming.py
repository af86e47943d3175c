"""Which of a trunk's parameters train, told by their names alone.

``trunk.trains`` and ``trunk.adapters`` speak of encoders, the networks that can be pre-trained.
What ties encoders together, such as gates, masks and cross-stitch units, is new and always trains.
An adapter's factors are named beside the weight that they adapt: ``adapter_a`` and ``adapter_b``.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from common.sections.model import Trunk

MOST_NAMES = 16  # that a message lists
ADAPTER_A, ADAPTER_B = "adapter_a", "adapter_b"
# Where the sharing architectures keep what `common.encoder.build_encoder` gave them.
_ENCODER = re.compile(
    r"trunk\.(?:encoder|encoders\.task-[^.]+|experts\.\d+|shared|private\.task-[^.]+"
    r"|levels\.\d+\.(?:shared|own\.task-[^.]+)\.\d+)\.(?P<inner>.+)"
)
_PEFT = (
    (".base_layer.", "."),
    (".lora_A.default.weight", f".{ADAPTER_A}"),
    (".lora_B.default.weight", f".{ADAPTER_B}"),
)
# Running statistics, and the scale that they go with: of a norm of ours, of a ready model's.
_FOLLOWS = (
    (re.compile(r"((?:stacks\.[^.]+|layers)\.\d+\.)norm_(?:mean|variance)"), r"\1norm_weight"),
    (re.compile(r"(.*\.)norm_(?:mean|variance)"), r"\1weight"),
)


def plain_name(name: str) -> str:
    """Name a parameter as if no library had wrapped its layer.

    >>> plain_name("trunk.encoder.layers.0.base_layer.weight")
    'trunk.encoder.layers.0.weight'
    >>> plain_name("trunk.encoder.layers.0.lora_A.default.weight")
    'trunk.encoder.layers.0.adapter_a'
    """
    for theirs, ours in _PEFT:
        name = name.replace(theirs, ours)
    return name


def split_encoder(name: str) -> tuple[str, str] | None:
    """Split a parameter's name into its encoder's and its own there; None where it is in none.

    >>> split_encoder("trunk.encoders.task-a.layers.0.weight")
    ('trunk.encoders.task-a', 'layers.0.weight')
    >>> split_encoder("trunk.gates.task-a.layer.weight") is None
    True
    """
    found = _ENCODER.fullmatch(name)
    return None if found is None else (name[: found.start("inner") - 1], found["inner"])


def is_adapter(name: str) -> bool:
    """Whether a parameter is a factor of an adapter."""
    return name.endswith((f".{ADAPTER_A}", f".{ADAPTER_B}"))


def matches(inner: str, pattern: str) -> bool:
    """Whether a pattern means a name; it may leave out what comes before a dot.

    >>> matches("layers.0.weight", "layers.0.*"), matches("model.layers.0.weight", "layers.0.*")
    (True, True)
    >>> matches("sublayers.0.weight", "layers.0.*")
    False
    """
    return fnmatchcase(inner, pattern) or fnmatchcase(inner, f"*.{pattern}")


def is_frozen(name: str, trunk: Trunk) -> bool:
    """Whether a parameter stays as it is at every client and the server, and never travels.

    Running statistics go with the scale of their norm.
    """
    if trunk.trains_everything:
        return False
    split = split_encoder(name)
    if split is None:
        return False
    if is_adapter(name):
        adapters = trunk.adapters
        return adapters is not None and adapters.freeze_a and name.endswith(ADAPTER_A)
    inner = _scale_of(split[1])
    return not any(matches(inner, pattern) for pattern in trunk.trained_patterns)


def _scale_of(inner: str) -> str:
    """Name the scale of the norm that a running statistic belongs to; others name themselves.

    >>> _scale_of("layers.1.norm_mean"), _scale_of("stacks.input-x.0.model.bn1.norm_mean")
    ('layers.1.norm_weight', 'stacks.input-x.0.model.bn1.weight')
    >>> _scale_of("layers.1.norm_bias")
    'layers.1.norm_bias'
    """
    for statistic, scale in _FOLLOWS:
        if (found := statistic.fullmatch(inner)) is not None:
            return found.expand(scale)
    return inner


def name_some(names: Iterable[str]) -> str:
    """List names for a message; of a deep network the first ones.

    >>> name_some(["a", "b", "a"]), name_some(map(str, range(100)))[-18:]
    ('a, b', '14, 15 and 84 more')
    """
    different = list(dict.fromkeys(names))
    more = len(different) - MOST_NAMES
    return ", ".join(different[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def idle_patterns(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """List the patterns that mean none of these names."""
    known = list(names)
    return [p for p in patterns if not any(matches(name, p) for name in known)]
