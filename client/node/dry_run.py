"""One round on a node without a server: what would leave, how large, and whether it may.

The node's own client code answers a query, a round of training and an evaluation that this module
makes up. What it cannot know is the rest of the federation: categories that occur elsewhere only,
and the trunk of a later round, change numbers and, where categories are collected, sizes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.node.guard import guard_reply
from client.node.policy import Policy
from client.node.secure_dry_run import ask_in_stages
from client.place import Place
from client.session import open_session
from common.agreement import Agreement, Description, agree, missing_task
from common.errors import DataError, FedMTLError
from common.experiment import Experiment
from common.secure_aggregation.contribution import adds_sums
from common.secure_aggregation.records import MASKED, SECURE
from common.sharing import with_beside
from common.wire import (
    ARRAYS,
    CONFIG,
    Instruction,
    arrays_of,
    config_of,
    metrics_of,
    pack_arrays,
    size_bytes,
)

NODE = 1  # Flower's ids, which nobody looks at here
RUN_NAME = "-00000000"  # as long as what the server adds to the experiment's name


@dataclass(frozen=True)
class Exchange:
    """One message and its reply.

    Attributes:
        kind: "query", "train", "evaluate", or a stage of secure aggregation.
        received_bytes: payload of the message.
        sent_bytes: payload of the reply as it would leave.
        seconds: time to answer.
        leaves: what is in the reply: name -> shape, or number of values, in words.
        withheld: what the policy takes out of it.
        refused: why the policy lets no reply out; empty where it does.
    """

    kind: str
    received_bytes: int
    sent_bytes: int
    seconds: float
    leaves: dict[str, str]
    withheld: list[str] = field(default_factory=list)
    refused: str = ""


@dataclass(frozen=True)
class DryRun:
    """What a node would do for an experiment.

    Attributes:
        description: what it would tell of its data.
        device: where it would compute.
        exchanges: message by message.
    """

    description: Description
    device: str
    exchanges: list[Exchange]


def dry_run(experiment: Experiment, node_config: Mapping[str, Any], policy: Policy) -> DryRun:
    """Answer one message of each kind, as the node would.

    Args:
        experiment: as the server would send it.
        node_config: the node's.
        policy: its owner's.

    Raises:
        FedMTLError: the data does not fit, or the node's config is wrong.
    """
    text = experiment.model_dump_json(by_alias=True)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = NODE, NODE, NODE
    context = Context(NODE, NODE, dict(node_config), RecordDict(), {})
    query = Message(RecordDict({CONFIG: Instruction(text).to_record()}), NODE, MessageType.QUERY)
    asked, reply = _ask(query, context, policy, experiment)
    description = Description.from_json(str(config_of(reply.content)["description"]))
    if reason := description.left_out or missing_task(description, experiment):
        raise DataError(reason)
    agreement = agree([description], experiment)
    exchanges = [asked]
    session = open_session(text, agreement.to_json(), Place.of(node_config))
    secure = experiment.privacy.secure_aggregation is not None

    def ask(kind: str, content: RecordDict) -> Message:
        exchange, reply = _ask(Message(content, NODE, kind), context, policy, experiment)
        exchanges.append(exchange)
        return reply

    for kind in (MessageType.TRAIN, MessageType.EVALUATE):
        instruction = _instruction(experiment, text, agreement, policy)
        trunk = session.trainer.flat.read(session.trainer.shared)
        if kind == MessageType.TRAIN or experiment.evaluation.model == "personal":
            trunk = with_beside(trunk, experiment)
        content = RecordDict({ARRAYS: pack_arrays(trunk), CONFIG: instruction.to_record()})
        if secure and (kind == MessageType.TRAIN or adds_sums(experiment)):
            ask_in_stages(kind, content, instruction, experiment, ask)
        else:
            ask(kind, content)
    return DryRun(description, str(session.trainer.device), exchanges)


def _instruction(
    experiment: Experiment, text: str, agreement: Agreement, policy: Policy
) -> Instruction:
    """Make up the first round's instruction, with as many clients as the policy wants."""
    fewest = 1 if experiment.privacy.secure_aggregation is None else 2
    return Instruction(
        text,
        agreement.to_json(),
        1,
        experiment.task_weights(),
        evaluate=experiment.evaluation.by == "train-reply",
        run=experiment.name + RUN_NAME,
        clients=max(policy.experiments.least_clients, experiment.federation.min_clients, fewest),
    )


def _ask(
    message: Message, context: Context, policy: Policy, experiment: Experiment
) -> tuple[Exchange, Message]:
    """Have the client answer.

    Raises:
        DataError: it cannot, and says why.
    """
    started, kind = time.perf_counter(), message.metadata.message_type
    reply = app(message, context)
    seconds = time.perf_counter() - started
    if reply.has_error():
        raise DataError(reply.error.reason or "the client gave no reason")
    received = size_bytes(message.content)
    try:
        policy.check(Instruction.from_record(config_of(message.content)), experiment, kind)
        out = guard_reply(message, reply, policy, experiment)
    except FedMTLError as error:
        return Exchange(kind, received, 0, seconds, {}, refused=str(error)), reply
    left = _contents(out.content)
    withheld = [name for name in _contents(reply.content) if name not in left]
    return Exchange(kind, received, size_bytes(out.content), seconds, left, withheld), reply


def _contents(content: RecordDict) -> dict[str, str]:
    """List the values of a reply."""
    found: dict[str, str] = {}
    for name, array in (arrays_of(content) or {}).items():
        found[name] = f"{array.dtype} {' x '.join(map(str, array.shape))}"
    for name, value in (metrics_of(content) or MetricRecord()).items():
        found[name] = f"{len(value)} numbers" if isinstance(value, list) else "1 number"
    masked = content.get(MASKED)
    if isinstance(masked, ArrayRecord):
        for name, array in masked.items():
            found[f"masked {name}"] = f"{array.dtype} {' x '.join(map(str, array.shape))}"
    stage = content.get(SECURE)
    if isinstance(stage, ConfigRecord):
        found |= {name: f"{_count(value)} values" for name, value in stage.items()}
    config = content.get(CONFIG)
    if isinstance(config, ConfigRecord):
        found |= {name: f"{len(str(value)):,} characters" for name, value in config.items()}
    return found


def _count(value: object) -> int:
    return len(value) if isinstance(value, list) else 1
