"""What noise costs: events composed into an epsilon, and back again, by Google's dp-accounting.

Neighbouring data sets differ in that one unit (a client, or a row of one client) is there or is
not (add-or-remove-one); what a missing unit would have added to a sum is 0. The noise multiplier is
the standard deviation of the noise over the largest norm that one unit adds to the sum.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.privacy.settings import Accountant
from common.quieting import without_warnings

PRECISION = 1e-4  # of a noise multiplier that is searched for, relative
LEAST_ORDER = 1.01  # below which the conversion from Renyi divergence is not stable
LARGEST = 1e6  # the largest noise multiplier that is searched for
# Epsilons by Renyi divergence above which "pld" tells those: as large a loss, in steps of 1e-4,
# takes gigabytes and minutes, and protects nobody.
LARGEST_LOSS = 200.0


@dataclass(frozen=True)
class Event:
    """Gaussian noise on a sum, several times.

    Attributes:
        noise_multiplier: standard deviation over sensitivity.
        sampling: probability with which each unit is in the sum, drawn anew each time (Poisson); 1
            for a sum over all.
        count: how often.
        whole_orders: whether its Renyi divergence is that of Gaussian noise at whole orders alone,
            as far as anybody has proved, such as that of Skellam noise.
    """

    noise_multiplier: float
    sampling: float = 1.0
    count: int = 1
    whole_orders: bool = False


def epsilon_of(events: Iterable[Event], delta: float, accountant: Accountant = "rdp") -> float:
    """Compose events and bound their epsilon.

    Args:
        events: what was released.
        delta: in (0, 1).
        accountant: "rdp" (Mironov 2017; Mironov, Talwar & Zhang 2019 for Poisson samples) or "pld"
            (Koskela et al. 2020; above `LARGEST_LOSS`, what "rdp" says, which is true as well).

    Returns:
        Epsilon; 0 for no event.

    >>> round(epsilon_of([Event(1.1, 256 / 60000, 60 * 235)], 1e-5), 2)
    2.6
    """
    events = list(events)
    merged = _merge(events)
    if not merged:
        return 0.0
    bound = _rdp_epsilon(merged, delta, _known_orders(events))[0]
    if accountant == "rdp" or bound > LARGEST_LOSS:
        return bound
    return _pld_epsilon(tuple(merged.items()), delta)


def _merge(events: Iterable[Event]) -> dict[tuple[float, float], int]:
    """Count equal events: (noise multiplier, sampling) -> how often."""
    merged: dict[tuple[float, float], int] = {}
    for event in events:
        key = event.noise_multiplier, event.sampling
        merged[key] = merged.get(key, 0) + event.count
    return {key: count for key, count in merged.items() if count and key[1]}


def _rdp_epsilon(
    merged: dict[tuple[float, float], int], delta: float, orders: tuple[float, ...]
) -> tuple[float, float]:
    """Bound epsilon by some orders, of which the more the tighter; return the best of them, too."""
    from dp_accounting.rdp import compute_epsilon

    divergences = sum(_rdp(*key, orders) * count for key, count in merged.items())
    epsilon, order = compute_epsilon(orders, divergences, delta)
    return float(epsilon), float(order)


def epsilons_of(releases: Sequence[Sequence[Event]], delta: float) -> NDArray[np.float64]:
    """Bound many clients' epsilons at once, as `epsilon_of` does with accountant "rdp".

    Args:
        releases: [K], the events of each.
        delta: in (0, 1).

    Returns:
        [K]. ``min_a D_a + log(1 - 1/a) - log(delta a) / (a - 1)`` over orders a (Canonne, Kamath &
        Steinke 2020, proposition 12), and 0 where ``delta^2 > 1 - exp(-D_a)``.
    """
    orders = np.array(_orders())
    divergences = np.zeros((len(releases), len(orders)))  # [K, A]
    for row, events in zip(divergences, releases, strict=True):
        for key, count in _merge(events).items():
            row += _rdp(*key, _orders()) * count
    with np.errstate(invalid="ignore", divide="ignore"):
        epsilons = divergences + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    epsilons[:, orders <= LEAST_ORDER] = np.inf
    epsilons[delta**2 + np.expm1(-divergences) > 0] = 0.0
    found: NDArray[np.float64] = epsilons.min(axis=1).clip(min=0.0)
    return found


@lru_cache(maxsize=1024)
def _rdp(
    noise_multiplier: float, sampling: float, orders: tuple[float, ...]
) -> NDArray[np.float64]:
    """Compute one event's Renyi divergence at each of the orders."""
    from dp_accounting.rdp import RdpAccountant

    with without_warnings("absl"):  # of orders that are of no use for such an event
        found = RdpAccountant(orders=orders).compose(_dp_event(noise_multiplier, sampling))
    return np.asarray(found._rdp, np.float64)


@lru_cache(maxsize=1)
def _orders() -> tuple[float, ...]:
    from dp_accounting.rdp import RdpAccountant

    return tuple(float(order) for order in RdpAccountant()._orders)


def _known_orders(events: Iterable[Event]) -> tuple[float, ...]:
    """Get the orders at which the divergence of all of these is known."""
    if any(event.whole_orders for event in events):
        return tuple(order for order in _orders() if order == int(order))
    return _orders()


@lru_cache(maxsize=1024)
def _pld_epsilon(merged: Sequence[tuple[tuple[float, float], int]], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    found = PLDAccountant()
    for key, count in merged:
        found.compose(_dp_event(*key), count)
    return float(found.get_epsilon(delta))


def _dp_event(noise_multiplier: float, sampling: float) -> Any:
    from dp_accounting import dp_event

    event = dp_event.GaussianDpEvent(noise_multiplier)
    return event if sampling == 1 else dp_event.PoissonSampledDpEvent(sampling, event)


def find_noise_multiplier(
    epsilon: float,
    delta: float,
    events: Sequence[Event],
    *,
    beside: Sequence[Event] = (),
    accountant: Accountant = "rdp",
) -> float:
    """Find the smallest noise multiplier with which events cost no more than a budget.

    Args:
        epsilon: the budget.
        delta: of the budget.
        events: their sampling and counts; their own noise multipliers do not matter.
        beside: what is released as well, with its own noise.
        accountant: as in `epsilon_of`.

    Returns:
        The noise multiplier, to a ten-thousandth, rounded up.

    Raises:
        ConfigError: no noise is enough.
    """

    def released(noise: float) -> list[Event]:
        return [*(replace(event, noise_multiplier=noise) for event in events), *beside]

    def cost(noise: float) -> float:
        return epsilon_of(released(noise), delta, accountant)

    start = 1.0
    if accountant == "rdp" and epsilon_of(beside, delta) < epsilon:
        # Whole orders are quick. Then those around the best: the others bound nothing tighter.
        whole = tuple(order for order in _orders() if order == int(order))
        start = _search(lambda z: _rdp_epsilon(_merge(released(z)), delta, whole)[0], epsilon, 1.0)
        best = _rdp_epsilon(_merge(released(start)), delta, whole)[1]
        known = _known_orders([*events, *beside])
        near = tuple(order for order in known if abs(order - best) <= 1)

        def cost(noise: float) -> float:
            return _rdp_epsilon(_merge(released(noise)), delta, near)[0]

    found = _search(cost, epsilon, start)
    return math.ceil(found / PRECISION) * PRECISION if found > 10 * PRECISION else found


def _search(cost: Callable[[float], float], epsilon: float, start: float) -> float:
    """Find the smallest noise multiplier of a cost that falls, from a guess, to `PRECISION`."""
    low, high = 0.0, start
    above, below = math.inf, cost(high)  # what they cost
    while below > epsilon:
        # The cost falls about as fast as the noise grows.
        low, above, high = high, below, high * max(2.0, min(below / epsilon, 100.0))
        if high > LARGEST:
            raise ConfigError(
                f"no noise keeps these releases within epsilon {epsilon:g}; allow a larger "
                "epsilon, or release less often"
            )
        below = cost(high)
    turn = 0
    while high - low > PRECISION * high:
        middle, turn = (low + high) / 2, turn + 1
        if not low:
            middle = high * min(max(below / epsilon, 0.5), 1 - PRECISION) * (1 - PRECISION)
        elif turn % 5 and math.isfinite(above) and below > 0:
            # A straight line in logarithms; a little more, so that the next bracket is narrow.
            share = math.log(above / epsilon) / math.log(above / below)
            aimed = low * (high / low) ** share * (1 + PRECISION / 4)
            middle = min(max(aimed, low * (1 + PRECISION / 2)), high * (1 - PRECISION / 2))
        found = cost(middle)
        if found > epsilon:
            low, above = middle, found
        else:
            high, below = middle, found
    return high
