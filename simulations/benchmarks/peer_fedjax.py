"""FedJAX as a contender: its `for_each_client`, which compiles a client's step.

It does the plain loop's work with the plain loop's rows, clients and shuffles; PyTorch is in the
process for these alone, and in its start-up time and memory.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from simulations.benchmarks.contenders import Job
from simulations.benchmarks.plain import (
    LOSSES,
    ClientRows,
    PlainModel,
    draw_clients,
    read_clients,
    shuffle,
)
from simulations.benchmarks.turns import Turns

Arrays = dict[str, Any]  # name -> array of NumPy or JAX


def run(job: Job, turns: Turns) -> None:
    """Train in the arena."""
    experiment = job.make_experiment()
    clients = read_clients(experiment)
    whole = all(rows.is_complete and len(rows.targets) == len(LOSSES) for rows in clients.values())
    if experiment.trunk.architecture != "mlp" or not whole:
        return turns.skip("its adapter has no convolutions and no missing labels")
    import fedjax  # type: ignore[import-not-found]
    import jax  # type: ignore[import-not-found]

    model = PlainModel(experiment)
    initial = {name: values.numpy() for name, values in model.state_dict().items()}
    trunk: Arrays = {name: values for name, values in initial.items() if "trunk." in name}
    heads = {name: values for name, values in initial.items() if name not in trunk}
    own: dict[str, Arrays] = {}  # client -> its heads
    # FedJAX's own mean of trees calls a function that JAX has since removed.
    add_weighted = jax.jit(
        lambda sums, trunk, weight: {name: sums[name] + weight * trunk[name] for name in sums}
    )
    columns = {name: numpy_columns(rows) for name, rows in clients.items()}
    train = fedjax.for_each_client(
        lambda trunk, heads: {**trunk, **heads},
        make_step(experiment.training.lr),
        lambda trunk, state: (
            {name: values for name, values in state.items() if name in trunk},
            {name: values for name, values in state.items() if name not in trunk},
        ),
    )
    for number in itertools.count(1):
        work = [
            (
                name,
                batches(
                    columns[name],
                    shuffle(clients[name], experiment, number),
                    experiment.training.batch_size,
                ),
                own.get(name, heads),
            )
            for name in draw_clients(experiment, clients, number)
        ]
        total = sum(len(clients[name].pixels) for name, _, _ in work)
        sums = {name: np.zeros_like(values) for name, values in trunk.items()}
        for name, (trained, own[name]) in train(trunk, work):
            sums = add_weighted(sums, trained, len(clients[name].pixels) / total)
        trunk = jax.block_until_ready(sums)
        turns.end_round(partial(read_trunk, model.trunk_names, trunk))
    return None


def read_trunk(names: Mapping[str, str], trunk: Arrays) -> Arrays:
    """Give the trunk under the project's names."""
    return {names[name]: np.asarray(values) for name, values in trunk.items()}


def numpy_columns(rows: ClientRows) -> Arrays:
    """Give a client's rows as FedJAX's data sets hold them."""
    targets = {task: target.numpy() for task, target in rows.targets.items()}
    return {"pixels": rows.pixels.numpy(), **targets}


def batches(columns: Arrays, order: np.ndarray[Any, Any], size: int) -> list[Arrays]:
    """Cut an epoch into batches."""
    return [
        {name: column[order[start : start + size]] for name, column in columns.items()}
        for start in range(0, len(order), size)
    ]


def make_step(lr: float) -> Callable[[Arrays, Arrays], Arrays]:
    """Make the function of one SGD step, which FedJAX compiles."""
    import jax

    gradient = jax.grad(batch_loss)

    def step(state: Arrays, batch: Arrays) -> Arrays:
        slopes = gradient(state, batch)
        return {name: values - lr * slopes[name] for name, values in state.items()}

    return step


def batch_loss(state: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """Add the three tasks' mean losses over a batch, as `plain.batch_loss` does."""
    import jax
    import jax.numpy as jnp  # type: ignore[import-not-found]

    features = batch["pixels"]
    for layer in sorted({name.rpartition(".")[0] for name in state if "trunk." in name}):
        features = jax.nn.relu(apply_layer(state, layer, features))
    logits = jax.nn.log_softmax(apply_layer(state, "heads.digit", features))
    odd = apply_layer(state, "heads.parity", features)[:, 0]
    ink = apply_layer(state, "heads.ink", features)[:, 0]
    return (
        -jnp.take_along_axis(logits, batch["digit"][:, None], axis=1).mean()
        + (jax.nn.softplus(odd) - batch["parity"] * odd).mean()
        + jnp.square(ink - batch["ink"]).mean()
    )


def apply_layer(state: Mapping[str, Any], layer: str, features: Any) -> Any:
    """Apply one linear layer."""
    return features @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
