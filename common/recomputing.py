"""Activation checkpointing: what a forward pass gave is forgotten and computed again when needed.

Chen et al., "Training deep nets with sublinear memory cost", 2016. A stretch that runs again in the
backward pass must do what it did and leave no second trace: its generators begin where they began,
and `is_again` tells a layer with a memory, such as batch norm, to let that be.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar, Token
from typing import Any, TypeVar, cast

import torch
from torch.utils.checkpoint import checkpoint

Given = TypeVar("Given")
_AGAIN: ContextVar[bool] = ContextVar("again", default=False)


def is_again() -> bool:
    """Whether a stretch runs for the second time, for what it gave and not for its traces."""
    return _AGAIN.get()


def forget(run: Callable[[], Given], generators: Sequence[torch.Generator]) -> Given:
    """Run a stretch of a forward pass, of which nothing is kept for the backward pass.

    Args:
        run: does it, by the same operations each time.
        generators: that it may draw from.

    Returns:
        What it gave; autograd passes through it, running it again for each backward pass.
    """
    second = _SecondTime(generators)
    found = checkpoint(
        run,
        use_reentrant=False,
        preserve_rng_state=False,  # PyTorch's own, of which no layer of ours draws
        context_fn=lambda: (nullcontext(), second),
    )
    return cast(Given, found)


class _SecondTime:
    """Sets generators back for as long as it is entered; it may be, any number of times."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._first = [(generator, generator.get_state()) for generator in generators]
        self._now: list[tuple[torch.Generator, torch.Tensor]] = []
        self._token: Token[bool] | None = None

    def __enter__(self) -> None:
        self._now = [(generator, generator.get_state()) for generator, _ in self._first]
        self._put(self._first)
        self._token = _AGAIN.set(True)

    def __exit__(self, *_: Any) -> None:
        if self._token is not None:
            _AGAIN.reset(self._token)
        self._put(self._now)

    @staticmethod
    def _put(states: Sequence[tuple[torch.Generator, torch.Tensor]]) -> None:
        for generator, state in states:
            generator.set_state(state)
