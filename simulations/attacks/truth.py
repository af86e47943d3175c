"""What the simulation knows and an attacker does not: a client's rows, its heads of a round.

An attack's result is scored against it. The other clients' rows stand in for the auxiliary data of
an attacker, who has rows of the same kind from somewhere.
"""

import json
from collections.abc import Mapping

import numpy as np
import torch

from client.training import Trainer
from common.agreement import input_shapes
from common.clients import open_clients
from common.dataset import ClientData, Rows
from common.encoding import encode
from common.errors import ConfigError
from common.wire import FloatArray
from simulations.attacks.wire import EVERYBODY, Wire

CPU = torch.device("cpu")


def client_data(wire: Wire, client: str) -> ClientData:
    """Read a client's rows as it trained on them.

    Raises:
        FedMTLError: the run's data cannot be read any more.
    """
    source = open_clients(wire.experiment)
    return encode(source.read(client), wire.experiment, wire.agreement)


def trained_rows(wire: Wire, number: int, client: str) -> Rows:
    """Get the rows that an update was computed from: one client's, or those of all in a round."""
    names = wire.clients(number) if client == EVERYBODY else [client]
    return Rows.join([client_data(wire, name).train for name in names])


def other_rows(wire: Wire, number: int, client: str) -> Rows:
    """Get rows that the update was not computed from: an attacker's auxiliary data.

    Held-out rows of those who took part, which nobody trained on, and all rows of the others.
    """
    victims = set(wire.clients(number)) if client == EVERYBODY else {client}
    parts = []
    for name in open_clients(wire.experiment).names:
        data = client_data(wire, name)
        splits = ("validation", "test") if name in victims else ("train", "validation", "test")
        parts += [data.splits[split] for split in splits if len(data.splits[split])]
    if not parts:
        raise ConfigError(
            "an attack needs other rows than the client's to compare with, and there are none: "
            "give the run more clients, or data.test rows"
        )
    return Rows.join(parts)


def replay(wire: Wire, number: int, client: str) -> tuple[dict[str, FloatArray], Trainer]:
    """Work out the heads that a client had before a round, by training it again from the start.

    Runs repeat exactly, so these are the heads that it had, where it trains without noise.

    Returns:
        What it kept at home before the round, as `client.own_arrays` names it; and the trainer.
    """
    data, trainer = client_data(wire, client), make_trainer(wire)
    own: dict[str, FloatArray] = {}
    for earlier in [n for n in wire.rounds if n < number]:
        if client in wire.clients(earlier):
            train_again(wire, trainer, data, earlier, own, client)
            own = {n: np.array(a) for n, a in trainer.own_arrays(data.tasks).items()}
    if not own:  # before its first round
        trainer.load(wire.message(number, client), own)
        own = {n: np.array(a) for n, a in trainer.own_arrays(data.tasks).items()}
    return own, trainer


def train_again(
    wire: Wire,
    trainer: Trainer,
    data: ClientData,
    number: int,
    own: Mapping[str, FloatArray],
    receiver: str,
) -> dict[str, FloatArray]:
    """Train a client for a round as the run did; returns the trunk that comes of it.

    Args:
        wire: of the run.
        trainer: is lent to the client.
        data: its rows.
        number: the round.
        own: what it kept at home before.
        receiver: a client that got the message which it trains by; `EVERYBODY` for the first.
    """
    config = wire.config(number)
    weights = dict(zip(config["weight-tasks"], config["weights"], strict=True))
    memory = json.loads(config.get("memory") or "{}")
    trainer.load(wire.message(number, receiver), own)
    learners = trainer.begin(data, weights, number, memory)
    trainer.complete(learners)
    return trainer.sent_arrays(learners)


def make_trainer(wire: Wire) -> Trainer:
    """Make the clients' trainer, as on their own machines, for a CPU."""
    return Trainer(wire.experiment, input_shapes(wire.agreement), CPU)
