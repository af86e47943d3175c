"""Clients of an audit: each sends a direction of its own, or by the toss of a coin nothing.

Andrew et al., "One-shot empirical privacy estimation for federated learning", ICLR 2024: random
directions in many dimensions are nearly orthogonal to one another and to all that honest clients
send. A canary takes part as any client does; one that is out sends the trunk as it came, which is
what a client that is not there adds to the sum. Where the server clips, or clips again, a canary
is a client that did not clip; under local noise it protects what it sends as others do.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client.protection import Protection
from common.errors import ConfigError
from common.experiment import Experiment
from common.preparation import PreparedClient
from common.privacy.client_level import client_level
from common.seeding import numpy_generator
from common.wire import FloatArray, Instruction
from simulations.hostile import Hostile

PREFIX = "canary-"
ROWS = 4  # a canary's own training rows: it has to train something, which nobody sees
SAFE = 0.999  # of max-norm, that a canary sends where updates are added securely
TIMES = 100.0  # of max-norm, that a canary sends where the server clips
MOST_NUMBERS = 2**28  # of all directions together


class CanaryClients(Hostile):
    """Canaries of one run, and what can be seen of them.

    Args:
        experiment: of the run, canaries counted in.
        names: of the canaries.

    Attributes:
        names: as given.
        times: of max-norm, that a canary sends.
        included: bool [m], by fair coins.
        directions: float32 [m, d], orthonormal where d allows; drawn when the first round shows d.
        taken: [m], rounds that each took part in.
        scores: [m], what the rounds' trunks show of each direction: ``sum_t <c, w_t+1 - w_t>`` over
            the rounds that it took part in. Under local noise the server sees each update, and it
            is ``sum_t <c, u_t>``.
        lengths: [m], root of the sum of squared lengths of what was multiplied.
    """

    def __init__(self, experiment: Experiment, names: tuple[str, ...]) -> None:
        super().__init__("canary", frozenset(names))
        self.names, self.seed, self.level = names, experiment.seed, client_level(experiment)
        self.places = {name: place for place, name in enumerate(names)}
        coins = numpy_generator(self.seed, "audit", "coins")
        self.included = coins.random(len(names)) < 0.5
        self.directions: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self.taken = np.zeros(len(names), np.int64)
        self.scores, self._squares = np.zeros(len(names)), np.zeros(len(names))
        self.protection = Protection(experiment, self.seed)
        # What is added securely, nobody clips again; a little less is safe from rounding.
        secure = experiment.privacy.secure_aggregation is not None
        self.times = SAFE if secure else 1.0 if self.is_local else TIMES
        self._before: FloatArray | None = None
        self._first: FloatArray | None = None
        self._asked: set[int] = set()

    @property
    def is_local(self) -> bool:
        """Whether each client adds its own noise, so that its update alone can be looked at."""
        return self.level.noise == "client"

    @property
    def lengths(self) -> NDArray[np.float64]:
        """See the class."""
        return np.sqrt(self._squares)

    def distort(self, client: str, before: FloatArray, row: FloatArray) -> FloatArray:
        """Make up what a client sends: an honest one's `row` itself."""
        self.observe(before)
        if client not in self.places:
            return row
        place = self.places[client]
        self.taken[place] += 1
        self._asked.add(place)
        length = self.level.max_norm * self.times
        sent: FloatArray = (
            before + np.float32(length) * self.directions[place] * self.included[place]
        )
        if self.is_local:
            # The count of rounds names the noise; who trains comes from the seed as well.
            instruction = Instruction("", round=int(self.taken[place]))
            sent = self.protection.protect(sent[None], before, [client], instruction)[0]
            self._add(np.array([place]), sent - before)
        return sent

    def observe(self, trunk: FloatArray) -> None:
        """Look at a trunk, [d], that was sent to a round's clients, or that the run ended with."""
        if self._before is None:
            self._first, self._before = trunk.copy(), trunk.copy()
            self.directions = draw_directions(len(self.names), len(trunk), self.seed)
        elif not np.array_equal(trunk, self._before):
            if not self.is_local:
                self._add(np.array(sorted(self._asked), np.int64), trunk - self._before)
            self._before, self._asked = trunk.copy(), set()

    def _add(self, places: NDArray[np.int64], change: FloatArray) -> None:
        self.scores[places] += self.directions[places] @ change
        self._squares[places] += float(np.square(change, dtype=np.float64).sum())

    def moved(self) -> FloatArray:
        """Get what the rounds have made of the first trunk, less that trunk, [d]."""
        if self._before is None or self._first is None:
            raise RuntimeError("no round has begun")
        return self._before - self._first


def draw_directions(count: int, size: int, seed: int) -> NDArray[np.float32]:
    """Draw unit vectors, uniform on the sphere and orthogonal to one another where that can be.

    Args:
        count: m.
        size: d.
        seed: of the run.

    Returns:
        [m, d].

    Raises:
        ConfigError: they need too much memory.
    """
    if count * size > MOST_NUMBERS:
        raise ConfigError(
            f"--canaries must be at most {MOST_NUMBERS // size} for a trunk of {size:,} "
            f"parameters, got {count}; lower it"
        )
    drawn = numpy_generator(seed, "audit", "directions").standard_normal((count, size))
    if count <= size:
        drawn = np.linalg.qr(drawn.T)[0].T * np.sign(drawn[:, :1])
    else:
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return np.ascontiguousarray(drawn, np.float32)


def add_canaries(
    prepared: Mapping[str, PreparedClient], count: int
) -> tuple[dict[str, PreparedClient], tuple[str, ...]]:
    """Put canary clients behind all others, each with some rows of the first one.

    Returns:
        All clients' rows, and the canaries' names.

    Raises:
        ConfigError: a client is called as a canary would be.
    """
    names = tuple(f"{PREFIX}{number:06d}" for number in range(count))
    if taken := sorted({*names} & {*prepared}):
        raise ConfigError(
            f"no client may be called '{taken[0]}', which is a canary's name; rename it"
        )
    first = next(iter(prepared.values()))
    train = first.splits["train"][:ROWS]
    held = {name: t for name, t in first.targets.items() if t.labelled[train].any()}
    none = train[:0]
    splits = {"train": train, "validation": none, "test": none}
    rows = {name: replace(first, name=name, splits=splits, targets=held) for name in names}
    return {**prepared, **rows}, names


def keep_rates(experiment: Experiment, clients: int, canaries: int) -> Experiment:
    """Let a round ask the same share of the clients with the canaries among them."""
    wanted = experiment.federation.clients_per_round
    if wanted == "all":
        return experiment
    more = min(round(wanted * (clients + canaries) / clients), clients + canaries)
    federation = experiment.federation.model_copy(update={"clients_per_round": more})
    return experiment.model_copy(update={"federation": federation})
