"""Loss weighting across a federation: who remembers what, and ten clients with unlike losses."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from client.app import app
from client.own_arrays import MEMORY
from client.state import OWN
from common.clients import open_clients
from common.experiment_file import load_experiment
from common.wire import Instruction, arrays_of, config_of, metrics_of
from server.federation import federate
from server.run_folder import RunFolder
from simulations.benchmarks.unlike_losses import TASKS, write_clients
from simulations.loopback import LoopbackGrid
from simulations.simulate import simulate


@pytest.fixture(scope="module")
def unlike(tmp_path_factory) -> Path:
    """Ten clients, each without one of four tasks, whose targets measure 1, 10 and 100."""
    return write_clients(tmp_path_factory.mktemp("unlike"))


class Tap(LoopbackGrid):
    """A loopback that keeps every message and its reply."""

    def __init__(self, names):
        super().__init__(app, names)
        self.exchanged: list[tuple[Message, Message]] = []

    def deliver(self, message):
        reply = super().deliver(message)
        self.exchanged.append((message, reply))
        return reply

    def of(self, kind: str, number: int) -> list[tuple[Instruction, Message]]:
        """Instructions and replies of one kind and round."""
        found = [
            (Instruction.from_record(config_of(message.content)), reply)
            for message, reply in self.exchanged
            if message.metadata.message_type == kind
        ]
        return [pair for pair in found if pair[0].round == number]


def federated(unlike, tmp_path, *settings: str) -> tuple[Tap, RunFolder]:
    experiment = load_experiment(str(unlike), settings)
    folder = RunFolder(tmp_path / "run")
    folder.create(experiment, "loopback")
    tap = Tap(open_clients(experiment).names)
    federate(tap, experiment, folder, strict=True)
    return tap, folder


def pooled(replies, name: str) -> dict[str, float]:
    """Sums over counts of what clients reported of each task, added up by hand."""
    totals: dict[str, np.ndarray] = {}
    for _, reply in replies:
        for key, numbers in (metrics_of(reply.content) or {}).items():
            if key.startswith("train/") and key.endswith(f"/{name}"):
                totals.setdefault(key.split("/")[1], np.zeros(2))
                totals[key.split("/")[1]] += numbers
    return {task: total / count for task, (total, count) in totals.items()}


def test_dwa_remembers_the_losses_of_the_whole_federation(unlike, tmp_path):
    tap, _ = federated(unlike, tmp_path, "loss.weighting=dwa", "federation.rounds=3")
    losses = [pooled(tap.of("train", number), "loss") for number in (1, 2, 3)]
    for number, memories in ((2, losses[:1]), (3, losses[1::-1])):
        for task, loss in memories[0].items():
            sent = [instruction.memory[task] for instruction, _ in tap.of("train", number)]
            assert len(sent) == 10
            assert all(memory == sent[0] for memory in sent)
            assert sent[0]["last"] == pytest.approx(loss, rel=1e-5)
            before = memories[1][task] if len(memories) > 1 else 0.0
            assert sent[0]["before"] == pytest.approx(before, rel=1e-5)
    # The third round weighs by them, each client over the three tasks that it has.
    rates = {task: losses[1][task] / losses[0][task] for task in TASKS}
    for _, reply in tap.of("train", 3):
        measured = metrics_of(reply.content) or {}
        mine = [task for task in TASKS if f"train/{task}/weight" in measured]
        assert len(mine) == 3
        total = sum(np.exp(rates[task] / 2) for task in mine)
        for task in mine:
            weight, steps = measured[f"train/{task}/weight"]
            assert weight / steps == pytest.approx(3 * np.exp(rates[task] / 2) / total, rel=1e-4)


@pytest.mark.parametrize("weighting", ["uncertainty", "gradnorm"])
def test_shared_memory_is_the_mean_of_the_clients_by_labelled_rows(unlike, tmp_path, weighting):
    settings = [f"loss.weighting={weighting}", "loss.scaling=initial", "federation.rounds=2"]
    tap, folder = federated(unlike, tmp_path, *settings)
    names = ["log-variance", "steps"] if weighting == "uncertainty" else ["weight", "steps"]
    for name in (*names, "scale"):
        means = pooled(tap.of("train", 1), f"state-{name}")
        assert set(means) == set(TASKS)
        for instruction, _ in tap.of("train", 2):
            for task, mean in means.items():
                assert instruction.memory[task][name] == pytest.approx(mean, rel=1e-6)
    assert not any(instruction.memory for instruction, _ in tap.of("train", 1))
    checkpoint = json.loads((folder.path / "checkpoint" / "checkpoint.json").read_text())
    assert set(checkpoint["loss_memory"]) == set(TASKS)


def test_a_task_that_no_client_of_a_round_holds_keeps_its_memory_at_the_server(unlike, tmp_path):
    settings = ["loss.weighting=uncertainty", "federation.clients-per-round=1"]
    tap, _ = federated(unlike, tmp_path, *settings, "federation.rounds=6")
    kept, lacking = {}, 0
    for number in range(1, 6):
        ((before, reply),) = tap.of("train", number)
        ((after, _),) = tap.of("train", number + 1)
        taught = pooled([(before, reply)], "state-log-variance")
        for task in set(kept) - set(taught):
            assert after.memory[task] == kept[task]
            lacking += 1
        kept = after.memory
        assert set(taught) <= set(kept)
    assert lacking


@pytest.mark.parametrize("weighting", ["uncertainty", "famo", "gradnorm", "dwa"])
def test_what_belongs_to_clients_stays_with_them(unlike, tmp_path, weighting):
    settings = [f"loss.weighting={weighting}", "loss.scope=local", "loss.scaling=initial"]
    tap, folder = federated(unlike, tmp_path, *settings)
    for message, reply in tap.exchanged:
        assert not Instruction.from_record(config_of(message.content)).memory
        names = [*(metrics_of(reply.content) or {}), *(arrays_of(reply.content) or {})]
        assert not any("state-" in name or MEMORY in name for name in names)
    checkpoint = json.loads((folder.path / "checkpoint" / "checkpoint.json").read_text())
    assert checkpoint["loss_memory"] == {}
    for node_id in tap.get_node_ids():
        own = tap.context(node_id).state.array_records[OWN]
        assert len([name for name in own if name.startswith(MEMORY)]) == 3  # one per task it holds
        # A number that only such memory can hold is in no metric.
        values = {float(v) for n in own if n.startswith(MEMORY) for v in own[n].numpy()}
        reported = {
            float(number)
            for _, reply in tap.exchanged
            for value in (metrics_of(reply.content) or {}).values()
            for number in (value if isinstance(value, list) else [value])
        }
        assert not {v for v in values if v not in (0.0, 1.0) and v != round(v)} & reported


# Losses that are ten times and a hundred times each other's.


def last_round(unlike, tmp_path, *settings: str) -> dict[str, dict[str, float]]:
    lines: list[dict] = []
    experiment = load_experiment(str(unlike), settings)
    simulate(experiment, engine="auto", out=tmp_path / "run", listener=lines.append)
    return lines[-1]["train"]["tasks"]


def spread(numbers) -> float:
    return max(numbers) / min(numbers)


def pulls(tasks) -> float:
    return spread([tasks[task]["pull"] for task in TASKS])


def shares(tasks) -> float:
    """How far the tasks' parts of the objective's value lie apart."""
    return spread([tasks[task]["weight"] * tasks[task]["loss"] for task in TASKS])


@pytest.mark.parametrize("settings", [[], ["loss.weighting=dwa"]], ids=["equal", "dwa"])
def test_what_does_not_look_at_scales_lets_the_largest_loss_decide(unlike, tmp_path, settings):
    tasks = last_round(unlike, tmp_path, *settings)
    assert pulls(tasks) > 100
    assert shares(tasks) > 1000


@pytest.mark.parametrize(
    "settings",
    [
        ["loss.scaling=initial"],
        ["loss.scaling=running-mean"],
        ["loss.scaling=log"],
        ["loss.weighting=geometric"],
        ["loss.weighting=famo"],
        ["loss.weighting=smooth-tchebycheff"],
        ["loss.weighting=uncertainty", "loss.scaling=initial"],
        ["loss.weighting=imtl-l", "loss.scaling=initial"],
    ],
    ids=lambda settings: settings[0].partition("=")[2],
)
def test_what_balances_losses_gives_every_task_a_like_share_of_the_objective(
    unlike, tmp_path, settings
):
    assert shares(last_round(unlike, tmp_path, *settings)) < 4


@pytest.mark.parametrize("weighting", ["uncertainty", "imtl-l"])
def test_what_learns_its_scales_is_on_the_way_there(unlike, tmp_path, weighting):
    """Adam takes long for the last part of the way to a loss of some thousands."""
    equal = shares(last_round(unlike, tmp_path / "equal"))
    settings = [f"loss.weighting={weighting}", "training.epochs=10", "loss.options.lr=0.2"]
    settings += ["loss.record=weights"]
    learned = last_round(unlike, tmp_path / "learned", *settings)
    assert shares(learned) < equal / 20


@pytest.mark.parametrize("method", ["imtl-g", "aligned-mtl", "config"])
def test_gradient_balancing_lets_every_task_pull_alike(unlike, tmp_path, method):
    assert pulls(last_round(unlike, tmp_path, f"loss.weighting={method}")) < 10


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "local"])
def test_gradnorm_learns_to_let_every_task_pull_alike(unlike, tmp_path, scope):
    settings = ["loss.weighting=gradnorm", "loss.options.alpha=0", f"loss.scope={scope}"]
    settings += ["training.epochs=20", "federation.rounds=5"]
    tasks = last_round(unlike, tmp_path, *settings)
    assert pulls(tasks) < 10
