"""Reads what ``fedmtl simulate --record-wire`` wrote: what an attacker who sees the wire has."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from common.agreement import Agreement, Description
from common.cells import list_names
from common.errors import CheckpointError, ConfigError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from common.natural_order import natural_sort
from common.sharing import divide_beside
from common.wire import ARRAYS, EXAMPLES, FloatArray
from simulations.wire_record import AGREEMENT, FOLDER, INDEX

Named = dict[str, NDArray[Any]]
EVERYBODY = ""  # in place of a client's name: the mean of a round
MEAN_INSTEAD = "attack the round's mean: leave --client out"


@dataclass(frozen=True)
class Reply:
    """What one client answered.

    Attributes:
        client: its name.
        arrays: names as they came -> values, whatever a mechanism made of them.
        metrics: sums and counts.
        config: what else came.
        sent: place, among what was sent in the exchange, of what it answers.
    """

    client: str
    arrays: Named
    metrics: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    sent: int = 0


@dataclass(frozen=True)
class Wire:
    """The recorded exchanges of one run.

    Attributes:
        run: the run folder.
        experiment: of the run.
        agreement: what all rows are encoded by.
        lines: of the index, in the order of the exchanges.
    """

    run: Path
    experiment: Experiment
    agreement: Agreement
    lines: Sequence[Mapping[str, Any]]

    @cached_property
    def descriptions(self) -> dict[str, Description]:
        """What the clients said of themselves: name -> description."""
        found = {}
        for line in self.lines:
            for reply in line["replies"]:
                if text := reply.get("config", {}).get("description"):
                    found[str(reply["client"])] = Description.from_json(text)
        return found

    @cached_property
    def _trainings(self) -> dict[int, int]:
        """Round -> place of its exchange; of a round that was repeated, the last."""
        places = [i for i, line in enumerate(self.lines) if line["kind"] == "train"]
        return {int(self.lines[place]["round"]): place for place in places}

    @property
    def rounds(self) -> list[int]:
        """Numbers of the recorded rounds."""
        return sorted(self._trainings)

    @property
    def is_summed_securely(self) -> bool:
        """Whether no single client's update can be seen."""
        return self.experiment.privacy.secure_aggregation is not None

    def clients(self, number: int) -> list[str]:
        """Name the clients that answered in a round with arrays."""
        replies = self._exchange(number)["replies"]
        return natural_sort(str(r["client"]) for r in replies if "error" not in r)

    def config(self, number: int) -> Mapping[str, Any]:
        """Get the instruction of a round, without experiment and agreement."""
        config: Mapping[str, Any] = self._exchange(number)["sent"][0]["config"]
        return config

    def sent(self, number: int, client: str = EVERYBODY) -> dict[str, FloatArray]:
        """Get what was sent to a client in a round, what travels beside the trunk left out."""
        return divide_beside(self.message(number, client))[0]

    def message(self, number: int, client: str = EVERYBODY) -> dict[str, FloatArray]:
        """Get all arrays that were sent to a client in a round."""
        place = 0 if client == EVERYBODY else self.reply(number, client).sent
        return self._sent(self._trainings_of(number), place)

    def reply(self, number: int, client: str) -> Reply:
        """Get a client's reply of a round.

        Raises:
            ConfigError: there is none.
        """
        line, names = self._exchange(number), self.clients(number)
        if client not in names:
            raise ConfigError(
                f"--client must name one of the {len(names)} clients that answered in round "
                f"{number}, got '{client}'; there are {list_names(names)}"
            )
        for place, reply in enumerate(line["replies"]):
            if reply["client"] == client and "error" not in reply:
                arrays = self._arrays(line, f"reply/{place}/{ARRAYS}/")
                sent = reply.get("sent") or 0
                return Reply(client, arrays, reply["metrics"], reply["config"], sent)
        raise RuntimeError("a client that answered has a reply")

    def update(self, number: int, client: str) -> dict[str, FloatArray]:
        """Compute what the server sees as an update: what came minus what was sent.

        Args:
            number: the round.
            client: its name; `EVERYBODY` for the change of what the server sends from this round to
                the next, which all who take part can see.

        Raises:
            ConfigError: there is no such round, no such reply, or nothing that belongs to one
                client, as under secure aggregation.
        """
        if client == EVERYBODY:
            return self.mean_update(number)
        self.refuse_masked(f"the update of client '{client}'", MEAN_INSTEAD)
        sent = self.sent(number, client)
        came = divide_beside(self.reply(number, client).arrays)[0]
        if {n: a.shape for n, a in came.items()} != {n: a.shape for n, a in sent.items()}:
            raise ConfigError(
                f"round {number}: client '{client}' sent other arrays than the trunk, so there is "
                f"no update of its own to attack; {MEAN_INSTEAD}"
            )
        return {name: came[name] - sent[name] for name in sent}

    def refuse_masked(self, what: str, way_out: str) -> None:
        """Refuse to look for what secure aggregation hides.

        Args:
            what: was looked for.
            way_out: what can be done instead.

        Raises:
            ConfigError: the run summed securely.
        """
        if self.is_summed_securely:
            raise ConfigError(
                f"{what} is hidden by privacy.secure-aggregation: the server sees sums over "
                f"clients alone; {way_out}"
            )

    def mean_update(self, number: int) -> dict[str, FloatArray]:
        """Compute the change of the shared trunk over a round.

        Raises:
            ConfigError: the next trunk was not recorded, or the round sent several.
        """
        place = self._trainings_of(number)
        if len(self.lines[place]["sent"]) > 1:
            raise ConfigError(
                f"round {number} sent several trunks, so it has no mean; name a client: --client"
            )
        before = divide_beside(self._sent(place, 0))[0]
        for later in range(place + 1, len(self.lines)):
            after = divide_beside(self._sent(later, 0))[0] if self.lines[later]["sent"] else {}
            if after.keys() == before.keys():
                return {name: after[name] - before[name] for name in before}
        raise ConfigError(
            f"round {number} is the last that was recorded; choose an earlier --round"
        )

    def rows_of(self, number: int, client: str) -> int | None:
        """Tell how many training rows a client has, or all of a round; None where it is not told.

        Only what the wire tells: the count of the reply, which is 1 where counts are withheld.
        """
        if self.experiment.privacy.counts == "withheld":
            return None
        names = self.clients(number) if client == EVERYBODY else [client]
        counts = [self._exchange_reply(number, name)["metrics"].get(EXAMPLES) for name in names]
        return None if None in counts or not all(counts) else int(sum(counts))

    def tasks_of(self, client: str) -> tuple[str, ...]:
        """Name the tasks that a client said it has labels of; all where it did not say."""
        told = self.descriptions.get(client)
        held = tuple(t for t in self.experiment.tasks if told and told.labelled.get(t, 0) > 0)
        return held or tuple(self.experiment.tasks)

    def _exchange(self, number: int) -> Mapping[str, Any]:
        return self.lines[self._trainings_of(number)]

    def _exchange_reply(self, number: int, client: str) -> Mapping[str, Any]:
        replies: Sequence[Mapping[str, Any]] = self._exchange(number)["replies"]
        return next(r for r in replies if r["client"] == client and "error" not in r)

    def _trainings_of(self, number: int) -> int:
        if number not in self._trainings:
            last = f"1 to {self.rounds[-1]}" if self.rounds else "none"
            raise ConfigError(f"--round must be a recorded round ({last}), got {number}")
        return self._trainings[number]

    def _sent(self, place: int, which: int) -> Named:
        return self._arrays(self.lines[place], f"sent/{which}/{ARRAYS}/")

    def _arrays(self, line: Mapping[str, Any], prefix: str) -> Named:
        path = self.run / FOLDER / f"{line['number']:06d}.safetensors"
        try:
            found = _load(path)
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read ({type(error).__name__}); record the run anew"
            ) from error
        named = {n.removeprefix(prefix): a for n, a in found.items() if n.startswith(prefix)}
        return {name: named[name] for name in sorted(named)}


def open_wire(run: Path, data: str | None = None) -> Wire:
    """Open the record of a run.

    Args:
        run: the run folder.
        data: where the raw data is, if not where the experiment says.

    Raises:
        CheckpointError: this is no run folder, or nothing was recorded, or it cannot be read.
    """
    if not (run / "experiment.toml").is_file():
        raise CheckpointError(f"{run} is no run folder: it has no experiment.toml")
    folder = run / FOLDER
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{run} has no record of what travelled; run it again: fedmtl simulate --record-wire"
        )
    experiment = load_experiment(str(run / "experiment.toml"), data_path=data)
    try:
        text = (folder / INDEX).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        agreement = Agreement.from_json((folder / AGREEMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} cannot be read ({type(error).__name__}); record the run anew"
        ) from error
    return Wire(run, experiment, agreement, lines)


_KEPT: dict[Path, Named] = {}  # the exchange that was read last


def _load(path: Path) -> Named:
    if path not in _KEPT:
        _KEPT.clear()
        _KEPT[path] = load_file(path)
    return _KEPT[path]


def flatten(arrays: Mapping[str, FloatArray], names: Sequence[str]) -> FloatArray:
    """Lay named arrays out as one row, [P]."""
    flat: FloatArray = np.concatenate([arrays[name].reshape(-1) for name in names])
    return flat
