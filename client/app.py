"""The Flower client: describes its data once, then trains or evaluates trunks it is sent.

Every handler answers with a record of `common.wire` or with a refusal that says why; heads, rows
and labels stay in this process, in `Context.state` and in the node's own state folder.
"""

import logging
import traceback
from collections.abc import Callable
from functools import wraps

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import secure
from client.job import open_job
from client.place import Place
from client.privacy_ledger import LedgerFile
from client.session import client_name, open_rows, settled
from client.state import ledger_folder, require_state
from common.algorithms import ALGORITHMS
from common.errors import FedMTLError
from common.experiment import Experiment
from common.privacy.ledger import describe_entry
from common.secure_aggregation.contribution import adds_sums, settings_of
from common.wire import (
    ARRAYS,
    CONFIG,
    METRICS,
    Instruction,
    SplitSums,
    config_of,
    pack_arrays,
    refusal,
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


@app.query()
@_answer
def query(message: Message, context: Context) -> Message:
    """Describe this client: name, columns, counts; sums only where the experiment asks."""
    instruction = Instruction.from_record(config_of(message.content))
    require_state(context)
    rows = open_rows(instruction.experiment, Place.of(context.node_config))
    described, folder = rows.describe(client_name(context, rows.names)), ledger_folder(context)
    if folder is not None:
        LedgerFile.of(folder, described.client).append(describe_entry(described))
    content = RecordDict({CONFIG: ConfigRecord({"description": described.to_json()})})
    return Message(content, reply_to=message)


@app.train()
@_answer
def train(message: Message, context: Context) -> Message:
    """Train the received trunk and the client's own heads for the round's local epochs."""
    job = open_job(message, context)
    instruction, trainer = job.instruction, job.session.trainer
    learners = job.begin(message, instruction.round)
    sums: SplitSums = {}
    if instruction.evaluate and not job.personal:
        sums |= job.evaluate(learners)
    sums["train"] = trainer.complete(learners)
    if instruction.evaluate and job.personal:
        sums |= job.evaluate(learners)
    job.keep(instruction.round)  # before the trunk leaves
    sent, sums = job.sent(message, learners), job.reduce(sums, instruction.round)
    if job.adds_securely:
        content = job.masked(message, context, sums, sent)
    else:
        content = RecordDict({ARRAYS: pack_arrays(sent), METRICS: job.metrics(sums)})
    job.enter("train", content)
    return Message(content, reply_to=message)


@app.evaluate()
@_answer
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received trunk with the client's own heads; nothing is kept.

    A personal model is what the client's local epochs would make of the trunk. Where the run's last
    evaluation fits heads (`Instruction.keep`), these are kept.
    """
    job = open_job(message, context)
    following, trainer = job.instruction.round + 1, job.session.trainer
    learners = job.begin(message, following)
    fits_last = ALGORITHMS[job.session.experiment.federation.algorithm].fits_last
    # What is kept is fitted to the trunk received, before a personal model trains.
    if job.instruction.keep and fits_last:
        with trainer.lent(trainer.algorithm.model(learners)):
            job.keep(job.instruction.round)
    if job.personal:
        trainer.complete(learners)
    sums = job.evaluate(learners)
    sums = job.reduce(sums, "evaluation", job.instruction.round, int(job.instruction.keep))
    if adds_sums(job.session.experiment):
        content = job.masked(message, context, sums)
    else:
        content = RecordDict({METRICS: job.metrics(sums)})
    job.enter("evaluate", content)
    return Message(content, reply_to=message)


def _settle(message: Message, context: Context) -> tuple[Instruction, Experiment]:
    """Read what a stage of secure aggregation is about; no data is opened for it."""
    instruction = Instruction.from_record(config_of(message.content))
    require_state(context)
    return instruction, settled(instruction.experiment, Place.of(context.node_config))


@app.query("keys")
@_answer
def keys(message: Message, context: Context) -> Message:
    """Begin a secure aggregation."""
    settings_of(_settle(message, context)[1])
    return Message(secure.advertise(message, context), reply_to=message)


@app.query("shares")
@_answer
def shares(message: Message, context: Context) -> Message:
    """Deal out shares of what hides this client's vectors."""
    content = secure.deal(message, context, *_settle(message, context))
    return Message(content, reply_to=message)


@app.query("unmask")
@_answer
def unmask(message: Message, context: Context) -> Message:
    """Uncover what the sum over clients needs."""
    _settle(message, context)
    return Message(secure.uncover(message, context), reply_to=message)
