"""The sharing architectures, a line each; `common.architectures.trunk` says what each must have."""

from dataclasses import dataclass

from common.methods import Method


@dataclass(frozen=True)
class Sharing(Method):
    """One sharing architecture.

    Attributes:
        task_parts: where the trunk's parts that belong to one task may be: "shared", they travel,
            and each is averaged over the clients that hold its task; "home", they stay with the
            client, as heads do. The first is the default; none where the trunk has no such parts.
        compares_rows: whether what it adds to the loss is more than a mean over rows, so that a
            batch must go through as a whole.
        gates_read_inputs: whether its gates read the inputs as numbers, which a text's tokens are
            not: what their numbers are says nothing.
    """

    task_parts: tuple[str, ...] = ()
    compares_rows: bool = False
    gates_read_inputs: bool = False

    @property
    def has_common_parts(self) -> bool:
        """Whether anything in the trunk belongs to all tasks."""
        return self.task_parts != ("shared",)


SHARINGS: dict[str, Sharing] = {
    "hard": Sharing(
        "common.architectures.hard:HardSharing",
        "one trunk, read by all heads",
        "Caruana, Multitask learning, Machine Learning 28, 1997",
        "the least there is",
        always_fits=True,
    ),
    "soft": Sharing(
        "common.architectures.soft:SoftSharing",
        "a trunk per task, drawn to the others by a penalty on their differences",
        "Duong et al., Low resource dependency parsing, ACL 2015; Yang & Hospedales, Trace norm "
        "regularised deep multi-task learning, ICLR workshop 2017",
        "T trunks, all sent",
        fewest_tasks=2,
        task_parts=("shared",),
    ),
    "cross-stitch": Sharing(
        "common.architectures.cross_stitch:CrossStitch",
        "a trunk per task; after every stage each reads a learned mixture of all",
        "Misra et al., Cross-stitch networks for multi-task learning, CVPR 2016, eq. 1",
        "T trunks, all sent, and all computed for every task",
        fewest_tasks=2,
        task_parts=("shared",),
    ),
    "mmoe": Sharing(
        "common.architectures.mmoe:MultiGateMixture",
        "trunks as experts for all tasks; a gate per task mixes them row by row",
        "Ma et al., Modeling task relationships in multi-task learning with multi-gate "
        "mixture-of-experts, KDD 2018",
        "as many trunks as experts, all sent; gates stay home",
        fewest_tasks=2,
        task_parts=("home", "shared"),
        gates_read_inputs=True,
    ),
    "cgc": Sharing(
        "common.architectures.extraction:CustomisedGateControl",
        "trunks as experts, some of all tasks, some of each; a gate per task mixes both kinds",
        "Tang et al., Progressive layered extraction, RecSys 2020, eqs. 1 to 4",
        "as many trunks as experts; those of all tasks are sent",
        fewest_tasks=2,
        task_parts=("home", "shared"),
        gates_read_inputs=True,
    ),
    "ple": Sharing(
        "common.architectures.extraction:ProgressiveExtraction",
        "cgc layer upon layer, with a gate for what all tasks share in between",
        "Tang et al., Progressive layered extraction, RecSys 2020, eqs. 5 and 6",
        "as cgc, and gates in every layer",
        fewest_tasks=2,
        task_parts=("home", "shared"),
        gates_read_inputs=True,
    ),
    "mtan": Sharing(
        "common.architectures.mtan:MultiTaskAttention",
        "one trunk; a mask per task chooses from the features of each of its stages",
        "Liu et al., End-to-end multi-task learning with attention, CVPR 2019, eqs. 1 and 2",
        "one trunk sent, as hard; masks stay home",
        fewest_tasks=2,
        task_parts=("home", "shared"),
    ),
    "adversarial": Sharing(
        "common.architectures.adversarial:Adversarial",
        "a common trunk that hides which task a row is for, and a private one per task",
        "Liu et al., Adversarial multi-task learning for text classification, ACL 2017",
        "one trunk sent, as hard, and a discriminator; T private trunks stay home",
        fewest_tasks=2,
        task_parts=("home", "shared"),
        compares_rows=True,
    ),
}
