"""What one message to train or to evaluate is about: a client, its rows, its state, its ledger."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from client import secure
from client.discretion import Discretion
from client.learners import Learners
from client.own_arrays import as_of_best, set_aside
from client.place import Place
from client.privacy_ledger import PrivacyLedger
from client.protection import Protection
from client.session import Session, open_session
from client.state import FolderState, OwnState, ledger_folder, open_state
from common.dataset import ClientData
from common.experiment import Experiment
from common.privacy.example_level import require_new_heads
from common.secure_aggregation.records import MASKED
from common.sharing import task_of
from common.wire import (
    METRICS,
    FloatArray,
    Instruction,
    SplitSums,
    arrays_of,
    config_of,
    metrics_of,
    pack_sums,
    unpack_arrays,
)


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
        best, returns = self.instruction.best, self.instruction.returns
        own = self.state.load(round_number)
        own = as_of_best(own, best) if returns else {**own, **set_aside(own, best)}
        round_number = best + 1 if returns else round_number
        if isinstance(self.state, FolderState) and self.instruction.run:
            self.state.save_run(self._about(), self.data.fitted.to_json())
            self.state.save_trunk(round_number - 1, received)
        self.session.trainer.load(received, own)
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
        experiment = json.loads(self.instruction.experiment)
        # Whoever uses the model on this machine needs what it is made of where that is here.
        for key in ("model", "weights"):
            experiment["trunk"][key] = getattr(self.session.experiment.trunk, key)
        return {
            "run": self.instruction.run,
            "client": self.data.name,
            "fingerprint": _fingerprint(self.instruction.experiment),
            "experiment": experiment,
            "agreement": json.loads(self.instruction.agreement),
        }


@lru_cache(maxsize=8)
def _fingerprint(experiment: str) -> str:
    return Experiment.model_validate_json(experiment).fingerprint()


def open_job(message: Message, context: Context) -> Job:
    """Open what a message is about.

    Raises:
        FedMTLError: the message, the rows or the state cannot be used, or a budget is spent.
    """
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
