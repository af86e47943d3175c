"""The schema of an experiment: one TOML file describes one experiment completely.

Every table of the file is a frozen pydantic model of `common.sections`; unknown keys are refused.
Files and overrides are read by `common.experiment_file`. Keys are written in kebab-case in TOML
(``clients-per-round``) and in snake_case in Python (``clients_per_round``).

Where a refusal goes, first match:

- a value that is wrong by itself: the bounds of its field (`common.experiment_problems` words it);
- two keys of one table: a validator of that table;
- a method's options, or what a method needs: the method (`common.methods`);
- whatever protection cannot allow: `common.privacy.problems`;
- a setting that changes nothing beside others: `common.idle_settings`;
- what else does not go together: the module of the table whose key the line begins with:
  `common.training_problems`, `common.evaluation_problems`, and for the trunk
  `common.ready_models` (which model it begins with), `common.pretrained.problems` (how it starts
  and what of it trains);
- what only rows can tell: `common.preparation`; only a machine or an engine: where it is chosen.

Each is a function of the experiment that gives lines, so that a user reads all of them at once.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS
from common.availability import seal, trace_problems
from common.evaluation_problems import evaluation_problems
from common.fingerprint import fingerprint
from common.idle_settings import idle_settings
from common.methods import Method, method_problems
from common.optimisers.table import OPTIMISERS
from common.pretrained.problems import pretrained_problems
from common.privacy.problems import privacy_problems
from common.privacy.settings import Privacy
from common.ready_models import ready_model_problems
from common.schedules.table import SCHEDULES
from common.sections.federation import Evaluation, Federation
from common.sections.model import Loss, Trunk
from common.sections.rows import WITH_CLASSES, Data, Input, Partition, Task
from common.sections.training import Training
from common.settings import Settings
from common.strategies import STRATEGIES
from common.training_problems import training_problems
from common.weighting.table import WEIGHTINGS

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Settings that name a method -> its table, and the key beside it that holds the method's options.
METHODS: dict[str, tuple[Mapping[str, Method], str]] = {
    "trunk.sharing": (SHARINGS, "options"),
    "loss.weighting": (WEIGHTINGS, "options"),
    "training.optimiser": (OPTIMISERS, "optimiser-options"),
    "training.schedule": (SCHEDULES, "schedule-options"),
    "training.step-schedule": (SCHEDULES, "step-schedule-options"),
    "federation.algorithm": (ALGORITHMS, "algorithm-options"),
    "federation.strategy": (STRATEGIES, "strategy-options"),
}


class Experiment(Settings):
    """One experiment; see the module's docstring."""

    name: str = Field(
        pattern=rf"^{NAME_PATTERN.pattern}$",
        description="Names run folders; letters, digits, . _ -",
    )
    description: str = Field("", description="For people.")
    seed: int = Field(0, ge=0, description="All randomness derives from it.")
    data: Data
    inputs: dict[str, Input] = Field(min_length=1)
    tasks: dict[str, Task] = Field(min_length=1)
    trunk: Trunk = Trunk()
    loss: Loss = Loss()
    training: Training = Training()
    federation: Federation = Federation()
    evaluation: Evaluation = Evaluation()
    privacy: Privacy = Privacy()
    partition: Partition | None = None

    @field_validator("inputs", "tasks")
    @classmethod
    def _plain_names(cls, tables: dict[str, Any]) -> dict[str, Any]:
        bad = [name for name in tables if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)]
        if bad:
            raise ValueError(f"names are letters, digits, - and _, got {', '.join(map(repr, bad))}")
        return tables

    @model_validator(mode="after")
    def _means_what_it_says(self) -> Self:
        traces = trace_problems(self.federation.availability)
        problems = [*self._leaks(), *idle_settings(self), *training_problems(self)]
        problems += [*ready_model_problems(self), *pretrained_problems(self)]
        problems += [*evaluation_problems(self), *privacy_problems(self), *traces]
        for setting, (table, key) in METHODS.items():
            place, name = setting.replace("-", "_").split(".")
            settings = getattr(self, place)
            options, chosen = getattr(settings, key.replace("-", "_")), getattr(settings, name)
            problems += method_problems(table, setting, chosen, options, self, key)
        if problems:
            raise ValueError(".\n".join(problems))
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data.stratify and self.data.stratify not in self.tasks:
            raise ValueError(
                f"data.stratify must name a task ({', '.join(self.tasks)}), "
                f"got '{self.data.stratify}'"
            )
        if self.data.stratify and self.tasks[self.data.stratify].kind not in WITH_CLASSES:
            raise ValueError("data.stratify must name a multiclass or binary task")
        if self.trunk.architecture == "cnn" and "image" not in {
            i.kind for i in self.inputs.values()
        }:
            raise ValueError("trunk.architecture 'cnn' needs an input of kind 'image'; use 'mlp'")
        skewed = self.partition is not None and self.partition.task_skew != "none"
        if self.partition and skewed and self.partition.tasks_per_client > len(self.tasks):
            raise ValueError(
                f"partition.tasks-per-client must be at most {len(self.tasks)}, the number of "
                f"tasks, got {self.partition.tasks_per_client}"
            )
        return self

    def _leaks(self) -> Iterator[str]:
        """Name inputs that list a target; a pattern never matches one, a name stands for itself."""
        predicted = {column: task for task in self.tasks for column in self.targets(task)}
        for name, settings in self.inputs.items():
            for column in settings.columns:
                if column in predicted:
                    yield (
                        f"inputs.{name}.columns must not name a target, got '{column}', which "
                        f"tasks.{predicted[column]} predicts; remove it from the input"
                    )

    def task_weights(self) -> dict[str, float]:
        """The weight w_t of every task in the loss, before any round."""
        if self.loss.weighting == "manual":
            return {name: task.weight for name, task in self.tasks.items()}
        return dict.fromkeys(self.tasks, 1.0)

    def targets(self, task: str) -> tuple[str, ...]:
        """The target columns of one task."""
        target = self.tasks[task].target or task
        return (target,) if isinstance(target, str) else target

    @property
    def data_seed(self) -> int:
        """The seed that says which client has which rows and tasks, and which rows are its test."""
        return self.seed if self.data.seed is None else self.data.seed

    def for_clients(self) -> str:
        """Write as JSON what clients are sent: all but when which client is there."""
        sealed = {"availability": seal(self.federation.availability)}
        federation = self.federation.model_copy(update=sealed)
        return self.model_copy(update={"federation": federation}).model_dump_json(by_alias=True)

    def fingerprint(self) -> str:
        """Hash what a result depends on; see `common.fingerprint`."""
        return fingerprint(self)
