"""The Flower client: describes its data once, then trains or evaluates trunks it is sent.

Every handler answers with a record of `common.wire` or with a refusal that says why; heads, rows
and labels stay in this process, in `Context.state` and in the node's own state folder.
"""

import json
import logging
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client import secure
from client.discretion import Discretion
from client.learners import Learners
from client.place import Place
from client.privacy_ledger import LedgerFile, PrivacyLedger
from client.protection import Protection
from client.session import Session, client_name, open_rows, open_session, settled
from client.state import (
    FolderState,
    OwnState,
    ledger_folder,
    open_state,
    require_state,
)
from common.algorithms import ALGORITHMS
from common.dataset import ClientData
from common.errors import FedMTLError
from common.experiment import Experiment
from common.privacy.example_level import require_new_heads
from common.privacy.ledger import describe_entry
from common.secure_aggregation.contribution import adds_sums, settings_of
from common.secure_aggregation.records import MASKED
from common.sharing import task_of
from common.wire import (
    ARRAYS,
    CONFIG,
    METRICS,
    FloatArray,
    Instruction,
    SplitSums,
    arrays_of,
    config_of,
    metrics_of,
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


@dataclass(frozen=True)
class Job:
    """What one message to train or to evaluate is about."""

    instruction: Instruction
    session: Session
    data: ClientData
    state: OwnState
    seed: int | None  # of a simulation; a deployed node keeps its noise to itself
    ledger: PrivacyLedger

    @property
    def personal(self) -> bool:
        """Whether the model to evaluate is what local training makes of the trunk."""
        return self.session.experiment.evaluation.model == "personal"

    def begin(self, message: Message, round_number: int) -> Learners:
        """Put what was received, and the client's own parameters before a round, to work."""
        received = unpack_arrays(arrays_of(message.content) or ArrayRecord())
        if isinstance(self.state, FolderState) and self.instruction.run:
            self.state.save_run(self._about(), self.data.fitted.to_json())
            self.state.save_trunk(round_number - 1, received)
        self.session.trainer.load(received, self.state.load(round_number))
        weights, memory = self.instruction.weights or {}, self.instruction.memory
        return self.session.trainer.begin(self.data, weights, round_number, memory)

    def sent(self, message: Message, learners: Learners) -> Mapping[str, FloatArray]:
        """Get what is sent after a round, clipped and with noise as the experiment asks."""
        protection = Protection(self.session.experiment, self.seed)
        received = unpack_arrays(arrays_of(message.content) or ArrayRecord())
        sent = self.session.trainer.sent_arrays(learners)
        lacking = {task for task in self.session.experiment.tasks if not self.labelled.get(task)}
        # What an algorithm kept of a part that this client does not train is not its to send.
        sent |= {name: received[name] for name in sent if task_of(name) in lacking}
        return protection.protect_arrays(sent, received, self.data.name, self.instruction)

    @property
    def adds_securely(self) -> bool:
        """Whether the server must see sums over clients alone."""
        return self.session.experiment.privacy.secure_aggregation is not None

    @property
    def labelled(self) -> dict[str, int]:
        """Labelled training rows of each task, however often they are passed over."""
        return {task: int(mask.sum()) for task, mask in self.data.train.labelled.items()}

    def reduce(self, sums: SplitSums, *stream: str | int) -> SplitSums:
        """Get the figures that may be told, as the experiment asks."""
        discretion = Discretion(self.session.experiment, self.seed)
        if discretion.is_idle:
            return sums
        return discretion.reduce(sums, self.labelled, self.data.name, *stream)

    def metrics(self, sums: SplitSums) -> MetricRecord:
        """Pack figures, and how many rows the client counts as."""
        discretion = Discretion(self.session.experiment, self.seed)
        return pack_sums(discretion.examples(len(self.data.train)), sums)

    def masked(
        self,
        message: Message,
        context: Context,
        sums: SplitSums,
        sent: Mapping[str, FloatArray] | None = None,
    ) -> RecordDict:
        """Make the content of a reply whose numbers are added securely.

        Args:
            message: to train or to evaluate.
            context: keeps where the exchange stands.
            sums: losses and metrics that may be told.
            sent: what would be sent after training; None after an evaluation.
        """
        experiment, data = self.session.experiment, self.data
        reply = secure.SecureReply(experiment, self.instruction, self.seed)
        update = np.empty(0, np.uint32)
        if sent is not None:
            received = unpack_arrays(arrays_of(message.content) or ArrayRecord())
            held = [task for task, count in self.labelled.items() if count]
            update = reply.update(data.name, sent, received, len(data.train), held)
        words = reply.sums(sums, trained=sent is not None)
        content = RecordDict({MASKED: reply.mask(message, context, update, words)})
        if experiment.privacy.sums_regime == "sent":
            content[METRICS] = self.metrics(sums)
        return content

    def evaluate(self, learners: Learners) -> SplitSums:
        """Evaluate the model that the client uses, on the rows that training did not see."""
        trainer = self.session.trainer
        with trainer.lent(trainer.algorithm.model(learners)):
            return {split: trainer.evaluate(self.data, split) for split in ("validation", "test")}

    def keep(self, round_number: int) -> None:
        """Keep at home what belongs there."""
        self.state.save(round_number, self.session.trainer.own_arrays(self.data.tasks))

    def enter(self, reply: str, content: RecordDict) -> None:
        """Write down what is about to leave; where that fails, it must not."""
        arrays = arrays_of(content) or ArrayRecord()
        metrics = metrics_of(content) or MetricRecord()
        update = sum(math.prod(array.shape) for array in arrays.values())
        sums = sum(len(value) for value in metrics.values() if isinstance(value, list))
        masked = content.get(MASKED)
        if isinstance(masked, ArrayRecord):
            update += math.prod(masked["update"].shape)
            sums += math.prod(masked["sums"].shape)
        self.ledger.enter(reply, update, sums)

    def _about(self) -> dict[str, Any]:
        return {
            "run": self.instruction.run,
            "client": self.data.name,
            "fingerprint": _fingerprint(self.instruction.experiment),
            "experiment": json.loads(self.instruction.experiment),
            "agreement": json.loads(self.instruction.agreement),
        }


@lru_cache(maxsize=8)
def _fingerprint(experiment: str) -> str:
    return Experiment.model_validate_json(experiment).fingerprint()


def _open(message: Message, context: Context) -> Job:
    instruction = Instruction.from_record(config_of(message.content))
    place = Place.of(context.node_config)
    session = open_session(instruction.experiment, instruction.agreement, place)
    require_new_heads(session.experiment, instruction.heads_from)
    data = session.client(session.name_of(context))
    state = open_state(context, data.name, instruction.run, instruction.heads_from)
    seed = session.experiment.seed if place.simulated else None
    rows, folder = len(data.train), ledger_folder(context)
    ledger = PrivacyLedger(session.experiment, instruction, place, data.name, rows, folder)
    ledger.check(message.metadata.message_type)  # before anything is trained
    return Job(instruction, session, data, state, seed, ledger)


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
    job = _open(message, context)
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
    job = _open(message, context)
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
