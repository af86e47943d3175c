"""What is learned: [trunk] and [loss]."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from common.architectures.table import SHARINGS
from common.methods import one_of
from common.pretrained.files import digest_of
from common.settings import Finite, Fraction, Names, Rate, Settings, Sizes
from common.weighting.table import WEIGHTINGS


class Adapters(Settings):
    """Low-rank adapters of the trunk's layers (Hu et al. 2022), by the library `peft`.

    A layer's weight W becomes ``W + alpha / rank * B A``; W is frozen, and B starts at 0.
    """

    rank: int = Field(4, ge=1, description="Rows of A and columns of B.")
    alpha: Finite = Field(8.0, gt=0, description="Scale of the adapters: alpha / rank.")
    dropout: Fraction = Field(0.0, description="Rate of the adapters' inputs, in training.")
    modules: Names = Field(
        (),
        description="Layers to adapt, by patterns such as `layers.*` of their names in an encoder; "
        "empty for every fully connected layer and convolution.",
    )
    freeze_a: bool = Field(
        False,
        description="Keep A as the seed made it, train and send B alone (FFA-LoRA, Sun et al. "
        "2024): the mean of the clients' B A is then that of their B, times A.",
    )


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
    weights: str | None = Field(
        None,
        description="Start from these: a .safetensors file, or the folder of a run that ended, "
        "whose trunk.safetensors is taken; see [pretrained.md](pretrained.md).",
    )
    weights_digest: str = Field(
        "", description="Of that file; written into a resolved experiment, so that it is the same."
    )
    trains: Literal["all", "none"] | Names | None = Field(
        None,
        description="Which parameters of the encoders train: 'all', 'none', or patterns of names "
        "such as `layers.2.*`; the rest is frozen and does not travel. Default: 'all', and 'none' "
        "where there are adapters, which train.",
    )
    adapters: Adapters | None = None

    @model_validator(mode="before")
    @classmethod
    def _knows_its_weights(cls, given: Any, info: ValidationInfo) -> Any:
        if info.mode == "json":  # from another machine, whose path is not to be opened here
            return given
        if not isinstance(given, dict) or not isinstance(given.get("weights"), str):
            return given
        if given.get("weights-digest") or given.get("weights_digest"):
            return given
        return {**given, "weights-digest": digest_of(given["weights"])}

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

    @property
    def trains_everything(self) -> bool:
        """Whether nothing is frozen."""
        return self.trains == "all" or (self.trains is None and self.adapters is None)

    @property
    def trained_patterns(self) -> tuple[str, ...]:
        """What trains of a trunk that is frozen in part, beside its adapters."""
        return self.trains if isinstance(self.trains, tuple) else ()


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
        "gradients: the norms of the tasks' gradients on the trunk and the cosines between them, "
        "too, at a backward pass per task and step.",
    )
