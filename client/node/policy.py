"""What the owner of a node allows: one TOML file on the node, which no server can change.

A message is held against it before anything is read or trained, a reply before it leaves
(`client.node.guard`). Whatever the file does not mention has the defaults below.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from common.errors import ConfigError, PolicyError
from common.experiment import Experiment
from common.privacy.accounting import Event, epsilon_of
from common.privacy.client_level import client_events
from common.privacy.ledger import POPULATION, SLACK, budgets, population
from common.settings import Finite, Names, Settings

if TYPE_CHECKING:
    from common.wire import Instruction

Leaving = Literal["trunk", "training-sums", "evaluation-sums", "column-sums", "categories"]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Experiments(Settings):
    """Which experiments a node serves, and for how long."""

    names: Names = Field((), description="Experiments allowed, by name; empty allows any.")
    fingerprints: Names = Field(
        (),
        description="Experiments allowed, by fingerprint, as `fedmtl node check` prints it: it "
        "covers every setting a result depends on. Empty allows any.",
    )
    most_rounds: int | None = Field(None, ge=1, description="Rounds of one run.")
    most_rounds_in_all: int | None = Field(
        None,
        ge=1,
        description="Rounds that this node answers, over all runs, counted in its state folder; "
        "rounds repeated after a crash count again.",
    )
    most_evaluations_in_all: int | None = Field(
        None,
        ge=1,
        description="Messages to evaluate that this node answers, counted likewise: a run has one "
        "at its end, and one a round under evaluation.by = 'message'.",
    )
    least_clients: int = Field(
        1, ge=1, description="Clients that take part in a round, as the server says."
    )


class Protections(Settings):
    """What an experiment must do for privacy."""

    secure_aggregation: bool = Field(False, description="The server must see sums alone.")
    least_noise_multiplier: Finite | None = Field(
        None,
        gt=0,
        description="Differential privacy with at least so much noise, in units of max-norm, in "
        "everything that costs privacy. Noise that the server adds counts: whether it does, a node "
        "cannot see.",
    )
    largest_epsilon: Finite | None = Field(
        None,
        gt=0,
        description="Differential privacy with at most this budget over all runs of this node, for "
        "clients and for rows each, as the ledger in its state folder says. An experiment whose "
        "own budget, or whose rounds, would cost more is not served at all.",
    )
    delta: Finite = Field(1e-5, gt=0, lt=1, description="Of largest-epsilon.")

    def limits(self) -> dict[str, float]:
        """Say what the client's own code must know, as keys of a node's config."""
        given: dict[str, float] = {}
        if self.largest_epsilon is not None:
            given |= {"largest-epsilon": self.largest_epsilon, "delta": self.delta}
        if self.least_noise_multiplier is not None:
            given |= {"least-noise-multiplier": self.least_noise_multiplier}
        return given


class Leaves(Settings):
    """What may leave the node; names, counts and reasons of refusals always may."""

    allow: Annotated[tuple[Leaving, ...], Field(strict=False)] = Field(
        ("trunk", "training-sums", "evaluation-sums", "column-sums", "categories"),
        description="trunk: after local training; training-sums, evaluation-sums: summed losses "
        "and metrics; column-sums: count, sum and squares of each column; categories: those that "
        "occur. Sums that are not allowed are taken out of a reply; without the others there is "
        "no reply.",
    )
    smallest_group: int = Field(
        1,
        ge=1,
        description="Rows that any sum must be over; sums over fewer are taken out of a reply.",
    )
    most_bytes: int | None = Field(None, ge=1, description="Largest reply.")


class Code(Settings):
    """Whose client code runs on the node."""

    run: Literal["installed", "bundle"] = Field(
        "installed",
        description="installed: that of this node's own package, whatever the server sends; "
        "bundle: the server's.",
    )
    bundles: Annotated[tuple[Hash, ...], Field(strict=False)] = Field(
        (), description="Under run = 'bundle': SHA-256 hashes of the bundles allowed."
    )
    network: bool | None = Field(
        None,
        description="Whether the process that runs it keeps the network; false needs Linux. "
        "Default: installed code keeps it, a bundle's does not.",
    )
    most_seconds: float = Field(
        0.0, ge=0, description="Longest time for one message; 0 for any time."
    )

    @property
    def keeps_network(self) -> bool:
        """Whether the worker keeps the network."""
        return self.run == "installed" if self.network is None else self.network

    @model_validator(mode="after")
    def _names_bundles(self) -> Self:
        if self.run == "bundle" and not self.bundles:
            raise ValueError(
                "run = 'bundle' needs bundles, the hashes of those allowed: `flwr build` makes a "
                "bundle, `sha256sum` its hash"
            )
        if self.run == "installed" and self.bundles:
            raise ValueError("bundles are for run = 'bundle'; remove them, or change run")
        return self


class Policy(Settings):
    """An owner's policy."""

    experiments: Experiments = Experiments()
    protections: Protections = Protections()
    leaves: Leaves = Leaves()
    code: Code = Code()

    def check(self, instruction: "Instruction", experiment: Experiment, kind: str) -> None:
        """Hold a message against the policy.

        Args:
            instruction: what came with the message.
            experiment: parsed from it.
            kind: "query", "train" or "evaluate".

        Raises:
            PolicyError: names the rule, what it allows and what was asked.
        """
        allowed, fingerprint = self.experiments, experiment.fingerprint()
        if allowed.names and experiment.name not in allowed.names:
            _refuse("experiments.names", ", ".join(allowed.names), f"'{experiment.name}'")
        if allowed.fingerprints and fingerprint not in allowed.fingerprints:
            _refuse("experiments.fingerprints", ", ".join(allowed.fingerprints), fingerprint)
        rounds = max(experiment.federation.rounds, instruction.round)
        if allowed.most_rounds is not None and rounds > allowed.most_rounds:
            _refuse("experiments.most-rounds", allowed.most_rounds, rounds)
        if kind != "query" and instruction.clients < allowed.least_clients:
            _refuse("experiments.least-clients", allowed.least_clients, instruction.clients)
        if kind == "train" and "trunk" not in self.leaves.allow:
            _refuse("leaves.allow", ", ".join(self.leaves.allow) or "nothing", "a trained trunk")
        self._check_protections(instruction, experiment)

    def check_bundle(self, digest: str) -> None:
        """Hold a bundle against the list, where bundles run at all.

        Raises:
            PolicyError: it is not on it.
        """
        if self.code.run == "bundle" and digest not in self.code.bundles:
            _refuse("code.bundles", f"{len(self.code.bundles)} listed", digest)

    def check_ledger(self, counts: Mapping[str, int], kind: str) -> None:
        """Hold what was answered so far against the most that is allowed.

        Args:
            counts: "rounds" and "evaluations" over all runs.
            kind: of the message.

        Raises:
            PolicyError: there have been as many.
        """
        allowed = self.experiments
        for counted, name, most in (
            ("train", "rounds", allowed.most_rounds_in_all),
            ("evaluate", "evaluations", allowed.most_evaluations_in_all),
        ):
            if kind == counted and most is not None and counts[name] >= most:
                rule = f"experiments.most-{name}-in-all"
                _refuse(rule, most, f"one more than {counts[name]}")

    def _check_protections(self, instruction: "Instruction", experiment: Experiment) -> None:
        """Hold the experiment's mechanisms against those that must be there.

        What depends on the node's rows is left to its client, which knows them.
        """
        needed, privacy = self.protections, experiment.privacy
        if needed.secure_aggregation and privacy.secure_aggregation is None:
            _refuse("protections.secure-aggregation", "true", "none")
        least, most = needed.least_noise_multiplier, needed.largest_epsilon
        if not budgets(experiment) and least is not None:
            _refuse("protections.least-noise-multiplier", f"{least:g}", "no noise")
        if not budgets(experiment) and most is not None:
            _refuse("protections.largest-epsilon", f"{most:g}", "no privacy budget")
        planned = planned_events(experiment, instruction)
        noise = min((e.noise_multiplier for events in planned.values() for e in events), default=0)
        if least is not None and planned and noise < least:
            _refuse("protections.least-noise-multiplier", f"{least:g}", f"{noise:.4g}")
        if most is not None:
            self._check_epsilon(most, experiment, planned)

    def _check_epsilon(
        self, most: float, experiment: Experiment, planned: Mapping[str, list[Event]]
    ) -> None:
        """Hold what a whole run may cost against the budget."""
        delta, accountant = self.protections.delta, experiment.privacy.accountant
        for unit, budget in budgets(experiment).items():
            asked = budget.epsilon
            if asked is None or budget.delta > delta:  # its own budget says nothing of this delta
                known = unit == "client" and unit in planned
                asked = epsilon_of(planned[unit], delta, accountant) if known else None
            if asked is not None and asked > most * (1 + SLACK):
                allowed = f"{most:g} at delta {delta:g}"
                _refuse("protections.largest-epsilon", allowed, f"{asked:.4g} for each {unit}")


def planned_events(experiment: Experiment, instruction: "Instruction") -> dict[str, list[Event]]:
    """List what a whole run would cost a client, as far as its rows need not be known for that.

    Returns:
        Unit -> events; of examples one, with the noise that the experiment sets, if it does.
    """
    privacy, planned = experiment.privacy, dict[str, list[Event]]()
    level, told = privacy.client_level, POPULATION in instruction.privacy
    if level is not None and (told or not level.amplification):  # a query does not tell
        clients, rounds = population(instruction.privacy), experiment.federation.rounds
        planned["client"] = client_events(experiment, clients, rounds)
    if privacy.example_level is not None and privacy.example_level.noise_multiplier is not None:
        planned["example"] = [Event(privacy.example_level.noise_multiplier)]
    return planned


def _refuse(rule: str, allowed: object, asked: object) -> None:
    raise PolicyError(
        f"the node's owner does not allow it ({rule}): allowed {allowed}, asked {asked}"
    )


def read_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigError: it cannot be read, or is no policy; a line for every problem.
    """
    try:
        return Policy.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"policy {path} cannot be read: {reason}; correct --policy") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"policy {path} is no TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(path, error))) from error


def _problems(path: Path, error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        got = json.dumps(problem["input"], default=str)[:60]
        lines.append(f"policy {path}: {key}: {problem['msg']}, got {got}")
    return lines
