"""The ``[privacy]`` tables of an experiment: mechanisms and budgets."""

from typing import Literal

from pydantic import Field

from common.settings import Finite, Settings

Accountant = Literal["rdp", "pld"]
SumsRegime = Literal["sent", "withheld", "noised", "secure"]
# Of noise multipliers and norms: so that squares, and products of two, are numbers, not 0.
LEAST, MOST = 1e-12, 1e12


class Budget(Settings):
    """Noise by its multiplier, or by the budget that it must keep; or both."""

    noise_multiplier: Finite | None = Field(
        None,
        ge=LEAST,
        le=MOST,
        description="Standard deviation of the noise, in units of max-norm; left out, it is worked "
        "out from epsilon for federation.rounds rounds.",
    )
    epsilon: Finite | None = Field(
        None, gt=0, description="Budget: nothing is released that would take it above this."
    )
    delta: Finite = Field(
        1e-5, gt=0, lt=1, description="Of the budget, and of every epsilon that is told."
    )
    max_norm: Finite = Field(
        1.0, ge=LEAST, le=MOST, description="C, the largest L2 norm that is left after clipping."
    )


class ClientLevel(Budget):
    """Differential privacy whose unit is a client, with everything that it holds."""

    noise: Literal["server", "client", "shares"] = Field(
        "server",
        description="server: added to the sum by the server, which is trusted (central); client: "
        "each adds all of it to its own update (local); shares: each adds a share, under secure "
        "aggregation (distributed).",
    )
    clip: Literal["client", "server"] = Field(
        "client", description="Who clips updates; the server can only where it adds the noise."
    )
    quantile: Finite | None = Field(
        None,
        gt=0,
        lt=1,
        description="Adaptive clipping: max-norm, from its first value, follows this quantile of "
        "the updates' norms; 0.5 is the paper's (Andrew et al. 2021).",
    )
    quantile_lr: Finite = Field(
        0.2, gt=0, description="Step of adaptive clipping, on the logarithm (the paper's value)."
    )
    quantile_noise: Finite | None = Field(
        None,
        gt=0,
        description="Standard deviation of the noise on the count of updates within max-norm; "
        "left out, a twentieth of the clients expected per round (the paper's value).",
    )
    amplification: bool = Field(
        False,
        description="Count a round as a Poisson sample; needs federation.sampling = 'poisson', and "
        "that nobody but the server knows who was asked.",
    )
    distribution: Literal["discrete-gaussian", "skellam"] = Field(
        "discrete-gaussian", description="Noise 'shares': what the shares are drawn from."
    )


class ExampleLevel(Budget):
    """Differential privacy whose unit is a row, by DP-SGD at each client."""

    covers: Literal["model", "trunk"] = Field(
        "model",
        description="model: trunk and heads train with noise; trunk: the trunk alone, while heads "
        "do not move, and are fitted without noise where they stay.",
    )


class SecureAggregation(Settings):
    """The server learns sums over clients alone (SecAgg+, Bell et al. 2020)."""

    threshold: Finite = Field(
        0.66,
        gt=0.5,
        le=1,
        description="Share of a round's clients, and of each one's neighbours and itself, that "
        "must stay to the end; with fewer the round is lost, and nothing is uncovered.",
    )
    neighbours: int | Literal["all"] = Field(
        "all",
        description="With how many others each client shares masks; fewer cost less in large "
        "rounds.",
    )
    max_norm: Finite | None = Field(
        None,
        ge=LEAST,
        le=MOST,
        description="L2 norm that updates are clipped to, which fixes the range of their integers; "
        "left out, that of [privacy.client-level].",
    )
    bits: int = Field(
        20,
        ge=8,
        le=24,
        description="Of each number: updates are rounded, up or down by chance, to "
        "multiples of max-norm / (2^(bits - 1) - 1). 20 leave room for 4,096 clients a round, 24 "
        "for 256.",
    )
    most_examples: int = Field(
        2**20,
        ge=1,
        description="Training rows that weigh 1, and with them all that are more; others "
        "weigh less in proportion. A round takes fewer where all its clients are known to have "
        "fewer.",
    )


class Privacy(Settings):
    """Mechanisms and budgets; none by default."""

    client_level: ClientLevel | None = None
    example_level: ExampleLevel | None = None
    secure_aggregation: SecureAggregation | None = None
    sums: SumsRegime | None = Field(
        None,
        description="Losses, metrics and their counts. sent: as they are, outside every budget; "
        "withheld: not at all; noised: each client adds noise, within the budget of client-level; "
        "secure: the server learns their sum alone. Default: secure under secure-aggregation, else "
        "sent.",
    )
    sums_noise_multiplier: Finite | None = Field(
        None, ge=LEAST, le=MOST, description="Of sums 'noised', in units of sums-max-norm."
    )
    sums_max_norm: Finite = Field(
        1.0,
        ge=LEAST,
        le=MOST,
        description="Of sums 'noised': largest L2 norm of a client's mean figures of one reply.",
    )
    smallest_group: int = Field(
        1, ge=1, description="Sums over fewer labelled rows are not sent by a client."
    )
    counts: Literal["sent", "withheld"] = Field(
        "sent",
        description="Whether clients tell how many rows and labels they have, and which tasks.",
    )
    accountant: Accountant = Field(
        "rdp", description="rdp: Renyi differential privacy; pld: tighter, and slower."
    )

    @property
    def is_on(self) -> bool:
        """Whether there is any mechanism."""
        return any((self.client_level, self.example_level, self.secure_aggregation))

    @property
    def levels(self) -> tuple[ClientLevel | None, ExampleLevel | None]:
        """Both units' budgets."""
        return self.client_level, self.example_level

    @property
    def sums_regime(self) -> SumsRegime:
        """What becomes of sums: as set, or the default."""
        return self.sums or ("secure" if self.secure_aggregation else "sent")

    @property
    def update_norm(self) -> float | None:
        """What a client's whole update is clipped to before adaptive clipping; None for nothing."""
        secure, level = self.secure_aggregation, self.client_level
        if level is not None:
            return level.max_norm
        return secure.max_norm if secure is not None else None
