"""Where a client computes: what its node decides, whatever the experiment says.

Flower hands a node's ``--node-config`` to the client; these keys of it are ours::

    data="/srv/data"        folder or file with the node's rows
    memory="disk"           rows in a mapped file (disk) or in memory (ram), as data.memory
    model="/srv/minilm"     folder with the ready model of trunk.model
    state="/srv/state"      folder for what stays home; without one, heads last as long as the node
    weights="/srv/t.safetensors"  the file of trunk.weights at this node
    client="ward-7"         which client of the data this node is, where there are several
    device="cuda:1"         auto, cpu, mps, cuda or cuda:N
    threads=4               CPU threads
    precision="high"        of float32 products: highest, high (TF32) or medium (bfloat16)
    largest-epsilon=4.0     budget of this node's client over all runs; needs a state folder
    delta=1e-5              that goes with it
    least-noise-multiplier=1.0
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from common.experiment import Experiment
from common.idle_settings import memory_problems
from common.ready_models import reads_folder

PRECISIONS = ("highest", "high", "medium")
LIMITS = ("largest-epsilon", "delta", "least-noise-multiplier")
MEMORIES = ("ram", "disk")
KEYS = (
    "data",
    "memory",
    "model",
    "state",
    "weights",
    "client",
    "device",
    "threads",
    "precision",
    *LIMITS,
)
DELTA = 1e-5
FLOWER_KEYS = ("partition-id", "num-partitions")  # of a simulated node
# A real node may have a partition-id as well, and must not make its noise from the seed, which the
# server knows: our own engines say by this key, or by the environment, that they simulate.
SIMULATED, SIMULATION = "simulated", "FEDMTL_SIMULATION"


@dataclass(frozen=True)
class Place:
    """A node's own decisions; empty and 0 mean that the experiment's settings hold.

    Attributes:
        data: folder or file with its rows.
        memory: "ram" or "disk", as `data.memory`.
        model: folder with the ready model.
        device: where it computes.
        threads: CPU threads it computes with.
        precision: of float32 matrix products, as `torch.set_float32_matmul_precision` takes it.
        state: folder for what stays home.
        weights: file that the trunk starts from, where the experiment names one.
        simulated: whether the node is one of a simulation, whose noise follows from the seed.
        largest_epsilon: budget over all runs; 0 for none.
        delta: that goes with it.
        least_noise_multiplier: that an experiment must have; 0 for none.
    """

    data: str = ""
    model: str = ""
    device: str = ""
    threads: int = 0
    precision: str = ""
    state: str = ""
    weights: str = ""
    simulated: bool = False
    memory: str = ""
    largest_epsilon: float = 0.0
    delta: float = DELTA
    least_noise_multiplier: float = 0.0

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> "Place":
        """Read a node's config.

        Raises:
            ConfigError: a value is not what its key needs, or a key looks misspelt.
        """
        unknown = [key for key in node_config if key not in (*KEYS, *FLOWER_KEYS, SIMULATED)]
        if unknown:
            raise ConfigError(
                f"node config: keys must be among {', '.join(KEYS)}, got '{unknown[0]}'; correct "
                "or remove it"
            )
        threads = node_config.get("threads", 0)
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 0:
            raise ConfigError(
                f"node config: threads must be a whole number from 1, got {threads!r}; write "
                "threads=4 without quotes"
            )
        precision = node_config.get("precision", "")
        if precision and precision not in PRECISIONS:
            raise ConfigError(
                f"node config: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
            )
        memory = node_config.get("memory", "")
        if memory and memory not in MEMORIES:
            raise ConfigError(
                f"node config: memory must be one of {', '.join(MEMORIES)}, got {memory!r}"
            )
        texts = {
            key: str(node_config.get(key, ""))
            for key in ("data", "model", "device", "state", "weights")
        }
        return cls(
            data=texts["data"],
            model=texts["model"],
            device=texts["device"],
            threads=threads,
            precision=str(precision),
            state=texts["state"],
            weights=texts["weights"],
            memory=str(memory),
            simulated=bool(node_config.get(SIMULATED) or os.environ.get(SIMULATION)),
            largest_epsilon=_limit(node_config, "largest-epsilon"),
            delta=_limit(node_config, "delta", DELTA),
            least_noise_multiplier=_limit(node_config, "least-noise-multiplier"),
        )

    def settle(self, experiment: Experiment) -> Experiment:
        """Put the node's decisions in the place of the experiment's settings.

        Raises:
            ConfigError: the experiment's rows cannot be where the node wants them, or the node has
                no copy of its ready model.
        """
        training = {"device": self.device, "threads": self.threads}
        chosen = {key: value for key, value in training.items() if value}
        update: dict[str, Any] = {}
        if chosen:
            update["training"] = experiment.training.model_copy(update=chosen)
        rows = {"path": self.data, "memory": self.memory}
        if any(rows.values()):
            own = {key: value for key, value in rows.items() if value}
            update["data"] = experiment.data.model_copy(update=own)
            for problem in memory_problems(update["data"], experiment.partition):
                raise ConfigError(f"node config: {problem}")
        trunk: dict[str, Any] = {}
        # A real node opens no file that the server names.
        if reads_folder(experiment.trunk) and (self.model or not self.simulated):
            if not self.model:
                raise ConfigError(
                    "node config: model must name this node's copy of the folder of trunk.model, "
                    'got none; add model="PATH" to --node-config'
                )
            trunk["model"] = self.model
        if experiment.trunk.weights is not None and (self.weights or not self.simulated):
            trunk["weights"] = self.weights
        if trunk:
            update["trunk"] = experiment.trunk.model_copy(update=trunk)
        return experiment.model_copy(update=update) if update else experiment


def _limit(node_config: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    """Read a node's limit; 0 for none."""
    value, given = node_config.get(key, default), key in node_config
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (given and value <= 0):
        raise ConfigError(
            f"node config: {key} must be a positive number, got {value!r}; write {key}=1.0 without "
            "quotes"
        )
    return float(value)
