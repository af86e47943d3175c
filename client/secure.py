"""A client's stages of secure aggregation, as answers to messages.

What a client must remember between the stages of one exchange lives in Flower's `Context.state`,
and nowhere on disk: after a restart it drops out of the exchange, and the others recover its masks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from common.errors import FedMTLError, SecureAggregationError
from common.experiment import Experiment
from common.secure_aggregation.client import ClientMachine, ExchangeError
from common.secure_aggregation.contribution import Contributions, adds_sums, settings_of
from common.secure_aggregation.graph import count_least, count_needed
from common.secure_aggregation.grids import require_addable, split_sums, to_words
from common.secure_aggregation.keys import TamperedError
from common.secure_aggregation.layout import SumsLayout
from common.secure_aggregation.records import (
    SECURE,
    MalformedRecordError,
    pack_dealt,
    pack_keys,
    pack_masked,
    pack_uncovered,
    secure_of,
    unpack_peers,
    unpack_staying,
)
from common.wire import FloatArray, Instruction, SplitSums

STATE = "secure-aggregation"  # key of the record in Context.state
TROUBLE = (ExchangeError, MalformedRecordError, TamperedError, KeyError, TypeError)


def advertise(message: Message, context: Context) -> RecordDict:
    """Begin an exchange: make keys. What was left of an earlier one is forgotten."""
    exchange = str(secure_of(message.content)["exchange"])
    machine = ClientMachine(exchange)
    keys = machine.advertise()
    _keep(context, machine)
    return RecordDict({SECURE: pack_keys(keys)})


def deal(
    message: Message, context: Context, instruction: Instruction, experiment: Experiment
) -> RecordDict:
    """Deal shares out to the neighbours that the server names."""
    settings = settings_of(experiment)
    needed = count_needed(instruction.clients, settings.neighbours, settings.threshold)
    least = count_least(instruction.clients, settings.threshold)
    with _Stage(message, context) as (machine, record):
        dealt = machine.deal(*unpack_peers(record), needed, least)
    return RecordDict({SECURE: pack_dealt(dealt)})


def uncover(message: Message, context: Context) -> RecordDict:
    """Uncover what the sum needs."""
    with _Stage(message, context) as (machine, record):
        uncovered = machine.uncover(*unpack_staying(record))
    return RecordDict({SECURE: pack_uncovered(uncovered)})


class SecureReply:
    """Makes the masked vectors of one message to train or to evaluate.

    Args:
        experiment: what is added.
        instruction: of the message.
        seed: a simulation's; None on a node of a deployment.
    """

    def __init__(self, experiment: Experiment, instruction: Instruction, seed: int | None) -> None:
        self.experiment, self.instruction, self.seed = experiment, instruction, seed

    def update(
        self,
        client: str,
        sent: Mapping[str, FloatArray],
        received: Mapping[str, FloatArray],
        examples: int,
        tasks: Sequence[str],
    ) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Put a clipped update into words: what would be sent, less what was received.

        The vector has no names: columns are in the order of what was received.

        Args:
            client: its name.
            sent: what would be sent after training, clipped.
            received: the trunk.
            examples: its training rows.
            tasks: of which it has training labels.
        """
        sizes = {name: array.size for name, array in received.items()}
        parts = [(sent[name] - array).reshape(-1) for name, array in received.items()]
        row = np.concatenate(parts) if parts else np.empty(0, np.float32)
        if not np.isfinite(row).all():
            raise SecureAggregationError("the trunk holds NaN or infinity; lower training.lr")
        made = Contributions(self.experiment, sizes, self.seed)
        return to_words(made.make(client, row, examples, tasks, self.instruction))

    def sums(self, sums: SplitSums, *, trained: bool) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Put sums into words; none where sums are not added securely."""
        if not adds_sums(self.experiment):
            return np.empty(0, np.uint64)
        evaluated = self.instruction.evaluate or not trained
        layout = SumsLayout(self.experiment, trained=trained, evaluated=evaluated)
        values = layout.pack(sums)
        try:
            require_addable(values, self.instruction.clients)
        except ValueError as error:
            raise SecureAggregationError(f"{error}; a smaller training.lr may help") from None
        return split_sums(values)

    def mask(
        self,
        message: Message,
        context: Context,
        update: np.ndarray[Any, np.dtype[np.uint32]],
        sums: np.ndarray[Any, np.dtype[np.uint64]],
    ) -> ArrayRecord:
        """Mask both vectors, in place.

        How many clients must stay is what noise in shares goes by: it must be what was agreed on.
        """
        threshold = settings_of(self.experiment).threshold
        with _Stage(message, context) as (machine, record):
            if count_least(self.instruction.clients, threshold) != machine.least:
                raise ExchangeError("the message is of another number of clients than before")
            machine.cover([update, sums], set(record["dealers"]))
        return pack_masked(update, sums)


class _Stage:
    """Opens the machine that a message is about, and keeps it as it is afterwards.

    It is kept before an answer leaves, also where the stage failed: none is ever done twice.
    """

    def __init__(self, message: Message, context: Context) -> None:
        self.message, self.context = message, context
        self._machine: ClientMachine | None = None

    def __enter__(self) -> tuple[ClientMachine, Mapping[str, Any]]:
        try:
            record = secure_of(self.message.content)
            kept = self.context.state.get(STATE)
            if not isinstance(kept, ConfigRecord):
                raise ExchangeError("it takes part in none; it may have been restarted")
            self._machine = ClientMachine.from_state(kept)
            if record["exchange"] != self._machine.exchange:
                raise ExchangeError("the message is of another exchange than the last one begun")
        except TROUBLE as error:
            raise _told(error) from None
        return self._machine, record

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._machine is not None:
            _keep(self.context, self._machine)
        if isinstance(error, TROUBLE):
            raise _told(error) from None


def _keep(context: Context, machine: ClientMachine) -> None:
    context.state[STATE] = ConfigRecord(machine.to_state())


def _told(error: Exception) -> FedMTLError:
    reason = str(error) if isinstance(error, TROUBLE[:3]) else type(error).__name__
    return SecureAggregationError(f"secure aggregation: {reason}")
