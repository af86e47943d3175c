"""Who shares masks with whom, and how many must stay."""

import math
from random import Random
from typing import Literal

ROUNDING = 9  # digits; a share times a number may miss the whole number that it should be


def draw_neighbours(
    count: int, neighbours: int | Literal["all"], random: Random
) -> dict[int, tuple[int, ...]]:
    """Draw who shares masks with whom, among places 1 to `count`.

    All with all, or a ring in random order in which each is joined to the nearest on both sides
    (Bell et al. 2020: a Harary graph under a random permutation), which gives everybody as many: an
    odd number is rounded up.

    Args:
        count: of clients.
        neighbours: how many each has.
        random: draws the order.

    Returns:
        Place -> its neighbours, sorted.

    >>> draw_neighbours(3, "all", Random(0))[2]
    (1, 3)
    """
    places = list(range(1, count + 1))
    half = count if neighbours == "all" else -(-neighbours // 2)
    if 2 * half >= count - 1:
        return {place: tuple(p for p in places if p != place) for place in places}
    random.shuffle(places)
    reach = [offset for offset in range(-half, half + 1) if offset]
    return {
        place: tuple(sorted(places[(spot + offset) % count] for offset in reach))
        for spot, place in enumerate(places)
    }


def group_size(asked: int, neighbours: int | Literal["all"]) -> int:
    """Count a client's neighbours and itself, where all who are asked take part.

    >>> group_size(10, "all"), group_size(1000, 20), group_size(1000, 19)
    (10, 21, 21)
    """
    return asked if neighbours == "all" else min(asked, 2 * -(-neighbours // 2) + 1)


def count_least(asked: int, threshold: float) -> int:
    """Count how many clients must stay in all."""
    return count_needed(asked, "all", threshold)


def count_needed(asked: int, neighbours: int | Literal["all"], threshold: float) -> int:
    """Count how many of a client's neighbours, itself among them, must stay: two at least.

    Args:
        asked: clients of the round.
        neighbours: as the experiment has them.
        threshold: share of them, above a half: so that no two sets of clients that are told
            different things can both be large enough.
    """
    size = group_size(asked, neighbours)
    return max(2, size // 2 + 1, math.ceil(round(size * threshold, ROUNDING)))
