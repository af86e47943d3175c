"""The last thing a reply passes on its owner's machine; runs outside the code that wrote it.

The reply is taken apart and put together anew: of arrays the names, shapes and types of the trunk
that was received, of metrics the sums that the experiment's form allows, of a description what its
schema holds. Nothing else gets through: no further record, no bytes behind an array, no metadata.
What numbers mean cannot be seen from outside: a trunk is let out as a trunk.
"""

import logging
from collections.abc import Callable

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from numpy.typing import NDArray

from client.algorithms.algorithm import open_algorithm
from client.node.policy import Leaves, Policy
from client.node.secure_guard import REBUILT, rebuild_masked, rebuild_stage
from common.agreement import MOST_CATEGORIES, Description, collects_categories
from common.columns import fits_input
from common.dataset import SPLITS
from common.errors import PolicyError
from common.experiment import Experiment
from common.secure_aggregation.contribution import adds_sums
from common.secure_aggregation.records import MASKED
from common.sums_form import SumsForm
from common.wire import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    METRICS,
    REFUSED,
    SplitSums,
    arrays_of,
    metrics_of,
    pack_arrays,
    pack_sums,
    read_array,
    size_bytes,
    unpack_arrays,
    unpack_sums,
)

logger = logging.getLogger("fedmtl.node")

MOST_REASON = 400  # characters of a refusal
OWN_WORDS = "the client refused; the node's log says why"  # instead of a bundle's


def guard_reply(
    message: Message, reply: Message, policy: Policy, experiment: Experiment
) -> Message:
    """Let out of a reply what may leave.

    Args:
        message: what it answers.
        reply: what the client's code made.
        policy: the owner's.
        experiment: as the message had it.

    Returns:
        A reply of its own, made of what passed.

    Raises:
        PolicyError: the reply holds what it must not, or lacks what it must have.
    """
    if reply.has_error():
        return Message(_error(reply.error, policy), reply_to=message)
    make = READERS.get(message.metadata.message_type)
    if make is None:
        raise PolicyError(f"a reply to '{message.metadata.message_type}' is none that may leave")
    content = make(message, reply.content, policy, experiment)
    most, size = policy.leaves.most_bytes, size_bytes(content)
    if most is not None and size > most:
        raise PolicyError(f"the reply has {size:,} bytes, allowed are {most:,} (leaves.most-bytes)")
    return Message(content, reply_to=message)


def _error(error: Error, policy: Policy) -> Error:
    """Pass on a refusal of the installed code; a bundle's own words may hold anything."""
    if policy.code.run == "installed":
        return Error(code=error.code, reason=(error.reason or "")[:MOST_REASON])
    logger.warning("the bundle's client refused: %s", (error.reason or "")[:MOST_REASON])
    return Error(code=REFUSED, reason=OWN_WORDS)


def _query(_: Message, content: RecordDict, policy: Policy, experiment: Experiment) -> RecordDict:
    """Let a description through."""
    leaves = policy.leaves
    _require_records(content, {CONFIG: ConfigRecord})
    record = content[CONFIG]
    try:
        if set(record) != {"description"}:
            raise ValueError
        description = Description.from_json(str(record["description"]))
    except ValueError:
        raise PolicyError("the description is not of the form that may leave") from None
    if fault := _description_fault(description, experiment):
        raise PolicyError(f"the description {fault}")
    if description.sums and "column-sums" not in leaves.allow:
        raise PolicyError("sums of columns must not leave this node (leaves.allow)")
    if description.categories and "categories" not in leaves.allow:
        raise PolicyError("categories must not leave this node (leaves.allow)")
    # A column without a value has a sum over nobody.
    counts = [count for sums in description.sums.values() for count in sums.count if count]
    if counts and min(counts) < leaves.smallest_group:
        raise PolicyError(
            f"sums of columns are over {min(counts):g} rows, allowed are {leaves.smallest_group} "
            "or more (leaves.smallest-group)"
        )
    if description.left_out and policy.code.run == "bundle":
        logger.warning("the bundle's client takes no part: %s", description.left_out[:MOST_REASON])
        description = description.model_copy(update={"left_out": OWN_WORDS})
    return RecordDict({CONFIG: ConfigRecord({"description": description.to_json()})})


def _description_fault(told: Description, experiment: Experiment) -> str | None:
    """Say what a description holds that no description of this experiment holds, or None.

    Column names and categories are the client's words; they are bounded, and nothing else is text.
    """
    inputs = experiment.inputs
    summed = {name for name, each in inputs.items() if each.standardise == "federation"}
    listed = {name for name, each in inputs.items() if collects_categories(each)}
    allowed = (
        ("examples", told.examples, set(SPLITS)),
        ("labelled", told.labelled, set(experiment.tasks)),
        ("columns", told.columns, set(inputs)),
        ("sums", told.sums, summed),
        ("categories", told.categories, listed),
    )
    if max(len(told.client), len(told.left_out)) > MOST_REASON:
        return f"has a name or a reason of more than {MOST_REASON} characters"
    for what, found, names in allowed:
        if found.keys() - names:
            return f"has {what} of what the experiment does not ask for"
    for name, columns in told.columns.items():
        if not all(fits_input(column, inputs[name]) for column in columns):
            return f"has columns that inputs.{name}.columns does not name"
    for name, sums in told.sums.items():
        width = inputs[name].shape[0] if inputs[name].shape else len(told.columns.get(name, ()))
        if len(sums.count) != width:
            return f"has sums of more or fewer columns than inputs.{name}"
    for name, listed_by in told.categories.items():
        if listed_by.keys() - set(told.columns.get(name, ())):
            return f"has categories of no column of inputs.{name}"
        if max(map(len, listed_by.values()), default=0) > MOST_CATEGORIES:
            return f"has more than {MOST_CATEGORIES} categories of a column of inputs.{name}"
    return None


def _train(
    message: Message, content: RecordDict, policy: Policy, experiment: Experiment
) -> RecordDict:
    """Let a trunk and its sums through, or both under their masks."""
    if experiment.privacy.secure_aggregation is not None:
        return _masked(message, content, policy, experiment, trained=True)
    _require_records(content, {ARRAYS: ArrayRecord, METRICS: MetricRecord})
    received = unpack_arrays(arrays_of(message.content) or ArrayRecord())
    sent = arrays_of(content) or ArrayRecord()
    if sent.keys() != received.keys():
        raise PolicyError("the reply's arrays are not those of the trunk it received")
    trunk = {name: _read_array(name, sent[name], like) for name, like in received.items()}
    metrics = _read_sums(content, policy.leaves, experiment)
    return RecordDict({ARRAYS: pack_arrays(trunk), METRICS: metrics})


def _masked(
    message: Message, content: RecordDict, policy: Policy, experiment: Experiment, *, trained: bool
) -> RecordDict:
    """Let masked vectors through, and sums beside them where the experiment sends these openly."""
    open_sums = experiment.privacy.sums_regime == "sent"
    _require_records(
        content, {MASKED: ArrayRecord, **({METRICS: MetricRecord} if open_sums else {})}
    )
    masked = rebuild_masked(message, content, policy, experiment, trained=trained)
    passed = RecordDict({MASKED: masked})
    if open_sums:
        passed[METRICS] = _read_sums(content, policy.leaves, experiment)
    return passed


def _stage(message: Message, content: RecordDict, _: Policy, experiment: Experiment) -> RecordDict:
    """Let a stage of secure aggregation through."""
    return rebuild_stage(message, content, experiment)


def _evaluate(
    message: Message, content: RecordDict, policy: Policy, experiment: Experiment
) -> RecordDict:
    """Let sums through, or what masks them."""
    if adds_sums(experiment):
        return _masked(message, content, policy, experiment, trained=False)
    _require_records(content, {METRICS: MetricRecord})
    return RecordDict({METRICS: _read_sums(content, policy.leaves, experiment)})


READERS: dict[str, Callable[[Message, RecordDict, Policy, Experiment], RecordDict]] = {
    MessageType.QUERY: _query,
    MessageType.TRAIN: _train,
    MessageType.EVALUATE: _evaluate,
    **dict.fromkeys(REBUILT, _stage),
}


def _require_records(content: RecordDict, wanted: dict[str, type]) -> None:
    found = {key: type(record) for key, record in content.items()}
    if found != wanted:
        raise PolicyError(
            f"a reply must hold the records {sorted(wanted)} and no other, got {sorted(found)}"
        )


def _read_array(name: str, array: Array, like: NDArray[np.float32]) -> NDArray[np.float32]:
    """Read an array that must be like another; what stands behind its numbers is left behind."""
    try:
        values = read_array(array)
    except ValueError:
        raise PolicyError(f"{name} cannot be read as an array") from None
    if values.shape != like.shape or values.dtype != like.dtype:
        raise PolicyError(
            f"{name} is {values.dtype} {values.shape}, the trunk's is {like.dtype} {like.shape}"
        )
    return np.ascontiguousarray(values)


def _read_sums(content: RecordDict, leaves: Leaves, experiment: Experiment) -> MetricRecord:
    """Take the sums that may leave out of a reply's metrics; the rest is logged and left behind."""
    metrics = metrics_of(content)
    examples = None if metrics is None else metrics.get(EXAMPLES)
    if metrics is None or not isinstance(examples, int):
        raise PolicyError(f"the reply's metrics lack {EXAMPLES}")
    sums, form = unpack_sums(metrics), SumsForm(experiment)
    often = open_algorithm(experiment).passes
    kept: SplitSums = {}
    expected = {EXAMPLES}
    for split, tasks in sums.items():
        for task, numbers in tasks.items():
            expected |= {f"{split}/{task}/{name}" for name in numbers}
            if fault := form.fault(task, numbers):
                raise PolicyError(f"{split} sums of task {task}: {fault}")
            passes = often if split == SPLITS[0] else 1
            rows = int(numbers["loss"][1] / passes) if "loss" in numbers else 0
            if _may_leave(split, task, rows, leaves):
                kept.setdefault(split, {})[task] = numbers
    if set(metrics) != expected:
        raise PolicyError("the reply's metrics hold names that are none of the experiment's")
    return pack_sums(examples, kept)


def _may_leave(split: str, task: str, rows: int, leaves: Leaves) -> bool:
    kind = "training-sums" if split == SPLITS[0] else "evaluation-sums"
    if kind not in leaves.allow:
        return False
    if rows < leaves.smallest_group:
        logger.info("%s sums of task %s stay here: they are over %d rows", split, task, rows)
        return False
    return True
