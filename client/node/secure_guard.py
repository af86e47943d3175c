"""What of secure aggregation may leave a node: records of its stages' form, put together anew.

Masked vectors and shares look like chance, so that nothing in them can be read or taken out here.
That the client's code masks at all, and with keys of its own, is trusted; where the code is a
bundle's, its hash is what the owner allows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from client.node.policy import Policy
from common.errors import PolicyError
from common.experiment import Experiment
from common.secure_aggregation.contribution import adds_sums
from common.secure_aggregation.layout import SumsLayout, UpdateLayout
from common.secure_aggregation.records import (
    KEYS,
    SECURE,
    SHARES,
    UNMASK,
    MalformedRecordError,
    pack_dealt,
    pack_keys,
    pack_masked,
    pack_uncovered,
    secure_of,
    unpack_dealt,
    unpack_keys,
    unpack_masked,
    unpack_uncovered,
)
from common.wire import Instruction, arrays_of, config_of, unpack_arrays

Rebuild = Callable[[Mapping[str, Any]], ConfigRecord]
REBUILT: dict[str, Rebuild] = {
    KEYS: lambda record: pack_keys(unpack_keys(record)),
    SHARES: lambda record: pack_dealt(unpack_dealt(record)),
    UNMASK: lambda record: pack_uncovered(unpack_uncovered(record)),
}


def rebuild_stage(message: Message, content: RecordDict, experiment: Experiment) -> RecordDict:
    """Let keys or shares through.

    Raises:
        PolicyError: the experiment adds nothing securely, or the record is of another form.
    """
    kind = message.metadata.message_type
    if experiment.privacy.secure_aggregation is None:
        raise PolicyError(
            f"a reply to '{kind}' may leave only for an experiment that adds securely"
        )
    if set(content) != {SECURE}:
        raise PolicyError(f"a reply to '{kind}' must hold the record '{SECURE}' and no other")
    try:
        return RecordDict({SECURE: REBUILT[kind](secure_of(content))})
    except MalformedRecordError as error:
        raise PolicyError(f"the reply to '{kind}': {error}") from None


def rebuild_masked(
    message: Message, content: RecordDict, policy: Policy, experiment: Experiment, *, trained: bool
) -> ArrayRecord:
    """Let masked vectors through.

    Raises:
        PolicyError: they are of another form, or hold sums that must not leave.
    """
    instruction = Instruction.from_record(config_of(message.content))
    evaluated = instruction.evaluate or not trained
    widths = {"update": 0, "sums": 0}
    if trained:
        received = unpack_arrays(arrays_of(message.content) or ArrayRecord())
        sizes = {name: array.size for name, array in received.items()}
        widths["update"] = UpdateLayout(experiment, sizes).full_width
    if adds_sums(experiment):
        _check_sums(policy, experiment, trained=trained, evaluated=evaluated)
        layout = SumsLayout(experiment, trained=trained, evaluated=evaluated)
        widths["sums"] = 2 * layout.width
    try:
        update, sums = unpack_masked(content, widths)
    except MalformedRecordError as error:
        raise PolicyError(str(error)) from None
    return pack_masked(np.ascontiguousarray(update), np.ascontiguousarray(sums))


def _check_sums(policy: Policy, experiment: Experiment, *, trained: bool, evaluated: bool) -> None:
    """Refuse sums that the owner would have taken out of a reply: under a mask nobody can."""
    leaves, group = policy.leaves, experiment.privacy.smallest_group
    kinds = [*(["training-sums"] if trained else []), *(["evaluation-sums"] if evaluated else [])]
    for kind in kinds:
        if kind not in leaves.allow:
            raise PolicyError(
                f"{kind} must not leave this node (leaves.allow), and cannot be taken out of what "
                "is masked; set privacy.sums to 'withheld'"
            )
    if group < leaves.smallest_group:
        raise PolicyError(
            f"privacy.smallest-group must be {leaves.smallest_group} or more "
            f"(leaves.smallest-group) where sums are masked, got {group}"
        )
