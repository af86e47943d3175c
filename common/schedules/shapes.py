"""The shapes of schedules; their arithmetic is torch.optim.lr_scheduler's, and tests compare."""

import math
from typing import ClassVar

from pydantic import Field

from common.schedules.schedule import Schedule
from common.settings import Finite, Settings


class Constant(Schedule):
    """The learning rate as it is."""

    def factor(self, place: int, total: int) -> float:
        """Always 1."""
        return 1.0


class WarmUp(Schedule):
    """``s + (1 - s) * min(t / n, 1)``: from a share s on a line to all, reached after n (LinearLR).

    Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2.
    """

    class Options(Settings):
        """Options of a warm-up."""

        length: int = Field(5, ge=1, description="Rounds, or steps, before the rate is reached.")
        start: Finite = Field(0.1, gt=0, lt=1, description="Share of the rate to start from.")

    def factor(self, place: int, total: int) -> float:
        """Rise, then stay."""
        start = self.options.start
        return float(start + (1 - start) * min(place / self.options.length, 1.0))


class Falling(Schedule):
    """A fall, after a warm-up of w if wanted: ``(t + 1) / (w + 1)`` for t < w, then from 1 down."""

    class Options(Settings):
        """Options of what falls."""

        warm_up: int = Field(
            0, ge=0, description="Rounds, or steps, of a rise on a line before the fall; 0 is none."
        )

    def factor(self, place: int, total: int) -> float:
        """Rise, then fall."""
        first: int = self.options.warm_up
        if place < first:
            return (place + 1) / (first + 1)
        return self.fall(place - first, max(1, total - first))

    def fall(self, place: int, total: int) -> float:
        """Tell the factor of the fall, as in `factor`."""
        raise NotImplementedError


class Cosine(Falling):
    """``floor + (1 - floor) * (1 + cos(pi t / n)) / 2`` (CosineAnnealingLR with T_max = n).

    Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, eq. 5,
    without restarts. The floor would be reached one after the last.
    """

    ENDS: ClassVar[bool] = True

    class Options(Falling.Options):
        """Options of a cosine."""

        floor: Finite = Field(0.0, ge=0, lt=1, description="Share of the rate that is left.")

    def fall(self, place: int, total: int) -> float:
        """Fall along half a cosine."""
        floor, passed = self.options.floor, min(place, total - 1) / total
        return float(floor + (1 - floor) * (1 + math.cos(math.pi * passed)) / 2)


class Stairs(Falling):
    """``gamma ** (t // every)`` (StepLR)."""

    class Options(Falling.Options):
        """Options of stairs."""

        every: int = Field(10, ge=1, description="Rounds, or steps, on each stair.")
        gamma: Finite = Field(0.5, gt=0, lt=1, description="One stair as a share of the last.")

    def fall(self, place: int, total: int) -> float:
        """Fall by stairs."""
        return float(self.options.gamma ** (place // self.options.every))


class Exponential(Falling):
    """``gamma ** t`` (ExponentialLR)."""

    class Options(Falling.Options):
        """Options of an exponential fall."""

        gamma: Finite = Field(0.95, gt=0, lt=1, description="Each rate as a share of the last.")

    def fall(self, place: int, total: int) -> float:
        """Fall a little every time."""
        return float(self.options.gamma**place)


class Cyclic(Schedule):
    """Up and down on lines between a floor and 1, n each way (CyclicLR's "triangular").

    With c the cycles done, ``floor + (1 - floor) * shrink^c * max(0, 1 - |t / n - 2 c - 1|)``; a
    shrink of 0.5 is "triangular2". Smith, "Cyclical learning rates for training neural networks",
    WACV 2017, section 3.1.
    """

    class Options(Settings):
        """Options of a cycle."""

        half: int = Field(5, ge=1, description="Rounds, or steps, of each rise and of each fall.")
        floor: Finite = Field(
            0.1, gt=0, lt=1, description="Share of the rate where a cycle begins and ends."
        )
        shrink: Finite = Field(
            1.0, gt=0, le=1, description="Each cycle's height as a share of the last one's."
        )

    def factor(self, place: int, total: int) -> float:
        """Rise and fall."""
        options = self.options
        done = place // (2 * options.half)
        height = 1 - abs(place / options.half - 2 * done - 1)
        return float(options.floor + (1 - options.floor) * options.shrink**done * height)


class OneCycle(Schedule):
    """Up from ``start`` to 1 and down to ``start * end``, along half cosines (OneCycleLR).

    Smith & Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2019, section 3; momentum stays as it is. Where there is but one, its factor is 1: the
    end of a cycle alone would be no training.
    """

    ENDS: ClassVar[bool] = True

    class Options(Settings):
        """Options of the one cycle."""

        rise: Finite = Field(0.3, gt=0, lt=1, description="Share of the cycle in which it rises.")
        start: Finite = Field(0.04, gt=0, lt=1, description="Share of the rate to start from.")
        end: Finite = Field(
            0.0001, gt=0, le=1, description="The last rate as a share of the first."
        )

    def factor(self, place: int, total: int) -> float:
        """Rise, then fall."""
        if total == 1:
            return 1.0
        start, last = self.options.start, total - 1
        top, place = self.options.rise * total - 1, min(place, last)
        if place <= top:
            return _along_cosine(start, 1.0, place / top if top else 1.0)
        return _along_cosine(1.0, start * self.options.end, (place - top) / (last - top))


def _along_cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))
