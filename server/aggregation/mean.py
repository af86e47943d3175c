"""The weighted mean."""

from typing import ClassVar

from common.wire import FloatArray
from server.aggregation.rule import Rule, Updates


class Mean(Rule):
    """``w <- sum_k p_k w_k`` (McMahan et al. 2017, Algorithm 1), done as one product."""

    is_mean: ClassVar[bool] = True

    def combine(self, updates: Updates) -> FloatArray:
        """Average the trunks, [Q]."""
        return updates.mean()
