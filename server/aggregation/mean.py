"""The weighted mean."""

import numpy as np

from common.wire import FloatArray
from server.aggregation.rule import Rule, Updates


class Mean(Rule):
    """``w <- sum_k p_k w_k`` (McMahan et al. 2017, Algorithm 1), done as one product."""

    def combine(self, updates: Updates) -> FloatArray:
        """Average the trunks, [Q]."""
        mean: FloatArray = updates.weights.astype(np.float32) @ updates.rows
        return mean
