"""SCAFFOLD's control variates on the server: averaged beside the trunk, whatever the rule."""

import logging

import numpy as np

from common.wire import FloatArray

logger = logging.getLogger("fedmtl.server")


def step_control(rows: FloatArray, before: FloatArray, clients: int) -> FloatArray:
    """Move the server's control variates: ``c <- c + (K/N) mean_k (c_k+ - c)``.

    Karimireddy et al., SCAFFOLD, ICML 2020, Algorithm 1, line 17, where a client sends
    ``c + (c_k+ - c_k)``; all count alike. Where that is not finite, they stay as they were.

    Args:
        rows: [K, Q], what K clients sent.
        before: [Q], what they were sent.
        clients: N, of the federation.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        following: FloatArray = before + (rows - before).sum(axis=0) / np.float32(clients)
    if np.isfinite(following).all():
        return following
    logger.warning("the clients' control variates add up to infinity; the server's stay")
    return before
