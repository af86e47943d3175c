"""What a run's result depends on, as one hash; and so what a resumed run may change.

Every setting counts, whatever its value, unless a table here names it. A new setting that only
says where something lies, how much memory it takes, or what is written down beside the result
gets a line here, and may then be changed by a resumed run.
"""

import hashlib
import json
from typing import TYPE_CHECKING

from common.availability import seal
from common.schedules.rates import round_schedule

if TYPE_CHECKING:
    from common.experiment import Experiment

NEVER = (  # no trunk depends on these
    "description",
    "data.path",
    "data.memory",
    "trunk.weights",  # trunk.weights-digest counts
    "training.device",
    "training.micro-batch",  # the same steps, but for rounding, in less memory
    "training.recompute-activations",
    "federation.affinity-every",
    "federation.checkpoint-interval-s",
    "federation.snapshot-every",
    "federation.snapshots",
)
SOMETIMES = (  # `idle_here` says when they do not count
    "federation.rounds",
    "federation.round-timeout-s",
    "trunk.model",
)


def fingerprint(experiment: "Experiment") -> str:
    """Hash what a result depends on, 16 hexadecimal digits.

    Two runs with one fingerprint (and the same data) pass through the same trunks.
    """
    content = experiment.model_dump(mode="json", by_alias=True)
    content["federation"]["availability"] = seal(experiment.federation.availability)
    for setting in (*NEVER, *idle_here(experiment)):
        *tables, key = setting.split(".")
        place = content
        for table in tables:
            place = place[table]
        del place[key]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def idle_here(experiment: "Experiment") -> list[str]:
    """Name those of `SOMETIMES` that the results of this experiment do not depend on."""
    privacy, trunk = experiment.privacy, experiment.trunk
    is_budget_shared = any(level and level.noise_multiplier is None for level in privacy.levels)
    counts = {
        # Rates, or noise, are worked out for all of the rounds.
        "federation.rounds": round_schedule(experiment.training).ENDS or is_budget_shared,
        # Without a trace, whose delays it cuts off, it is about machines.
        "federation.round-timeout-s": bool(experiment.federation.availability),
        # A folder's content counts, by trunk.model-digest; timm's name of a model has none.
        "trunk.model": not trunk.model_digest,
    }
    return [setting for setting in SOMETIMES if not counts[setting]]
