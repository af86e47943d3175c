"""Rules that a minority of hostile clients cannot drag away: median, trimmed mean, Krum, Bulyan.

They count clients alike: weights are what a hostile client says of itself.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from common.algorithms import ALGORITHMS
from common.experiment import Experiment
from common.idle_settings import loss_memory
from common.settings import Settings
from common.wire import FloatArray
from server.aggregation.flower import FlowerRule, too_few_problem
from server.aggregation.rule import Updates

SOME_MALICIOUS = Field(
    1,
    ge=1,
    description="Clients of a round that may be hostile or faulty, f. Flower's own default is 0, "
    "which is the plain mean.",
)


class RobustRule(FlowerRule):
    """Base: refuses algorithms that would let hostile clients in at another door."""

    is_robust: ClassVar[bool] = True

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """What else the clients send to be averaged is averaged, hostile or not."""
        federation = experiment.federation
        if ALGORITHMS[federation.algorithm].travels:
            yield (
                f"federation.strategy '{federation.strategy}' keeps hostile clients from the trunk "
                f"alone, and federation.algorithm '{federation.algorithm}' sends control variates "
                "beside it, which are averaged unprotected; choose another of the two"
            )
        loss = experiment.loss
        if loss.scope == "global" and loss_memory(loss):
            yield (
                f"loss.scope must be 'local' under federation.strategy '{federation.strategy}', "
                f"got 'global': what loss.weighting '{loss.weighting}' with loss.scaling "
                f"'{loss.scaling}' remembers is averaged unprotected, and a hostile client would "
                "weigh everybody's tasks; set it"
            )


class Median(RobustRule):
    """``w_j <- median_k w_kj`` of every parameter j (Yin et al. 2018, Definition 1)."""

    strategy: ClassVar[str] = "FedMedian"

    def combine(self, updates: Updates) -> FloatArray:
        """Take the median of the trunks, number by number, [Q]."""
        return self.aggregate(updates.round, updates.rows[0], updates.rows)


class TrimmedMean(RobustRule):
    """Mean of every parameter without its lowest and highest (Yin et al. 2018, Definition 2).

    ``floor(beta K)`` are cut at either end. A round of so few replies that none would be cut leaves
    the trunk as it was: it would be open to any one of them. Replies that were left out as faulty
    count among those that it withstands: with m of them, K are enough where ``m <= floor(beta
    (K + m))``, for ``floor(beta (K + m)) - m <= floor(beta K)``.
    """

    strategy: ClassVar[str] = "FedTrimmedAvg"

    class Options(Settings):
        """Options of the trimmed mean."""

        beta: float = Field(0.2, ge=1e-4, lt=0.5, description="Share that is cut at either end.")

    def __init__(self, options: Any, experiment: Experiment) -> None:
        super().__init__(options, experiment)
        self.fewest = fewest_trimmed(options.beta)

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """A round must have enough clients to cut one at either end."""
        yield from super().find_problems(options, experiment)
        yield from too_few_problem("trimmed-mean", fewest_trimmed(options.beta), experiment)

    def needed(self, faulty: int) -> int:
        """Count the replies that it needs beside faulty ones, which are cut already."""
        return min(self.fewest, fewest_trimmed(self.options.beta, max(faulty, 1)) - faulty)

    def combine(self, updates: Updates) -> FloatArray:
        """Average the trunks without what is cut, [Q]."""
        return self.aggregate(updates.round, updates.rows[0], updates.rows)


class Krum(RobustRule):
    """The one trunk that is nearest to others (Blanchard et al. 2017, section 4).

    A client's score is the sum of squared distances to its ``K - f - 2`` nearest; the lowest wins.
    Distances are taken between updates, which are those between trunks, with more digits.

    Replies that were left out as faulty are among the f: of m <= f, f - m can be among the rest.
    Where the rest are too few for f, they are combined with the largest f that they are enough
    for, which is f - m at least.
    """

    strategy: ClassVar[str] = "Krum"

    class Options(Settings):
        """Options of Krum."""

        num_malicious_nodes: int = Field(
            0, ge=0, description="Clients of a round that may be hostile or faulty, f."
        )

    name: ClassVar[str] = "krum"

    def __init__(self, options: Any, experiment: Experiment) -> None:
        super().__init__(options, experiment)
        self.fewest = self.fewest_of(options, options.num_malicious_nodes)

    @classmethod
    def fewest_of(cls, options: Any, malicious: int) -> int:
        """Count the replies that it needs: ``K > 2 f + 2`` (Blanchard et al. 2017, section 3)."""
        return 2 * malicious + 3

    def needed(self, faulty: int) -> int:
        """Count the replies that it needs beside faulty ones, which are of the f hostile."""
        malicious = self.options.num_malicious_nodes
        rest = malicious - faulty if faulty <= malicious else malicious
        return self.fewest_of(self.options, rest)

    def malicious_among(self, count: int) -> int:
        """Say how many of so many replies it takes for hostile: f, or as many as it can bear."""
        malicious: int = self.options.num_malicious_nodes
        while malicious and self.fewest_of(self.options, malicious) > count:
            malicious -= 1
        return malicious

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """A round must have enough clients for the hostile ones among them."""
        yield from super().find_problems(options, experiment)
        fewest = cls.fewest_of(options, options.num_malicious_nodes)
        yield from too_few_problem(cls.name, fewest, experiment)

    def combine(self, updates: Updates) -> FloatArray:
        """Step from the trunk that was sent along what is chosen, [Q]."""
        steps = updates.steps
        self.inner.num_malicious_nodes = self.malicious_among(len(steps))
        return updates.before + self.aggregate(updates.round, steps[0], steps)


class MultiKrum(Krum):
    """The plain mean of the m trunks with the lowest scores (Blanchard et al. 2017, section 4)."""

    strategy: ClassVar[str] = "MultiKrum"
    name: ClassVar[str] = "multikrum"

    class Options(Settings):
        """Options of Multi-Krum."""

        num_malicious_nodes: int = SOME_MALICIOUS
        num_nodes_to_select: int | None = Field(
            None,
            ge=2,
            description="Trunks that are averaged, m; default: all but the hostile ones, K - f. "
            "Flower's own default is 1, which is 'krum'.",
        )

    def arguments(self) -> dict[str, Any]:
        """Tell Flower's strategy how many to select; where that follows K, each round anew."""
        selected = self.options.num_nodes_to_select or 2
        return {**self.options.model_dump(), "num_nodes_to_select": selected}

    @classmethod
    def fewest_of(cls, options: Any, malicious: int) -> int:
        """Count the replies that it needs: as Krum, and as many as are selected and hostile."""
        return max(2 * malicious + 3, malicious + (options.num_nodes_to_select or 1))

    def combine(self, updates: Updates) -> FloatArray:
        """Step from the trunk that was sent along the mean of those chosen, [Q]."""
        if self.options.num_nodes_to_select is None:
            count = len(updates.rows)
            self.inner.num_nodes_to_select = count - self.malicious_among(count)
        return super().combine(updates)


class Bulyan(Krum):
    """Krum chooses, then a mean of what lies nearest the median (El Mhamdi et al. 2018, section 4).

    The ``K - 2 f`` trunks with the lowest scores are kept; of every parameter the ``K - 4 f``
    values nearest to their median are averaged. Scores are taken once, as in Flower; the paper
    takes them anew after each choice.
    """

    strategy: ClassVar[str] = "Bulyan"
    name: ClassVar[str] = "bulyan"

    class Options(Settings):
        """Options of Bulyan."""

        num_malicious_nodes: int = SOME_MALICIOUS

    @classmethod
    def fewest_of(cls, options: Any, malicious: int) -> int:
        """Count the replies that it needs: ``K >= 4 f + 3`` (El Mhamdi et al. 2018, section 4)."""
        return 4 * malicious + 3


def fewest_trimmed(beta: float, cut: int = 1) -> int:
    """Count the replies of which so many are cut at either end, as Flower counts.

    >>> fewest_trimmed(0.2), fewest_trimmed(0.1), fewest_trimmed(0.3), fewest_trimmed(0.2, cut=2)
    (5, 10, 4, 10)
    """
    count = max(3, int(cut / beta))  # or a few more, as products round
    while int(beta * count) < cut:
        count += 1
    return count
