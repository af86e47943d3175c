"""How figures are written for people: digits, units and directions, the same everywhere."""

import math

LOWER_IS_BETTER = frozenset({"loss", "mse", "rmse", "mae"})  # the other metrics: higher is better
NOTHING = "-"  # a figure that does not exist


def direction(metric: str) -> str:
    """Point to where a metric gets better.

    >>> direction("accuracy"), direction("rmse")
    ('↑', '↓')
    """
    return "↓" if metric in LOWER_IS_BETTER else "↑"


def format_figure(value: float | None) -> str:
    """Write a loss or metric with about four digits that mean something.

    >>> [format_figure(v) for v in (0.91234, 0.02154, 12.3456, 81234.5, 2.5e-7, 0, None)]
    ['0.9123', '0.02154', '12.35', '81,234', '2.500e-07', '0', '-']
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:#.4g}" if abs(value) < 999.95 else f"{value:,.0f}"


def format_gain(percent: float | None) -> str:
    """Write a gain with its sign.

    >>> [format_gain(v) for v in (1.234, -0.5, 0.0, float("nan"))]
    ['+1.23%', '-0.50%', '+0.00%', '-']
    """
    if percent is None or not math.isfinite(percent):
        return NOTHING
    return f"{percent:+.2f}%"


def format_bytes(count: float) -> str:
    """Write a number of bytes in decimal units.

    >>> [format_bytes(n) for n in (0, 999, 1234567, 5e9)]
    ['0 B', '999 B', '1.23 MB', '5.00 GB']
    """
    if count < 1000:
        return f"{count:.0f} B"
    power = min(math.floor(math.log10(count) / 3), 4)
    return f"{count / 1000**power:.2f} {' kMGT'[power]}B"


def format_seconds(seconds: float) -> str:
    """Write a duration.

    >>> [format_seconds(s) for s in (0.0042, 0.25, 4.21, 75, 7265)]
    ['4 ms', '250 ms', '4.2 s', '1 min 15 s', '2 h 01 min']
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_count(number: int, noun: str) -> str:
    """Write a number with its noun.

    >>> format_count(1, "client"), format_count(1200, "client")
    ('1 client', '1,200 clients')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
