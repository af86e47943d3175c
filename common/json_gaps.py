"""Figures that do not exist, in JSON: the standard has no NaN, and other languages refuse it."""

import math
from typing import Any


def without_gaps(content: Any) -> Any:
    """Turn NaN and infinity into None, which JSON can say.

    >>> without_gaps({"loss": [1.0, float("nan")]})
    {'loss': [1.0, None]}
    """
    if isinstance(content, dict):
        return {key: without_gaps(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_gaps(value) for value in content]
    is_gap = isinstance(content, float) and not math.isfinite(content)
    return None if is_gap else content
