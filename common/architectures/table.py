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
    """

    task_parts: tuple[str, ...] = ()


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
}
