"""What is learned: [trunk] and [loss]."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.architectures.table import SHARINGS
from common.methods import one_of
from common.settings import Fraction, Rate, Settings, Sizes
from common.weighting.table import WEIGHTINGS


class Trunk(Settings):
    """The shared part of the model."""

    architecture: Literal["mlp", "cnn", "transformer", "timm"] = Field(
        "mlp",
        description="mlp: flatten all inputs; cnn: convolutions over every image input; "
        "transformer: a model of Hugging Face's transformers over the image or the text; timm: a "
        "model of timm over the image. Other inputs join after it, before the widths.",
    )
    model: str = Field(
        "",
        description="transformer: a folder with config.json, model.safetensors and, for text, "
        "tokenizer.json; timm: such a folder, or a name of timm's. Nothing is downloaded.",
    )
    model_digest: str = Field(
        "",
        description="Written when a file is read: what the folder holds. Whoever has another one "
        "is refused.",
    )
    pretrained: bool = Field(
        True,
        description="Start from the folder's weights; false: from the seed, by its config.json "
        "alone.",
    )
    pooling: Literal["cls", "mean"] | None = Field(
        None,
        description="transformer: what becomes a row's features. cls: its first token; mean: the "
        "mean of all that are no padding; default: cls for images where the model has one, else "
        "mean.",
    )
    widths: Sizes = Field(
        (64, 64),
        description="Fully connected layers; empty hands the inputs straight to the heads.",
    )
    channels: Sizes = Field(
        (16, 32), description="CNN: 3x3 convolutions, each followed by 2x2 max."
    )
    activation: Literal["relu", "gelu", "tanh", "none"] = Field(
        "relu", description="After every layer; none makes the trunk linear."
    )
    sharing: Annotated[str, one_of(SHARINGS)[0]] = Field(
        "hard",
        description="How tasks share the trunk; `fedmtl list sharings` explains each.",
        json_schema_extra=one_of(SHARINGS)[1],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="What the sharing architecture can be told; see below."
    )
    task_parts: Literal["shared", "home"] | None = Field(
        None,
        description="The trunk's parts that belong to one task. shared: they travel, averaged over "
        "the clients that hold the task; home: they stay, as heads do, which is the default where "
        "the architecture allows both.",
    )
    norm: Literal["none", "layer", "batch", "group"] = Field(
        "none",
        description="After every layer and convolution. layer: each row over its features; group: "
        "over groups of them; batch: each feature over the batch's rows. A convolution's features "
        "are its channels, at all places together.",
    )
    norm_groups: int = Field(
        8, ge=1, description="Norm 'group': number of groups, a divisor of widths and channels."
    )
    norm_parameters: Literal["shared", "local", "local-statistics"] = Field(
        "shared",
        description="shared: they travel, running statistics too; local: all stay with the client "
        "(FedBN); local-statistics: of batch norm the running statistics stay (SiloBN).",
    )
    dropout: Fraction = Field(0.0, description="Rate after every fully connected layer.")
    weight_decay: Rate | None = Field(
        None, description="For what all tasks share; default: training.weight-decay."
    )
    l1: Rate | None = Field(None, description="For what all tasks share; default: training.l1.")

    @model_validator(mode="after")
    def _has_whole_groups(self) -> Self:
        if self.norm != "group":
            return self
        convolutions = self.channels if self.architecture == "cnn" else ()
        groups = self.norm_groups
        for size in (*self.widths, *convolutions):
            if size % groups:
                raise ValueError(
                    f"norm-groups must divide widths and channels, got {groups} for {size}; change "
                    "one of them"
                )
        for size in self.widths:
            if size < 3 * groups:
                raise ValueError(
                    f"norm-groups must leave groups of three features or more of each of widths, "
                    f"got {groups} for {size}: one feature normalised is 0, two are -1 and 1; "
                    "change one of them"
                )
        return self

    @property
    def has_layers(self) -> bool:
        """Whether there is anything to share; a perceptron of no width is its input."""
        return bool(self.widths) or self.is_ready or self.stacks_convolutions

    @property
    def is_ready(self) -> bool:
        """Whether it begins with a ready model of another library."""
        return self.architecture in ("transformer", "timm")

    @property
    def stacks_convolutions(self) -> bool:
        """Whether it begins with convolutions of ours."""
        return self.architecture == "cnn" and bool(self.channels)


class Loss(Settings):
    """How the task losses become one: ``L = sum_t w_t * L_t`` over labelled rows."""

    weighting: Annotated[str, one_of(WEIGHTINGS)[0]] = Field(
        "equal",
        description="How w_t comes about; `fedmtl list weightings` explains each.",
        json_schema_extra=one_of(WEIGHTINGS)[1],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="What the weighting can be told; see below."
    )
    scaling: Literal["none", "initial", "running-mean", "log"] = Field(
        "none",
        description="Before weighting, every loss is taken as it is, divided by the task's first "
        "loss or by its running mean, or its logarithm is taken.",
    )
    scope: Literal["global", "local"] = Field(
        "global",
        description="Who owns what scaling and weighting remember: global, the server averages it "
        "every round and all clients start from the same; local, each client keeps its own.",
    )
    record: Literal["weights", "gradients"] = Field(
        "weights",
        description="weights: each round's mean weights, in the run folder and the report; "
        "gradients: the norms of the tasks' gradients on the trunk too, at a backward pass per "
        "task and step.",
    )
