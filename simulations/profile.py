"""Where a round's time goes: what `fedmtl simulate --profile` measures.

While a profile is taken, the functions of `SECTIONS` are replaced by wrappers that tell the time,
and put back at its end; without a profile, the code that runs knows nothing of it. Every moment
belongs to the innermost section under way, so the sections of a round add up to its wall time.

A round lasts from the report of the one before, round 1 from the start of the loop, to its own:
its line of metrics.jsonl and its checkpoint are in it, the last evaluation of a run is not.
"""

import functools
import importlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from server.checkpoint import replace_text, told_where
from server.figures import Figures
from server.watch import Listener

FILE = "profile.json"  # in the run folder
REST = "rest"
# Section -> functions, each written "module:attribute.path" with the module that looks it up.
SECTIONS: dict[str, tuple[str, ...]] = {
    "data": (  # reading clients' rows once, shuffling them, cutting batches
        "client.session:Session.client",
        "simulations.residents:Residents.__init__",
        "client.cohort:epoch_orders",
        "client.cohort:Steps.take",  # less the steps themselves: inputs, targets, what rows count
        "client.training:Trainer.alone",
        "client.autograd:row_patterns",
        "client.autograd:epoch_order",
        "common.dataset:Rows.select",
    ),
    "forward": (  # outputs and losses, in training
        "client.stacked_model:StackedModel.outputs",
        "client.cohort:Steps._sum_losses",
        "client.batch_gradient:BatchGradient._forward",
    ),
    "backward": (
        "client.stacked_model:StackedModel.step",  # less its forward
        "client.batch_gradient:BatchGradient.find",  # and the weighting of losses and gradients
    ),
    "optimiser": (
        "client.phases:Phase.optimiser",
        "client.optimisers:PlainSGD.weight",
        "client.optimisers:PlainSGD.vector",
        "client.optimisers:SGD.step",
        "client.adam:Adam.step",
        "client.torch_optimisers:TorchOptimiser.step",
    ),
    "records": (  # arrays and sums into messages and out of them; at batched, into rows and out
        "common.wire:Instruction.to_record",
        "server.exchange:pack_arrays",
        "server.exchange:unpack_arrays",
        "server.exchange:MessageExchange._outcome",
        "server.exchange:BulkExchange._outcome",
        "server.strategy:TrunkStrategy._messages",
        "server.replies:ReplyReader.read",
        "server.strategy:pack_arrays",
        "server.strategy:unpack_arrays",
        "simulations.loopback:LoopbackGrid.deliver",  # and what a client does in no section
        "simulations.residents:Residents.train",
        "simulations.residents:Residents.evaluate",
    ),
    "aggregation": (
        "server.strategy:TrunkStrategy.aggregate_train",
        "server.strategy:TrunkStrategy.aggregate_evaluate",
        "server.strategy:TrunkStrategy.combine",
    ),
    "evaluation": (
        "client.job:Job.evaluate",
        "simulations.residents:Residents._evaluate",
    ),
    "checkpoint": ("server.checkpoint:Checkpoints.save",),
    "figures": (
        "server.loop:split_figures",
        "server.run_folder:RunFolder.append",
    ),
    REST: (  # time in no section, and functions that a section calls but that are no part of it
        "client.job:open_session",
        "simulations.residents:open_session",
        "client.training:Trainer.complete",
        "client.algorithms.algorithm:LocalAlgorithm.train",
    ),
}
WHOLE = frozenset({"evaluation"})  # keep what they call: its forward would hide that of training
START = "server.loop:RoundLoop.run"

Function = Callable[..., Any]
Clock = Callable[[], float]


def read_clock() -> float:
    """Tell the time in seconds; what a GPU was given to do is waited for."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Lap:
    """What one or several rounds took.

    Attributes:
        rounds: their number.
        total: their wall time in seconds.
        seconds: section -> its part of it.
        calls: section -> calls of its functions.
    """

    rounds: int = 0
    total: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SECTIONS, 0.0))
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SECTIONS, 0))

    def add(self, other: "Lap") -> None:
        """Add what other rounds took."""
        self.rounds += other.rounds
        self.total += other.total
        for section in SECTIONS:
            self.seconds[section] += other.seconds[section]
            self.calls[section] += other.calls[section]

    def describe(self) -> Figures:
        """Write the sections with their shares of the whole."""
        sections = {
            name: {
                "seconds": seconds,
                "calls": None if name == REST else self.calls[name],
                "share": seconds / self.total,
            }
            for name, seconds in self.seconds.items()
        }
        return {"rounds": self.rounds, "seconds": self.total, "sections": sections}


class Stopwatch:
    """Divides time among sections: every moment belongs to the innermost one under way.

    Args:
        now: tells the time in seconds.

    Attributes:
        section: the innermost one under way.
    """

    def __init__(self, now: Clock) -> None:
        self.now = now
        self.section = REST
        self._outer: list[str] = []
        self._lap, self._begun = Lap(), now()
        self._since = self._begun  # what came before is charged

    def enter(self, section: str) -> None:
        """Begin a section inside the one under way."""
        self._charge()
        self._outer.append(self.section)
        self.section = section
        self._lap.calls[section] += 1

    def leave(self) -> None:
        """End the innermost section."""
        self._charge()
        self.section = self._outer.pop()

    def take_lap(self) -> Lap:
        """Take what a round took: time and calls since the last lap."""
        self._charge()
        lap, self._lap = self._lap, Lap()
        lap.rounds, lap.total = 1, self._since - self._begun
        self._begun = self._since
        return lap

    def _charge(self) -> None:
        now = self.now()
        self._lap.seconds[self.section] += now - self._since
        self._since = now


class Profile:
    """Time and calls per section of a sitting's rounds.

    Args:
        watch: divides the time.
        listener: told of every round; its time is part of the round's.
    """

    def __init__(self, watch: Stopwatch, listener: Listener | None) -> None:
        self.watch, self.listener = watch, listener
        self.first_round: int | None = None
        self.first, self.others = Lap(), Lap()

    def on_round(self, line: Figures) -> None:
        """Take a round's lap."""
        if self.listener:
            self.listener(line)
        lap = self.watch.take_lap()
        if self.first_round is None:
            self.first_round, self.first = line["round"], lap
        else:
            self.others.add(lap)

    def describe(self) -> Figures:
        """Write what profile.json holds: the first round, which warms up, apart from the others."""
        return {
            "from-round": self.first_round,
            "rounds": self.first.rounds + self.others.rounds,
            "first": self.first.describe() if self.first.rounds else None,
            "others": self.others.describe() if self.others.rounds else None,
        }


@contextmanager
def take_profile(listener: Listener | None, now: Clock = read_clock) -> Iterator[Profile]:
    """Measure the rounds that run in this context, in this process.

    Yields:
        The profile, whose `on_round` must be told of every round.
    """
    watch = Stopwatch(now)

    def starts(function: Function) -> Function:
        @functools.wraps(function)
        def from_here(*args: Any, **options: Any) -> Any:
            watch.take_lap()
            return function(*args, **options)

        return from_here

    makers: dict[str, Callable[[Function], Function]] = {START: starts}
    for section, places in SECTIONS.items():
        makers |= dict.fromkeys(places, functools.partial(timed, section=section, watch=watch))
    with replaced(makers):
        yield Profile(watch, listener)


def timed(function: Function, section: str, watch: Stopwatch) -> Function:
    """Make a function's time a section's."""

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        if watch.section in WHOLE:
            return function(*args, **options)
        watch.enter(section)
        try:
            return function(*args, **options)
        finally:
            watch.leave()

    return wrapper


@contextmanager
def replaced(makers: Mapping[str, Callable[[Function], Function]]) -> Iterator[None]:
    """Replace functions, each by what its maker makes of it, until the context ends.

    Args:
        makers: place -> from the function there to the one that replaces it.
    """
    originals = []
    try:
        for place, make in makers.items():
            owner, name = find_place(place)
            original = vars(owner)[name]
            originals.append((owner, name, original))
            setattr(owner, name, make(original))
        yield
    finally:
        for owner, name, original in reversed(originals):
            setattr(owner, name, original)


def find_place(place: str) -> tuple[Any, str]:
    """Find the module or class that holds a function, and the function's name there.

    >>> find_place("json:JSONDecoder.decode")
    (<class 'json.decoder.JSONDecoder'>, 'decode')
    """
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name


def write_profile(run: Path, profile: Figures) -> None:
    """Write profile.json into a run folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = run / FILE
    with told_where(path):
        replace_text(path, json.dumps(profile, indent=1))


def read_profile(run: Path) -> Figures:
    """Read a run folder's profile.json."""
    profile: Figures = json.loads((run / FILE).read_text(encoding="utf-8"))
    return profile
