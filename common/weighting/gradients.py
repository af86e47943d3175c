"""Gradient balancing: the tasks' gradients on the trunk are combined, not their losses.

Every task's gradient on the parameters that all tasks share is a row of a matrix J, [n, P], over
the n tasks of the batch. A method turns J into the gradient that the trunk steps along; heads, and
trunk parts that belong to one task, step along their own loss. The aggregators are torchjd's
(Quinton & Rey, "Jacobian descent for multi-objective optimization", 2024). What some remember from
step to step lives for one round, like an optimiser's moments; it is kept apart for every set of
present tasks.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.errors import WeightingError
from common.experiment import Experiment
from common.settings import Settings
from common.weighting.preference import Preference, preference_problems
from common.weighting.weighting import Weighting


class GradientBalancing(Weighting):
    """Base of the gradient balancing methods: a subclass makes torchjd's aggregator.

    Attributes:
        minds_order: goes through the tasks one by one, so that their order matters.
        draws_on_device: draws its random numbers where the gradients are.
        weighs_whole_gradients: the combination is a weighted sum of the tasks' gradients.
    """

    needs_positive: ClassVar[bool] = False
    needs_trunk: ClassVar[bool] = True
    minds_order: ClassVar[bool] = False
    draws_on_device: ClassVar[bool] = False
    weighs_whole_gradients: ClassVar[bool] = True

    def __init__(self, options: Any, experiment: Experiment) -> None:
        super().__init__(options, experiment)
        self._made: dict[tuple[int, ...], nn.Module] = {}  # present tasks -> their aggregator

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make the aggregator for some of the tasks.

        Args:
            tasks: their places.
            like: of the gradients' type, on their device.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was learned; a client's round begins so."""
        self._made.clear()

    def combine(self, jacobian: Tensor, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Combine the gradients of the tasks at these places.

        Args:
            jacobian: [n, P], the gradient of each present task's loss.
            tasks: their places among all tasks.

        Returns:
            [P], the gradient for the trunk; and [n], the weights ``w`` of which it is ``J^T w``, or
            nearest to it where a method drops single entries. One task's gradient is its own.
        """
        if len(tasks) == 1:
            return jacobian[0], jacobian.new_ones(1)
        if not jacobian.isfinite().all():  # no solver need tell: the trunk will, to the server
            return torch.full_like(jacobian[0], torch.nan), jacobian.new_zeros(len(tasks))
        if not jacobian.any():  # nothing pulls, and some solvers fail
            return jacobian[0], jacobian.new_zeros(len(tasks))
        # In single precision a Gramian loses what is 3000 times smaller than the largest, and
        # products in half precision under autocast would be coarser still.
        with torch.autocast(jacobian.device.type, enabled=False):
            precise = jacobian.double() if self.weighs_whole_gradients else jacobian
            combined, weights = self._combine(precise, tuple(tasks))
        return combined.to(jacobian), weights.to(jacobian)

    def _combine(self, jacobian: Tensor, place: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Ask the aggregator of the tasks at `place`, made at their first step of the round.

        Raises:
            WeightingError: its solver found nothing.
        """
        from torchjd.aggregation import WeightedAggregator

        if place not in self._made:
            self._made[place] = self.make(place, jacobian)
        aggregator = self._made[place]
        try:
            if isinstance(aggregator, WeightedAggregator):
                weights = aggregator.weighting(jacobian)
                return weights @ jacobian, weights
            combined = aggregator(jacobian)
            weights = torch.linalg.pinv(jacobian.T) @ combined
        except Exception as error:  # each solver has kinds of its own
            method = self.experiment.loss.weighting
            raise WeightingError(
                f"loss.weighting '{method}': its solver failed ({type(error).__name__}) on "
                f"gradients of {len(place)} tasks; try another weighting, or a smaller training.lr"
            ) from error
        return combined, weights


class WithPreference(GradientBalancing):
    """A method that takes a Pareto preference."""

    class Options(Settings):
        """Options of methods with a preference."""

        preference: Preference = None

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """A preference has one number per task."""
        yield from super().find_problems(options, experiment)
        yield from preference_problems(options.preference, experiment)

    def preferred(self, tasks: Sequence[int], like: Tensor) -> Tensor | None:
        """Cut the preference to the present tasks, with mean ``1 / n``, torchjd's own."""
        if self.options.preference is None:
            return None
        values = like.new_tensor([self.options.preference[task] for task in tasks])
        return values / values.sum().clamp(min=1e-12)


class UPGrad(WithPreference):
    """Project each gradient onto the dual cone of all, then average (Quinton & Rey 2024)."""

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's UPGrad."""
        from torchjd import aggregation

        return aggregation.UPGrad(self.preferred(tasks, like))


class DualProj(WithPreference):
    """Project the mean gradient onto the dual cone (Lopez-Paz & Ranzato, GEM, NeurIPS 2017)."""

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's DualProj."""
        from torchjd import aggregation

        return aggregation.DualProj(self.preferred(tasks, like))


class AlignedMTL(WithPreference):
    """Make the gradients orthogonal and alike in size, then average (Senushkin et al. 2023).

    The paper sums over tasks (its Algorithm 1); torchjd averages, a factor of T.
    """

    non_negative: ClassVar[bool] = False

    class Options(WithPreference.Options):
        """Options of Aligned-MTL."""

        scale: Literal["min", "median", "rmse"] = Field(
            "min", description="Which singular value all take; min in the paper."
        )

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's AlignedMTL."""
        from torchjd import aggregation

        return aggregation.AlignedMTL(self.preferred(tasks, like), scale_mode=self.options.scale)


class ConFIG(WithPreference):
    """The direction that makes preferred angles with all (Liu et al., ConFIG, ICLR 2025, eq. 2)."""

    non_negative: ClassVar[bool] = False

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's ConFIG."""
        from torchjd import aggregation

        preferred = self.preferred(tasks, like)
        return aggregation.ConFIG(None if preferred is None else preferred * len(tasks))


class MGDA(GradientBalancing):
    """The shortest convex combination (Sener & Koltun, NeurIPS 2018, eq. 3, Algorithm 2)."""

    class Options(Settings):
        """Options of MGDA."""

        epsilon: float = Field(0.001, gt=0, description="Frank-Wolfe stops at a step below this.")
        max_iters: int = Field(100, ge=1, description="Steps of Frank-Wolfe at most.")

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's MGDA."""
        from torchjd import aggregation

        return aggregation.MGDA(epsilon=self.options.epsilon, max_iters=self.options.max_iters)


class PCGrad(GradientBalancing):
    """Take from each gradient what conflicts with the others (Yu et al., NeurIPS 2020, Alg. 1)."""

    minds_order: ClassVar[bool] = True

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's PCGrad."""
        from torchjd import aggregation

        return aggregation.PCGrad()


class GradVac(GradientBalancing):
    """PCGrad towards the cosines that are usual (Wang et al., ICLR 2021, Alg. 1)."""

    minds_order: ClassVar[bool] = True

    class Options(Settings):
        """Options of GradVac."""

        beta: float = Field(
            0.5, ge=0, le=1, description="Weight of the newest cosine in the usual one."
        )

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's GradVac."""
        from torchjd import aggregation

        return aggregation.GradVac(beta=self.options.beta)


class CAGrad(GradientBalancing):
    """The worst task's best step near the mean gradient (Liu et al., NeurIPS 2021, Alg. 1)."""

    class Options(Settings):
        """Options of CAGrad."""

        c: float = Field(
            0.4, ge=0, lt=1, description="How far from the mean; 0.4 in the paper's NYUv2."
        )

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's CAGrad."""
        from torchjd import aggregation

        # Its own norm_eps, 1e-4, gives up where one gradient is 10,000 times another.
        return aggregation.CAGrad(c=self.options.c, norm_eps=1e-8)

    def _combine(self, jacobian: Tensor, place: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Combine at a size at which the solver's tolerances, which are absolute, do not matter."""
        size = jacobian.norm()
        combined, weights = super()._combine(jacobian / size, place)
        if not weights.any():  # no convex combination of the gradients is long: keep to their mean
            weights = torch.full_like(weights, 1 / len(weights))
            combined = weights @ jacobian / size
        return combined * size, weights


class NashMTL(GradientBalancing):
    """The Nash bargaining solution ``G w = 1 / w`` (Navon et al., ICML 2022, Claim 3.1, Alg. 1)."""

    class Options(Settings):
        """Options of Nash-MTL."""

        max_norm: float = Field(
            1.0, ge=0, description="Largest norm of the combined gradient; 0 does not limit it."
        )
        every: int = Field(1, ge=1, description="Solve anew in every n-th step only.")
        iterations: int = Field(20, ge=1, description="Of the solver; 20 in the paper's code.")

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's NashMTL."""
        from torchjd import aggregation

        return aggregation.NashMTL(
            n_tasks=len(tasks),
            max_norm=self.options.max_norm,
            update_weights_every=self.options.every,
            optim_niter=self.options.iterations,
        )

    def _combine(self, jacobian: Tensor, place: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Keep the solver's remarks, on its speed and on steps that it rejects, to ourselves."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super()._combine(jacobian, place)


class IMTLG(GradientBalancing):
    """Equal projections on all gradients' directions (Liu et al., ICLR 2021, section 3.1)."""

    non_negative: ClassVar[bool] = False

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's IMTLG."""
        from torchjd import aggregation

        return aggregation.IMTLG()


class FairGrad(GradientBalancing):
    """Alpha-fair progress ``G w = w^(-1/alpha)`` (Ban & Ji, FairGrad, ICML 2024, Alg. 1)."""

    class Options(Settings):
        """Options of FairGrad."""

        alpha: float = Field(
            1.0, ge=0.1, description="1 is proportional fairness, large is max-min fairness."
        )

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's FairGrad."""
        from torchjd import aggregation

        return aggregation.FairGrad(alpha=self.options.alpha)


class GradDrop(GradientBalancing):
    """Keep one sign per entry, drawn by its purity (Chen et al., NeurIPS 2020, Algorithm 1)."""

    non_negative: ClassVar[bool] = False
    draws_on_device: ClassVar[bool] = True
    weighs_whole_gradients: ClassVar[bool] = False

    def make(self, tasks: Sequence[int], like: Tensor) -> nn.Module:
        """Make torchjd's GradDrop."""
        from torchjd import aggregation

        return aggregation.GradDrop()
