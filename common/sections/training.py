"""What a client does with a trunk it received: [training]."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.methods import one_of
from common.optimisers.table import OPTIMISERS
from common.schedules.table import SCHEDULES
from common.settings import Finite, Rate, Settings

STACKED_OPTIMISERS = ("sgd", "adam", "adamw")  # for many clients side by side


class Training(Settings):
    """What a client does with a trunk it received."""

    epochs: int = Field(1, ge=1, description="Passes over the client's training rows per round.")
    batch_size: int = Field(16, ge=1, description="Rows per step; the last batch may be smaller.")
    patience: int | None = Field(
        None,
        ge=1,
        description="A client ends a stretch of local training after so many epochs without a "
        "lower loss on its own validation rows, and returns to its best epoch; default: it does "
        "all epochs, and keeps the last.",
    )
    optimiser: Annotated[str, one_of(OPTIMISERS)[0]] = Field(
        "sgd",
        description="Its state lives for one round; `fedmtl list optimisers` explains each. Others "
        "than sgd, adam and adamw are those of torch.optim; clients train one by one, on engine "
        "loopback.",
        json_schema_extra=one_of(OPTIMISERS)[1],
    )
    optimiser_options: dict[str, Any] = Field(
        default_factory=dict, description="What the optimiser can be told; see below."
    )
    lr: Finite = Field(0.05, gt=0, description="Learning rate.")
    schedule: Annotated[str, one_of(SCHEDULES)[0]] = Field(
        "constant",
        description="How lr changes from round to round; `fedmtl list schedules` explains each.",
        json_schema_extra=one_of(SCHEDULES)[1],
    )
    schedule_options: dict[str, Any] = Field(
        default_factory=dict, description="What the schedule can be told; see below."
    )
    step_schedule: Annotated[str, one_of(SCHEDULES)[0]] = Field(
        "constant",
        description="How lr changes from step to step, in each stretch of a client's local "
        "training anew: its epochs of a round, or what an algorithm makes of them. The factors of "
        "both schedules are multiplied.",
        json_schema_extra=one_of(SCHEDULES)[1],
    )
    step_schedule_options: dict[str, Any] = Field(
        default_factory=dict, description="What the schedule over steps can be told; see below."
    )
    clip_norm: Finite | None = Field(
        None,
        gt=0,
        description="No step's gradient is longer, over all parameters that step; default: any "
        "length. What regularisation and the algorithm add is added after. Under example-level "
        "privacy it is the noisy gradient's.",
    )
    momentum: Finite = Field(0.0, ge=0, lt=1, description="SGD only.")
    weight_decay: Rate = Field(0.0, description="adamw: decoupled; else an L2 term.")
    l1: Rate = Field(0.0, description="An L1 term: l1 * sign(w) is added to the gradient.")
    balance: Literal["tasks", "classes", "none"] = Field(
        "tasks",
        description="tasks: every batch holds each task's labelled rows in their share of all; "
        "classes: every batch holds a task's classes in equal share, which visits rows of rare "
        "classes more than once an epoch; none: rows as they are shuffled.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, mps, cuda or cuda:N; auto takes a GPU where there is one.",
    )
    threads: int = Field(1, ge=1, description="CPU threads of one worker; small models want one.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Of the trunk's products in local training, forward and backward, by automatic "
        "mixed precision; parameters, heads, losses, optimiser and evaluation are float32. float16 "
        "scales losses, and leaves out a step whose gradient is not finite. Not the node's own "
        "`precision`, which is how float32 products are made. Clients train one by one.",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Rows that are forward and backward at once: a batch goes through in parts, "
        "and its step is that of the whole; default: the batch. For batches that do not fit a "
        "GPU's memory. Clients train one by one.",
    )
    recompute_activations: bool = Field(
        False,
        description="Activation checkpointing: forget what the trunk's layers gave, and compute it "
        "again in the backward pass. The same steps in less memory and more time. Clients train "
        "one by one.",
    )
    compile: bool = Field(
        False,
        description="Compile by torch.compile the training step of the stacked form, or, where "
        "clients train one by one, the model forward and backward; that takes seconds to minutes "
        "in every process and has cost more than it gained on CPUs; the log tells its time.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.momentum and self.optimiser != "sgd":
            raise ValueError(f"momentum is for optimiser 'sgd', not '{self.optimiser}'; remove it")
        return self
