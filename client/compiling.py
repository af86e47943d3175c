"""Functions under torch.compile, and how long it took to compile them."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from common.errors import ConfigError

MOST_COMPILATIONS = 64  # of one function, in a process

logger = logging.getLogger("fedmtl.client")


class Compiled:
    """A function under torch.compile that logs the time of every compilation.

    It compiles at its first call, and again for inputs of another shape where it must; the time of
    such a call is the time it names.

    Args:
        function: what to compile.
        what: names it in the log.
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        import torch._dynamo.config as dynamo
        import torch._functorch.config as functorch

        # A process that trains a ninth model, such as a comparison, would train it uncompiled.
        dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_COMPILATIONS)
        # Gradients task by task go backward through one forward several times.
        functorch.donated_buffer = False
        self._function, self._what = torch.compile(function), what

    def __call__(self, *arguments: object) -> Any:
        """Call the function.

        Raises:
            ConfigError: it cannot be compiled here, for lack of a C++ compiler for example.
        """
        from torch._dynamo.exc import TorchDynamoException

        graphs, started = _graphs(), time.perf_counter()
        try:
            result = self._function(*arguments)
        except TorchDynamoException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"training.compile must be false on this machine: torch.compile says '{reason}'; "
                "set it to false, or install what it lacks"
            ) from error
        if _graphs() > graphs:
            seconds = time.perf_counter() - started
            # A warning, because whoever asked for it is to see what it cost.
            logger.warning("torch.compile: %s took %.1f s to compile", self._what, seconds)
        return result


def _graphs() -> int:
    """Count what this process has compiled."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
