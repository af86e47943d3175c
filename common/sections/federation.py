"""Rounds and the figures they bring: [federation] and [evaluation]."""

from typing import Annotated, Any, Literal

from pydantic import Field

from common.algorithms import ALGORITHMS
from common.methods import one_of
from common.settings import Finite, Lines, Settings
from common.strategies import STRATEGIES


class Federation(Settings):
    """Rounds, who takes part, and how the server combines what it gets."""

    rounds: int = Field(20, ge=1, description="Rounds; a resumed run may be given more.")
    clients_per_round: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="How many are drawn each round, by the seed."
    )
    sampling: Literal["uniform", "by-size", "poisson"] = Field(
        "uniform",
        description="uniform: every client is as likely to be drawn; by-size: in proportion to its "
        "training rows; poisson: each by itself, so that clients-per-round are expected.",
    )
    availability: Lines = Field(
        (),
        description="Simulated presence: a CSV file, or its lines, with client, from-round, "
        "to-round, and delay-s if wanted; clients without a line are always there.",
    )
    over_selection: Finite = Field(
        0.0,
        ge=0,
        description="Ask so many more than clients-per-round, as a share of it; the round closes "
        "when clients-per-round usable replies are there.",
    )
    min_clients: int = Field(1, ge=1, description="Wait until so many clients are connected.")
    algorithm: Annotated[str, one_of(ALGORITHMS)[0]] = Field(
        "joint",
        description="What a client does with trunk and heads; `fedmtl list algorithms` explains "
        "each.",
        json_schema_extra=one_of(ALGORITHMS)[1],
    )
    algorithm_options: dict[str, Any] = Field(
        default_factory=dict, description="What the algorithm can be told; see below."
    )
    heads: Literal["local", "per-task"] = Field(
        "local",
        description="local: every client keeps its own; per-task: they travel, and each task's "
        "head is averaged over the clients that hold the task.",
    )
    strategy: Annotated[str, one_of(STRATEGIES)[0]] = Field(
        "fedavg",
        description="How trunks become the next trunk; `fedmtl list strategies` explains each.",
        json_schema_extra=one_of(STRATEGIES)[1],
    )
    strategy_options: dict[str, Any] = Field(
        default_factory=dict, description="What the strategy can be told; see below."
    )
    weight_by: Literal["examples", "uniform", "labelled"] = Field(
        "examples",
        description="A client's weight in the mean. examples: its training rows; uniform: 1; "
        "labelled: its labelled training rows, summed over tasks, and in a task's own parts those "
        "of the task.",
    )
    affinity_every: int = Field(
        10,
        ge=0,
        description="How alike clients' and tasks' updates are is measured in round 1 and every "
        "n-th, for results.json and the report; 0 never does.",
    )
    round_timeout_s: Finite = Field(
        3600.0,
        gt=0,
        description="Seconds to wait for a round's replies; then without the rest. Simulated "
        "seconds where availability has delays.",
    )
    least_replies: Finite = Field(
        0.0,
        ge=0,
        le=1,
        description="A round with fewer usable replies, as a share of the clients asked (under "
        "over-selection, of clients-per-round), is dealt with as too-few says.",
    )
    too_few: Literal["use", "skip", "repeat"] = Field(
        "use",
        description="use: what is there; skip: the trunk stays as it was; repeat: newly drawn "
        "clients are asked, from the same trunk.",
    )
    most_repeats: int = Field(2, ge=1, description="too-few 'repeat': then the round is skipped.")
    checkpoint_interval_s: Finite = Field(
        0.25,
        ge=0,
        description="A simulation's rounds that follow faster share a checkpoint; 0 writes one "
        "after every round. A resumed run repeats what came after the last one, exactly.",
    )
    snapshot_every: int = Field(
        0,
        ge=0,
        description="A simulation keeps trunk and heads after every n-th round, for fedmtl "
        "ensemble --by snapshots; 0 keeps none.",
    )
    snapshots: int = Field(5, ge=1, description="So many snapshots are kept, the newest.")


class Evaluation(Settings):
    """When clients evaluate, what, and when the run stops early."""

    by: Literal["train-reply", "message"] = Field(
        "train-reply",
        description="train-reply: a round's clients evaluate the trunk they received, on the same "
        "reply; message: all clients evaluate the new trunk, one more message each.",
    )
    model: Literal["shared", "personal"] = Field(
        "shared",
        description="shared: the received trunk with the client's own heads; personal: both after "
        "the client's local epochs on that trunk.",
    )
    every: int = Field(1, ge=1, description="Evaluate in every n-th round; the last one always.")
    best_by: str = Field(
        "loss",
        description="Which figure on validation rows makes one trunk better than another: 'loss', "
        "the weighted loss of all tasks, or a task's name for its metric. It decides for patience, "
        "keep, and the round at which runs are compared.",
    )
    min_delta: Finite = Field(
        0.0, ge=0, description="A figure is better if it is better by more than this."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without a better figure."
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="last: the run ends with its last trunk; best: it returns to its best trunk, "
        "and clients to the heads that they had then.",
    )
