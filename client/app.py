"""The Flower client: describes its data once, then trains or evaluates trunks it is sent.

Every handler answers with a record of `common.wire` or with a refusal that says why; heads, rows
and labels stay in this process, in `Context.state` and in the node's own state folder.
"""

import json
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.discretion import Discretion
from client.learners import Learners
from client.place import Place
from client.protection import Protection
from client.session import Session, client_name, open_rows, open_session
from client.state import SIMULATED, FolderState, OwnState, open_state, require_state
from common.algorithms import ALGORITHMS
from common.dataset import ClientData
from common.errors import FedMTLError
from common.wire import (
    ARRAYS,
    CONFIG,
    METRICS,
    FloatArray,
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


@dataclass(frozen=True)
class Job:
    """What one message to train or to evaluate is about."""

    instruction: Instruction
    session: Session
    data: ClientData
    state: OwnState
    seed: int | None  # of a simulation; a deployed node keeps its noise to itself

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
        return protection.protect_arrays(sent, received, self.data.name, self.instruction)

    def metrics(self, sums: SplitSums, *stream: str | int) -> MetricRecord:
        """Get the figures that are sent, as the experiment asks."""
        discretion, train = Discretion(self.session.experiment, self.seed), self.data.train
        if not discretion.is_idle:
            trained = {task: int(mask.sum()) for task, mask in train.labelled.items()}
            sums = discretion.reduce(sums, trained, self.data.name, *stream)
        return pack_sums(discretion.examples(len(train)), sums)

    def evaluate(self, learners: Learners) -> SplitSums:
        """Evaluate the model that the client uses, on the rows that training did not see."""
        trainer = self.session.trainer
        with trainer.lent(trainer.algorithm.model(learners)):
            return {split: trainer.evaluate(self.data, split) for split in ("validation", "test")}

    def keep(self, round_number: int) -> None:
        """Keep at home what belongs there."""
        self.state.save(round_number, self.session.trainer.own_arrays(self.data.tasks))

    def _about(self) -> dict[str, Any]:
        return {
            "run": self.instruction.run,
            "client": self.data.name,
            "experiment": json.loads(self.instruction.experiment),
            "agreement": json.loads(self.instruction.agreement),
        }


def _open(message: Message, context: Context) -> Job:
    instruction = Instruction.from_record(config_of(message.content))
    place = Place.of(context.node_config)
    session = open_session(instruction.experiment, instruction.agreement, place)
    data = session.client(session.name_of(context))
    state = open_state(context, data.name, instruction.run, instruction.heads_from)
    seed = session.experiment.seed if SIMULATED in context.node_config else None
    return Job(instruction, session, data, state, seed)


@app.query()
@_answer
def query(message: Message, context: Context) -> Message:
    """Describe this client: name, columns, counts; sums only where the experiment asks."""
    instruction = Instruction.from_record(config_of(message.content))
    require_state(context)
    rows = open_rows(instruction.experiment, Place.of(context.node_config))
    text = rows.describe(client_name(context, rows.names)).to_json()
    return Message(RecordDict({CONFIG: ConfigRecord({"description": text})}), reply_to=message)


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
    content = RecordDict(
        {
            ARRAYS: pack_arrays(job.sent(message, learners)),
            METRICS: job.metrics(sums, instruction.round),
        }
    )
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
    content = RecordDict(
        {METRICS: job.metrics(sums, "evaluation", job.instruction.round, int(job.instruction.keep))}
    )
    return Message(content, reply_to=message)
