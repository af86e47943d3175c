"""What the optimisers can be told, by torch.optim's own names and with its defaults.

The learning rate, momentum and weight decay are settings of ``[training]`` itself. What moves no
parameter is not offered: ASGD's ``t0`` says from when it averages, and its steps use no average.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from common.settings import Rate, Settings

if TYPE_CHECKING:
    from common.experiment import Experiment

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Shares = Annotated[tuple[Share, ...], Field(strict=False, min_length=2, max_length=2)]
Pair = Annotated[
    tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...],
    Field(strict=False, min_length=2, max_length=2),
]
Small = Annotated[float, Field(gt=0, allow_inf_nan=False)]
BETAS = "Shares of the running means of gradients and of their squares that are kept."
EPS = "Added to the root that steps are divided by."


class Tunable:
    """Base of the optimisers' entries."""

    class Options(Settings):
        """What ``training.optimiser-options`` may hold."""

    @classmethod
    def find_problems(cls, options: Settings, experiment: "Experiment") -> Iterator[str]:
        """Say what would change nothing, a line each."""
        yield from ()


class SGD(Tunable):
    """Stochastic gradient descent."""

    class Options(Settings):
        """Options of SGD."""

        nesterov: bool = Field(
            False, description="Steps look ahead by momentum (Sutskever et al., ICML 2013)."
        )
        dampening: Share = Field(
            0.0, description="Share by which every gradient but the first is shortened."
        )

    @classmethod
    def find_problems(cls, options: Settings, experiment: "Experiment") -> Iterator[str]:
        """Both are about momentum, and rule each other out."""
        told, momentum = options.model_dump(by_alias=True), experiment.training.momentum
        for name, value in told.items():
            if value and not momentum:
                got = str(value).lower() if isinstance(value, bool) else f"{value:g}"
                yield (
                    f"training.optimiser-options.{name} needs training.momentum above 0, got "
                    f"{got} with momentum 0; set momentum, or remove it"
                )
        if momentum and told["nesterov"] and told["dampening"]:
            yield (
                "training.optimiser-options.dampening must be 0 with nesterov, got "
                f"{told['dampening']:g}; remove one of the two"
            )


class Moments(Tunable):
    """What goes by running means of gradients and of their size."""

    class Options(Settings):
        """Options of such an optimiser."""

        betas: Shares = Field((0.9, 0.999), description=BETAS)
        eps: Small = Field(1e-8, description=EPS)


class Adam(Tunable):
    """Adam and AdamW."""

    class Options(Moments.Options):
        """Options of Adam."""

        amsgrad: bool = Field(
            False,
            description="Divide by the largest mean square so far (Reddi et al., ICLR 2018).",
        )


class NAdam(Tunable):
    """Adam with Nesterov's momentum."""

    class Options(Moments.Options):
        """Options of NAdam."""

        momentum_decay: Rate = Field(
            0.004, description="How fast momentum rises to the first beta."
        )


class Adadelta(Tunable):
    """Steps by the root of past steps."""

    class Options(Settings):
        """Options of Adadelta."""

        rho: Share = Field(0.9, description="Share of the running mean of squares that is kept.")
        eps: Small = Field(1e-6, description=EPS)


class Adagrad(Tunable):
    """Each rate falls with its gradients."""

    class Options(Settings):
        """Options of Adagrad."""

        lr_decay: Rate = Field(0.0, description="The rate is divided by 1 + lr-decay * steps.")
        initial_accumulator_value: Rate = Field(
            0.0, description="What the sums of squares begin with."
        )
        eps: Small = Field(1e-10, description=EPS)


class ASGD(Tunable):
    """Stochastic gradient descent with a rate that falls."""

    class Options(Settings):
        """Options of ASGD."""

        lambd: Rate = Field(
            1e-4, description="The rate is divided by (1 + lambd * lr * steps) ** alpha."
        )
        alpha: Rate = Field(0.75, description="See lambd.")


class RMSprop(Tunable):
    """Gradients by the root of their mean square."""

    class Options(Settings):
        """Options of RMSprop."""

        alpha: Share = Field(0.99, description="Share of the running mean of squares that is kept.")
        eps: Small = Field(1e-8, description=EPS)
        momentum: Share = Field(0.0, description="Share of the last step that is kept.")
        centered: bool = Field(
            False, description="Divide by the root of the variance, not of the mean square."
        )


class Rprop(Tunable):
    """By the gradients' signs alone."""

    class Options(Settings):
        """Options of Rprop."""

        etas: Pair = Field(
            (0.5, 1.2), description="Factors of a step where the sign changes, and where it stays."
        )
        step_sizes: Pair = Field((1e-6, 50.0), description="The shortest and the longest step.")

        @field_validator("etas")
        @classmethod
        def _fall_and_rise(cls, etas: tuple[float, ...]) -> tuple[float, ...]:
            if not etas[0] < 1 < etas[1]:
                raise ValueError(f"needs one below 1 and then one above 1, got {list(etas)}")
            return etas

        @field_validator("step_sizes")
        @classmethod
        def _rising(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
            if sizes[0] > sizes[1]:
                raise ValueError(f"needs the shortest first, got {list(sizes)}")
            return sizes
