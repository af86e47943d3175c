"""The rest of a secure aggregation, made up: a server, and other clients with keys of their own."""

from collections.abc import Callable

from flwr.app import ConfigRecord, Message, RecordDict

from common.experiment import Experiment
from common.secure_aggregation.client import ClientMachine
from common.secure_aggregation.contribution import settings_of
from common.secure_aggregation.graph import count_least, count_needed, group_size
from common.secure_aggregation.records import (
    KEYS,
    SECURE,
    SHARES,
    UNMASK,
    pack_peers,
    pack_staying,
    secure_of,
    unpack_keys,
)
from common.wire import CONFIG, Instruction

EXCHANGE = "0" * 32  # as long as a real one's name
OWN = 1  # the node's place
Ask = Callable[[str, RecordDict], Message]  # a kind of message and its content -> the reply


def ask_in_stages(
    kind: str, content: RecordDict, instruction: Instruction, experiment: Experiment, ask: Ask
) -> None:
    """Have one message to train or to evaluate answered, and the stages around it.

    Args:
        kind: of the message.
        content: of it.
        instruction: of it, which says how many clients are asked.
        experiment: what is added securely.
        ask: has the node's client answer.
    """
    settings = settings_of(experiment)
    config = instruction.to_record()
    needed = count_needed(instruction.clients, settings.neighbours, settings.threshold)
    least = count_least(instruction.clients, settings.threshold)
    named = ConfigRecord({"exchange": EXCHANGE})
    reply = ask(KEYS, RecordDict({CONFIG: config, SECURE: named}))
    group = range(OWN + 1, OWN + group_size(instruction.clients, settings.neighbours))
    others = {place: ClientMachine(EXCHANGE) for place in group}
    keys = {place: machine.advertise() for place, machine in others.items()}
    ask(SHARES, RecordDict({CONFIG: config, SECURE: pack_peers(EXCHANGE, OWN, keys)}))
    keys[OWN] = unpack_keys(secure_of(reply.content))
    sealed = {}
    for place, machine in others.items():
        peers = {other: known for other, known in keys.items() if other != place}
        sealed[place] = machine.deal(place, peers, needed, least).sealed[OWN]
    everybody = list(range(OWN, OWN + instruction.clients))
    dealers = ConfigRecord({"exchange": EXCHANGE, "dealers": everybody})
    ask(kind, RecordDict({**content, SECURE: dealers}))
    staying = pack_staying(EXCHANGE, everybody, sealed)
    ask(UNMASK, RecordDict({CONFIG: config, SECURE: staying}))
