"""Whole rounds of every algorithm equal its paper's equations, written out in NumPy.

The model is linear: a trunk ``z = W x + b`` of one layer or two, and a head ``h z + c`` for each
task, under the squared error. Client a is away in round 2, client c comes in round 2 and lacks
task v, so what is kept, who counts and which head a client has all matter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.batches import epoch_order, shuffle_key
from common.agreement import input_shapes
from common.experiment import Experiment
from common.model import build_model
from simulations.baselines import read_clients
from tests.algorithm_runs import Run, run

Params = dict[str, np.ndarray]  # of a trunk, or of all heads, by name
ROUNDS, EPOCHS, LR = 3, 2, 0.05
PRESENT = {1: "ab", 2: "bc", 3: "abc"}
TRACE = ["client,from-round,to-round", "a,1,1", "a,3,3", "c,2,3"]
WEIGHTS = {"u": 1.0, "v": 0.5}


@dataclass
class Client:
    """One client's training rows.

    Attributes:
        name: of the client.
        x: [N, 3].
        y: task -> [N].
        size: rows of a batch.
        state: what it keeps, by kind.
    """

    name: str
    x: np.ndarray
    y: dict[str, np.ndarray]
    size: int
    state: dict[str, Params] = field(default_factory=dict)

    def batches(self, number: int, first: int, epochs: int) -> Iterator[np.ndarray]:
        """Number the rows of each batch; epochs of a round are counted from `first`."""
        for epoch in range(first, first + epochs):
            key, rows = shuffle_key(0, self.name), len(self.x)
            order = epoch_order(rows, None, "tasks", key, number, epoch)
            yield from (order[i : i + self.size] for i in range(0, rows, self.size))

    def gradients(self, trunk: Params, heads: Params, rows: np.ndarray) -> tuple[Params, Params]:
        """Differentiate ``sum_t w_t mean_rows (h_t z + c_t - y_t)^2``."""
        layers = sorted({name.rsplit(".", 1)[0] for name in trunk})
        features = [self.x[rows]]
        for layer in layers:
            weight, bias = trunk[f"{layer}.weight"], trunk[f"{layer}.bias"]
            features.append(features[-1] @ weight.T + bias)
        slope = np.zeros_like(features[-1])
        by_head: Params = {name: np.zeros_like(values) for name, values in heads.items()}
        for task, targets in self.y.items():
            h, c = heads[f"heads.task-{task}.0.weight"], heads[f"heads.task-{task}.0.bias"]
            error = features[-1] @ h.T + c - targets[rows, None]
            error *= 2 * WEIGHTS[task] / len(rows)
            by_head[f"heads.task-{task}.0.weight"] = error.T @ features[-1]
            by_head[f"heads.task-{task}.0.bias"] = error.sum(0)
            slope += error @ h
        by_trunk: Params = {}
        for depth in range(len(layers) - 1, -1, -1):
            by_trunk[f"{layers[depth]}.weight"] = slope.T @ features[depth]
            by_trunk[f"{layers[depth]}.bias"] = slope.sum(0)
            slope = slope @ trunk[f"{layers[depth]}.weight"]
        return by_trunk, by_head


def add(*terms: tuple[float, Params]) -> Params:
    """Add multiples of parameters."""
    return {name: sum(k * p[name] for k, p in terms) for name in terms[0][1]}


@dataclass
class World:
    """A federation: its clients and the parameters that all start from."""

    clients: dict[str, Client]
    trunk: Params
    heads: Params
    control: Params = field(default_factory=dict)  # SCAFFOLD's c

    def start(self, client: Client, kind: str, of: Params) -> Params:
        """What a client kept, or what it starts from."""
        return client.state.get(kind, of)

    def mean(self, sent: dict[str, Params]) -> Params:
        """Average by training rows."""
        rows = {name: len(self.clients[name].x) for name in sent}
        return add(*((rows[name] / sum(rows.values()), sent[name]) for name in sent))


Local = Callable[[World, Client, int], Params]


def fedper(world: World, client: Client, number: int) -> Params:
    """Arivazhagan et al. 2019, Algorithm 1."""
    w, h = world.trunk, world.start(client, "heads", world.heads)
    for rows in client.batches(number, 0, EPOCHS):
        gw, gh = client.gradients(w, h, rows)
        w, h = add((1, w), (-LR, gw)), add((1, h), (-LR, gh))
    client.state["heads"] = h
    return w


def fedrep(world: World, client: Client, number: int) -> Params:
    """Collins et al. 2021, Algorithm 1: tau head updates, then the representation."""
    w, h = world.trunk, world.start(client, "heads", world.heads)
    for rows in client.batches(number, 0, 3):
        h = add((1, h), (-LR, client.gradients(w, h, rows)[1]))
    for rows in client.batches(number, 3, EPOCHS):
        w = add((1, w), (-LR, client.gradients(w, h, rows)[0]))
    client.state["heads"] = h
    return w


def fedbabu(world: World, client: Client, number: int) -> Params:
    """Oh et al. 2022, Algorithm 1: the body alone is updated."""
    w = world.trunk
    for rows in client.batches(number, 0, EPOCHS):
        w = add((1, w), (-LR, client.gradients(w, world.heads, rows)[0]))
    return w


def fit_heads(world: World, client: Client) -> None:
    """Oh et al. 2022, section 4.2: heads are fitted on the last trunk."""
    h = world.heads
    for rows in client.batches(ROUNDS + 1, 0, 4):
        h = add((1, h), (-LR, client.gradients(world.trunk, h, rows)[1]))
    client.state["heads"] = h


def fedprox(world: World, client: Client, number: int) -> Params:
    """Li et al. 2020, eq. 2: ``F_k(w) + mu/2 |w - w_t|^2``."""
    w, h, mu = world.trunk, world.start(client, "heads", world.heads), 0.7
    for rows in client.batches(number, 0, EPOCHS):
        gw, gh = client.gradients(w, h, rows)
        w = add((1, w), (-LR, gw), (-LR * mu, w), (LR * mu, world.trunk))
        h = add((1, h), (-LR, gh))
    client.state["heads"] = h
    return w


def ditto(world: World, client: Client, number: int) -> Params:
    """Li et al. 2021, Algorithm 1: ``v <- v - eta (grad F_k(v) + lambda (v - w_t))``."""
    v = world.start(client, "personal", world.trunk)
    h = world.start(client, "personal heads", world.heads)
    sent, pull = fedper(world, client, number), 0.9
    for rows in client.batches(number, EPOCHS, 3):
        gv, gh = client.gradients(v, h, rows)
        v = add((1, v), (-LR, gv), (-LR * pull, v), (LR * pull, world.trunk))
        h = add((1, h), (-LR, gh))
    client.state |= {"personal": v, "personal heads": h}
    return sent


def mr_mtl(world: World, client: Client, number: int) -> Params:
    """Liu et al. 2022, Algorithm A1: ``F_k(w_k) + lambda/2 |w_k - w_mean|^2``; w_k is sent."""
    w = world.start(client, "personal", world.trunk)
    h, pull = world.start(client, "heads", world.heads), 0.6
    for rows in client.batches(number, 0, EPOCHS):
        gw, gh = client.gradients(w, h, rows)
        w = add((1, w), (-LR, gw), (-LR * pull, w), (LR * pull, world.trunk))
        h = add((1, h), (-LR, gh))
    client.state |= {"personal": w, "heads": h}
    return w


def scaffold(world: World, client: Client, number: int) -> Params:
    """Karimireddy et al. 2020, Algorithm 1, lines 10 to 13, option II; heads are not corrected."""
    y, h = world.trunk, world.start(client, "heads", world.heads)
    none = {name: np.zeros_like(values) for name, values in y.items()}
    c = world.control or none
    mine, steps = world.start(client, "control", none), 0
    for rows in client.batches(number, 0, EPOCHS):
        gy, gh = client.gradients(y, h, rows)
        y = add((1, y), (-LR, gy), (LR, mine), (-LR, c))
        h = add((1, h), (-LR, gh))
        steps += 1
    drift = 1 / (steps * LR)
    renewed = add((1, mine), (-1, c), (drift, world.trunk), (-drift, y))
    client.state |= {"heads": h, "control": renewed, "step": add((1, renewed), (-1, mine))}
    return y


def apfl(world: World, client: Client, number: int) -> Params:
    """Deng et al. 2020, Algorithm 1, one step a round: ``v <- v - eta grad_v f(alpha v + ...)``."""
    alpha = 0.3
    v = world.start(client, "personal", world.trunk)
    h = world.start(client, "personal heads", world.heads)
    mixed = add((alpha, v), (1 - alpha, world.trunk))
    gradient, gh = client.gradients(mixed, h, np.arange(len(client.x)))
    h = add((1, h), (-LR, gh))
    v = add((1, v), (-LR * alpha, gradient))  # grad_v is alpha times the mixture's
    client.state |= {"personal": v, "personal heads": h}
    return fedper(world, client, number)


def fedala(world: World, client: Client, number: int) -> Params:
    """Zhang et al. 2023, Algorithm 1 and eqs. 4 and 5, with p = 1 and eta = 0.8."""
    received, start = world.trunk, dict(world.trunk)
    if "personal" in client.state:
        personal, shares = client.state["personal"], dict(client.state["mixing"])
        upper = [name for name in received if name.startswith("trunk.encoder.layers.1.")]
        d = {name: received[name] - personal[name] for name in upper}
        for name in upper:
            start[name] = personal[name] + d[name] * shares[name]
        for rows in client.batches(number, 0, 2):
            gradient = client.gradients(start, client.state["heads"], rows)[0]
            for name in upper:
                shares[name] = np.clip(shares[name] - 0.8 * gradient[name] * d[name], 0, 1)
                start[name] = personal[name] + d[name] * shares[name]
        client.state["mixing"] = shares
    else:
        client.state["mixing"] = {name: np.ones_like(values) for name, values in received.items()}
    world.trunk = start
    client.state["personal"] = trained = fedper(world, client, number)
    world.trunk = received
    return trained


@dataclass(frozen=True)
class Case:
    """One algorithm.

    Attributes:
        local: what a client does in a round.
        options: of the experiment.
        keeps: kind in `Client.state` -> how its arrays are called in a client's own.
        widths: of the trunk.
    """

    local: Local
    options: dict[str, Any] = field(default_factory=dict)
    keeps: dict[str, str] = field(default_factory=dict)
    widths: tuple[int, ...] = (2,)


PERSONAL = {"personal": "kept.personal.", "personal heads": "kept.personal."}
CASES = {
    "joint": Case(fedper),
    "fedrep": Case(fedrep, {"head-epochs": 3}),
    "fedbabu": Case(fedbabu, {"fit-epochs": 4}),
    "fedprox": Case(fedprox, {"mu": 0.7}),
    "ditto": Case(ditto, {"pull": 0.9, "personal-epochs": 3}, PERSONAL),
    "mr-mtl": Case(mr_mtl, {"pull": 0.6}, {"personal": "kept.personal."}),
    "scaffold": Case(scaffold, {}, {"control": "kept.control."}),
    "apfl": Case(apfl, {"alpha": 0.3}, PERSONAL),
    "fedala": Case(
        fedala,
        {"layers": 1, "mixing-epochs": 2, "mixing-lr": 0.8},
        {"personal": "kept.personal.", "mixing": "kept.mixing."},
        (3, 2),
    ),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three unlike clients' rows; c lacks task v."""
    folder = tmp_path_factory.mktemp("rows")
    for seed, (name, count) in enumerate({"a": 20, "b": 13, "c": 17}.items()):
        rng = np.random.default_rng(seed)
        x = rng.normal(0.3 * seed, 1, (count, 3))
        frame = pd.DataFrame(x, columns=["x0", "x1", "x2"])
        frame["u"] = x @ rng.normal(size=3) + seed
        if name != "c":
            frame["v"] = x @ rng.normal(size=3) - seed
        frame.to_csv(folder / f"{name}.csv", index=False)
    return folder


def plan(rows, algorithm: str, size: int) -> Experiment:
    case = CASES[algorithm]
    return Experiment.model_validate(
        {
            "name": "linear",
            "data": {"source": "folder", "path": str(rows)},
            "inputs": {"x": {"columns": ["x*"]}},
            "tasks": {t: {"kind": "regression", "weight": w} for t, w in WEIGHTS.items()},
            "loss": {"weighting": "manual"},
            "trunk": {"widths": list(case.widths), "activation": "none"},
            "training": {"batch-size": size, "lr": LR, "epochs": EPOCHS, "device": "cpu"},
            "federation": {
                "rounds": ROUNDS,
                "algorithm": algorithm,
                "algorithm-options": case.options,
                "availability": TRACE,
            },
        }
    )


def open_world(experiment: Experiment) -> World:
    """Read the clients' training rows and the initial parameters."""
    data, agreement = read_clients(experiment)
    model = build_model(experiment, input_shapes(agreement))
    start = {n: p.detach().numpy().astype(float) for n, p in model.named_parameters()}
    clients = {}
    for one in data:
        targets = {t: y[:, 0].numpy().astype(float) for t, y in one.train.targets.items()}
        x = one.train.inputs["x"].numpy().astype(float)
        clients[one.name] = Client(one.name, x, targets, experiment.training.batch_size)
    assert set(clients["c"].y) == {"u"}
    return World(
        clients,
        {name: values for name, values in start.items() if name.startswith("trunk.")},
        {name: values for name, values in start.items() if name.startswith("heads.")},
    )


def federate(world: World, algorithm: str) -> None:
    """Do all rounds: the server averages trunks, and steps SCAFFOLD's control variate."""
    for number, present in PRESENT.items():
        asked = [world.clients[name] for name in present]
        sent = {client.name: CASES[algorithm].local(world, client, number) for client in asked}
        world.trunk = world.mean(sent)
        if algorithm == "scaffold":  # line 17: c <- c + |S|/N mean (c_i+ - c_i)
            before = world.control or {n: np.zeros_like(v) for n, v in world.trunk.items()}
            moved = [(1 / len(world.clients), client.state["step"]) for client in asked]
            world.control = add((1, before), *moved)
    if algorithm == "fedbabu":
        for client in world.clients.values():
            fit_heads(world, client)


def compare(world: World, found: Run, keeps: dict[str, str]) -> None:
    """Compare trunk, control variates and everything that stays home."""
    trunk = {**world.trunk, **{f"control.{name}": p for name, p in world.control.items()}}
    same(found.trunk, trunk)
    for name, client in world.clients.items():
        own = {}
        for kind, prefix in {"heads": "", **keeps}.items():
            for parameter, values in client.state[kind].items():
                held = "task-" not in parameter or any(f"-{t}." in parameter for t in client.y)
                own |= {f"{prefix}{parameter}": values} if held else {}
        same(found.clients[name].arrays, own)


def same(found, expected: Params) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize("size", [1000, 4], ids=["full batches", "mini-batches"])
@pytest.mark.parametrize("algorithm", CASES)
def test_three_rounds_are_the_papers(rows, tmp_path, monkeypatch, algorithm, size, engine):
    if algorithm == "apfl":  # the paper moves both trunks at every step
        if size == 4:
            pytest.skip("one step a round")
        monkeypatch.setattr(f"{__name__}.EPOCHS", 1)
    experiment = plan(rows, algorithm, size)
    world = open_world(experiment)
    federate(world, algorithm)
    compare(world, run(experiment, tmp_path / "run", engine), CASES[algorithm].keeps)
