"""The Flower client: describes its data once, then trains or evaluates trunks it is sent.

Every handler answers with a record of `common.wire` or with a refusal that says why; heads, rows
and labels stay in this process, in `Context.state` and in the node's own state folder.
"""

import logging
import traceback
from collections.abc import Callable
from functools import wraps

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.session import Session, client_name, open_rows, open_session
from client.state import load_own, save_own
from client.training import TaskSums, Trainer
from common.dataset import ClientData
from common.errors import FedMTLError
from common.wire import (
    ARRAYS,
    CONFIG,
    METRICS,
    Instruction,
    SplitSums,
    arrays_of,
    config_of,
    pack_arrays,
    pack_sums,
    refusal,
    unpack_arrays,
)

logger = logging.getLogger("fedmtl.client")
app = ClientApp()

Handler = Callable[[Message, Context], Message]


def _answer(handler: Handler) -> Handler:
    """Turn errors into refusals, so that one client's trouble is one client's.

    A message of our own says what is wrong in names and counts. Of any other error only its type
    and place are told, here and to the server: its text may quote private rows.
    """

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except FedMTLError as error:
            return refusal(message, str(error))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__} in {place.name}, line {place.lineno}"
            logger.error("client failed: %s of %s", reason, place.filename)
            return refusal(message, reason)

    return guarded


def _open(message: Message, context: Context) -> tuple[Instruction, Session, ClientData]:
    instruction = Instruction.from_record(config_of(message.content))
    data_path = str(context.node_config.get("data", ""))
    device = str(context.node_config.get("device", ""))
    session = open_session(instruction.experiment, instruction.agreement, data_path, device)
    return instruction, session, session.client(session.name_of(context))


def _load(message: Message, context: Context, session: Session, client: str, before: int) -> None:
    own = load_own(context, client, session.fingerprint, before)
    session.trainer.load(unpack_arrays(arrays_of(message.content) or ArrayRecord()), own)


def _train(
    trainer: Trainer, data: ClientData, instruction: Instruction, round_number: int
) -> TaskSums:
    weights, memory = instruction.weights or {}, instruction.memory
    return trainer.train(data, weights, round_number, memory)


def _evaluate(session: Session, data: ClientData) -> SplitSums:
    return {split: session.trainer.evaluate(data, split) for split in ("validation", "test")}


@app.query()
@_answer
def query(message: Message, context: Context) -> Message:
    """Describe this client: name, columns, counts; sums only where the experiment asks."""
    instruction = Instruction.from_record(config_of(message.content))
    data_path = str(context.node_config.get("data", ""))
    rows = open_rows(instruction.experiment, data_path)
    text = rows.describe(client_name(context, rows.names)).to_json()
    return Message(RecordDict({CONFIG: ConfigRecord({"description": text})}), reply_to=message)


@app.train()
@_answer
def train(message: Message, context: Context) -> Message:
    """Train the received trunk and the client's own heads for the round's local epochs."""
    instruction, session, data = _open(message, context)
    trainer, personal = session.trainer, session.experiment.evaluation.model == "personal"
    _load(message, context, session, data.name, instruction.round)
    sums: SplitSums = {}
    if instruction.evaluate and not personal:
        sums |= _evaluate(session, data)
    sums["train"] = _train(trainer, data, instruction, instruction.round)
    if instruction.evaluate and personal:
        sums |= _evaluate(session, data)
    own = trainer.own_arrays(data.tasks)
    save_own(context, data.name, session.fingerprint, instruction.round, own)
    content = RecordDict(
        {
            ARRAYS: pack_arrays(trainer.flat.read(trainer.shared)),
            METRICS: pack_sums(len(data.train), sums),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
@_answer
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received trunk with the client's own heads; nothing is kept.

    A personal model is what the client's local epochs would make of the trunk.
    """
    instruction, session, data = _open(message, context)
    _load(message, context, session, data.name, instruction.round + 1)
    if session.experiment.evaluation.model == "personal":
        _train(session.trainer, data, instruction, instruction.round + 1)
    content = RecordDict({METRICS: pack_sums(len(data.train), _evaluate(session, data))})
    return Message(content, reply_to=message)
