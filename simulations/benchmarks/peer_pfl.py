"""pfl-research as a contender: its `FederatedAveraging` on its `SimulatedBackend`.

It does the plain loop's work with the plain loop's rows, clients and shuffles. Heads stay with
their clients by an algorithm that puts them in before a client trains and takes them out after.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.experiment import Experiment
from simulations.benchmarks.contenders import Job
from simulations.benchmarks.plain import (
    ClientRows,
    PlainModel,
    batch_loss,
    draw_clients,
    read_clients,
    shuffle,
)
from simulations.benchmarks.turns import Turns
from simulations.benchmarks.workloads import FOR_EVER


class LossModel(PlainModel):
    """The plain loop's model, with the two functions that pfl asks a model for."""

    def loss(self, batch: Tensor, rows: ClientRows) -> Tensor:
        """Compute the loss of a batch of a client's rows."""
        return batch_loss(self, rows, batch)

    def metrics(self, *batch: Tensor) -> dict[str, float]:
        """Measure nothing: no round evaluates."""
        return {}


def run(job: Job, turns: Turns) -> None:
    """Train in the arena."""
    from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found]
    from pfl.aggregate.weighting import WeightByDatapoints  # type: ignore[import-not-found]
    from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found]
    from pfl.hyperparam import NNTrainHyperParams  # type: ignore[import-not-found]

    torch.set_num_threads(job.threads)
    experiment = job.make_experiment()
    clients, settings = read_clients(experiment), experiment.training
    module = LossModel(experiment)
    wanted = experiment.federation.clients_per_round
    rounds = NNAlgorithmParams(
        central_num_iterations=FOR_EVER,
        evaluation_frequency=FOR_EVER,
        train_cohort_size=len(clients) if wanted == "all" else wanted,
        val_cohort_size=None,
    )
    local = NNTrainHyperParams(
        local_num_epochs=1,
        local_learning_rate=settings.lr,
        local_batch_size=settings.batch_size,
    )
    data = make_data(experiment, clients)
    backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
    model, ending = make_model(module), make_callback(module, turns)
    make_algorithm(module).run(rounds, backend, model, local, callbacks=[ending])


def make_model(module: LossModel) -> Any:
    """Make pfl's model, of which only the trunk is averaged."""
    from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found]

    central = torch.optim.SGD(module.trunk.parameters(), lr=1.0)
    model = PyTorchModel(module, torch.optim.SGD, central)
    for name in list(model.variable_map):
        if not name.startswith("trunk."):
            del model.variable_map[name]
    return model


def make_algorithm(module: LossModel) -> Any:
    """Make federated averaging in which heads stay with their clients."""
    from pfl.algorithm.federated_averaging import (  # type: ignore[import-not-found]
        FederatedAveraging,
    )

    initial = {name: v.clone() for name, v in module.heads.state_dict().items()}
    own: dict[str, dict[str, Tensor]] = {}

    class LocalHeads(FederatedAveraging):  # type: ignore[misc]
        def train_one_user(self, state: Any, model: Any, user_dataset: Any, context: Any) -> Any:
            client = user_dataset.user_id
            module.heads.load_state_dict(own.get(client, initial))
            result = super().train_one_user(state, model, user_dataset, context)
            own[client] = {name: v.clone() for name, v in module.heads.state_dict().items()}
            return result

    return LocalHeads()


def make_data(experiment: Experiment, clients: dict[str, ClientRows]) -> Any:
    """Make the federated data set: the cohort of each round, and each client's batches."""
    from pfl.data.dataset import Dataset  # type: ignore[import-not-found]
    from pfl.data.federated_dataset import (  # type: ignore[import-not-found]
        FederatedDatasetBase,
    )

    class ShuffledRows(Dataset):  # type: ignore[misc]
        order: Tensor

        def iter(self, batch_size: int) -> Iterator[tuple[Tensor]]:
            return ((batch,) for batch in torch.split(self.order, batch_size))

    class Cohorts(FederatedDatasetBase):  # type: ignore[misc]
        round_number = 0

        def __next__(self) -> Any:
            raise NotImplementedError("rounds ask for whole cohorts")

        def get_cohort(self, cohort_size: int) -> Iterator[tuple[Any, int]]:
            self.round_number += 1
            for name in draw_clients(experiment, clients, self.round_number):
                rows = clients[name]
                user = ShuffledRows([rows.pixels], user_id=name, train_kwargs={"rows": rows})
                user.order = torch.from_numpy(shuffle(rows, experiment, self.round_number))
                yield user, 0

    return Cohorts()


def make_callback(module: LossModel, turns: Turns) -> Any:
    """Make what pfl calls after each round."""
    from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found]
    from pfl.metrics import Metrics  # type: ignore[import-not-found]

    def read_trunk() -> dict[str, Any]:
        state = module.state_dict()
        return {theirs: state[ours].numpy() for ours, theirs in module.trunk_names.items()}

    class RoundEnd(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *arguments: Any, **named: Any) -> tuple[bool, Any]:
            turns.end_round(read_trunk)
            return False, Metrics()

    return RoundEnd()
