"""Heads stay home: everything that leaves a client is captured and looked at."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from client.app import app
from client.state import OWN
from common.agreement import Description
from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS
from common.clients import open_clients
from common.errors import NothingLearnedError
from common.experiment_file import load_experiment
from common.model import build_model
from common.sharing import STAYS, travels_beside
from common.sums_form import EPOCHS
from common.weighting.balance import FIGURES
from common.wire import REFUSED
from server.federation import federate
from server.run_folder import RunFolder
from server.watch import Watch
from simulations.loopback import FIRST_NODE, LoopbackGrid

SETTINGS = ["federation.rounds=3", "trunk.widths=[16]", "training.lr=0.2"]


class Tap(LoopbackGrid):
    """A loopback that keeps every reply."""

    def __init__(self, names):
        super().__init__(app, names)
        self.sent: list[Message] = []

    def deliver(self, message):
        reply = super().deliver(message)
        self.sent.append(reply)
        return reply


def run(tmp_path: Path, *settings: str) -> Tap:
    experiment = load_experiment("digits", [*SETTINGS, *settings])
    folder = RunFolder(tmp_path / "run")
    folder.create(experiment, "loopback")
    tap = Tap(open_clients(experiment).names)
    federate(tap, experiment, folder, strict=True)
    return tap


def leaving_bytes(tap: Tap) -> bytes:
    """All that left the clients, one long string of bytes."""
    parts = []
    for reply in tap.sent:
        for record in reply.content.array_records.values():
            parts += [array.data for array in record.values()]
        others = [*reply.content.metric_records.values(), *reply.content.config_records.values()]
        parts += [json.dumps(dict(record), default=str).encode() for record in others]
    return b"".join(parts)


def sent_names(tap: Tap) -> set[str]:
    return {name for r in tap.sent for a in r.content.array_records.values() for name in a}


# What these keep of the trunk is the trunk that they sent.
KEEP_WHAT_THEY_SEND = {"mr-mtl", "fedala"}


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if ALGORITHMS[a].shares != "all"])
@pytest.mark.parametrize("by", ["train-reply", "message"])
def test_no_head_and_no_personal_trunk_leaves_a_client(tmp_path, algorithm, by):
    tap = run(
        tmp_path,
        f"federation.algorithm={algorithm}",
        f"evaluation.by={by}",
        "training.optimiser=sgd",
    )
    outside, names, sends = leaving_bytes(tap), sent_names(tap), ALGORITHMS[algorithm].travels
    trunk = {name for name in names if name.startswith("trunk.")}
    assert bool(trunk) == (ALGORITHMS[algorithm].shares == "trunk")
    assert names == trunk | {f"{kind}.{name}" for kind in sends for name in trunk}
    heads = 0
    for node_id in tap.get_node_ids():
        for name, array in tap.context(node_id).state.array_records[OWN].items():
            values = array.numpy()
            heads += name.startswith("heads.")
            if name.startswith("kept.") and algorithm in KEEP_WHAT_THEY_SEND:
                continue
            if not values.any():  # a bias that never moved
                continue
            assert values.astype("<f4").tobytes() not in outside
            # Not in text either: no trained weight is written out in a metric or a description.
            assert repr(float(values[values != 0][0])).encode() not in outside
    assert heads == 10 * 3 * 2  # clients x tasks x (weight, bias)


NORMS_AT_HOME = {
    ("layer", "local"): {"norm_weight", "norm_bias"},
    ("batch", "local"): {"norm_weight", "norm_bias", "norm_mean", "norm_variance"},
    ("batch", "local-statistics"): {"norm_mean", "norm_variance"},
}


@pytest.mark.parametrize(("norm", "stay"), NORMS_AT_HOME)
@pytest.mark.parametrize("algorithm", ["joint", "whole-model"])
def test_no_norm_parameter_that_stays_home_leaves_a_client(tmp_path, norm, stay, algorithm):
    settings = [f"trunk.norm={norm}", f"trunk.norm-parameters={stay}"]
    tap = run(tmp_path, *settings, f"federation.algorithm={algorithm}")
    kinds = NORMS_AT_HOME[norm, stay]
    assert not kinds & {name.rpartition(".")[2] for name in sent_names(tap)}
    outside = leaving_bytes(tap)
    for node_id in tap.get_node_ids():
        own = tap.context(node_id).state.array_records[OWN]
        assert {name.rpartition(".")[2] for name in own if "norm_" in name} == kinds
        assert all(array.numpy().astype("<f4").tobytes() not in outside for array in own.values())


def test_norms_that_are_shared_are_sent_with_their_statistics(tmp_path):
    names = sent_names(run(tmp_path, "trunk.norm=batch"))
    assert NORMS_AT_HOME["batch", "local"] <= {name.rpartition(".")[2] for name in names}


def own_arrays(tap: Tap) -> dict[str, list[bytes]]:
    """What clients keep at home: name -> its bytes at each of them."""
    kept: dict[str, list[bytes]] = {}
    for node_id in tap.get_node_ids():
        for name, array in tap.context(node_id).state.array_records[OWN].items():
            kept.setdefault(name, []).append(array.numpy().astype("<f4").tobytes())
    return kept


@pytest.mark.parametrize(
    ("sharing", "place"),
    [(s, place) for s in SHARINGS for place in SHARINGS[s].task_parts or ("shared",)],
)
def test_exactly_the_declared_parameters_leave_a_client(tmp_path, sharing, place):
    settings = [f"trunk.sharing={sharing}", "federation.rounds=2", "partition.clients=3"]
    settings += ["partition.task-skew=rotate", "partition.tasks-per-client=2"]
    if SHARINGS[sharing].task_parts:
        settings.append(f"trunk.task-parts={place}")
    tap = run(tmp_path, *settings)
    experiment = load_experiment("digits", [*SETTINGS, *settings])
    names = {name for name, _ in build_model(experiment, {"pixels": (64,)}).named_parameters()}
    declared = {n for n in names if n[:6] == "trunk." and (place == "shared" or "task-" not in n)}
    for reply in tap.sent:
        if reply.metadata.message_type == "train":
            assert set(reply.content.array_records["arrays"]) == declared
    outside, kept = leaving_bytes(tap), own_arrays(tap)
    assert set(kept) == names - declared
    assert all(len(copies) == 2 for copies in kept.values())  # of three clients, each with two
    assert all(values not in outside for copies in kept.values() for values in copies)


@pytest.mark.parametrize("sharing", ["soft", "cross-stitch", "ple"])
def test_parts_of_tasks_that_a_client_lacks_go_back_as_they_came(tmp_path, sharing):
    """Running statistics too, which computing with them would move."""
    settings = [f"trunk.sharing={sharing}", "trunk.norm=batch", "trunk.task-parts=shared"]
    settings += ["partition.clients=3", "partition.task-skew=rotate", "federation.rounds=1"]
    tap = run(tmp_path, *settings)
    replies = [r.content for r in tap.sent if r.metadata.message_type == "train"]
    arrays = [content.array_records["arrays"] for content in replies]
    parts = [name for name in arrays[0] if "task-" in name]
    assert any(name.endswith("norm_mean") for name in parts)
    for name in parts:  # one of three clients holds the task: the two others agree
        one, two, three = (own[name].numpy() for own in arrays)
        assert any(np.array_equal(*pair) for pair in ((one, two), (one, three), (two, three)))


def test_norms_at_home_of_tasks_that_a_client_lacks_are_kept(tmp_path):
    settings = ["trunk.sharing=cross-stitch", "trunk.norm=batch", "trunk.norm-parameters=local"]
    tap = run(tmp_path, *settings, "partition.clients=3", "partition.task-skew=rotate")
    for node_id in tap.get_node_ids():
        own = tap.context(node_id).state.array_records[OWN]
        assert {n.split("task-")[1].split(".")[0] for n in own if "norm_mean" in n} == {
            "digit",
            "parity",
            "ink",
        }


def test_the_whole_model_is_sent_where_the_experiment_says_so(tmp_path):
    tap = run(tmp_path, "federation.algorithm=whole-model")
    assert "heads.task-digit.0.weight" in sent_names(tap)


def test_a_reply_holds_nothing_but_trunk_and_sums(tmp_path):
    for reply in run(tmp_path).sent:
        keys = set(reply.content)
        kind = reply.metadata.message_type
        expected = {"query": {"config"}, "train": {"arrays", "metrics"}, "evaluate": {"metrics"}}
        assert keys == expected[kind]
        for record in reply.content.metric_records.values():
            for key, value in record.items():
                assert key == "num-examples" or key.split("/")[0] in (
                    "train",
                    "validation",
                    "test",
                )
                # Two numbers, or the four of R2: never a number per row.
                assert not isinstance(value, list) or len(value) <= 4


# What leaves a client -> the row of docs/privacy.md that tells of it.
DESCRIBED = {
    "client": "its name",
    "left_out": "why it refuses a message, or takes no part",
    "examples": "number of training, validation and test rows",
    "labelled": "labelled training rows per task",
    "columns": "names of its input columns",
    "sums": "per column: count, sum, sum of squares of its training rows",
    "categories": "the categories that occur in its training rows",
}
MEASURED = {
    "num-examples": "number of training rows",
    "train": "per task: summed loss and labelled rows, in training",
    "validation": "per task and split: summed loss, metric sums, labelled rows",
    "test": "per task and split: summed loss, metric sums, labelled rows",
}
WEIGHED = (
    "per task: summed weights, gradient norms and cosines with the other tasks' gradients over "
    "steps; what scaling and weighting remember of it"
)
STOPPED = "per task: epochs that it did before it stopped"
TRUNK = "trunk parameters after local training"
VARIATE = "the change of its control variate"
STATISTICS = "running mean and variance of every batch-normalised feature"
SECRET = {
    "keys": "two public keys",
    "shares": "shares of its secrets, sealed for its neighbours; commitments to them",
    "masked": "its masked vectors",
    "unmask": "shares of others' secrets",
}
MIXED = """
name = "mixed"
[data]
source = "folder"
path = "rows"
unusable = "leave-out"
[inputs.x]
columns = ["x"]
standardise = "federation"
[inputs.town]
kind = "categorical"
columns = ["town"]
[tasks.t]
kind = "regression"
[tasks.again]
kind = "regression"
target = "t"
[trunk]
widths = [2]
norm = "batch"
[loss]
record = "gradients"
scaling = "initial"
[federation]
rounds = 2
algorithm = "scaffold"
"""


def measured(key: str) -> str:
    """Name the row of the page that a figure of a reply belongs to."""
    kind = key.split("/")[-1]
    if kind == EPOCHS:
        return STOPPED
    return WEIGHED if kind in FIGURES or "/state-" in key else MEASURED[key.split("/")[0]]


def rows_of_the_page() -> dict[str, str]:
    """Value -> message, as the first table of docs/privacy.md says."""
    page = Path(__file__).parent.parent / "docs" / "privacy.md"
    table = page.read_text().split("| value |")[1].split("\n\n")[0]
    lines = ["", *(line for line in table.splitlines() if line.startswith("| "))]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {cell[0]: cell[1] for cell in cells}


def test_the_page_on_privacy_names_all_that_can_leave_and_nothing_else():
    assert set(Description.model_fields) == set(DESCRIBED)
    assert set(rows_of_the_page()) == {
        *DESCRIBED.values(),
        *MEASURED.values(),
        WEIGHED,
        STOPPED,
        TRUNK,
        STATISTICS,
        VARIATE,
        *SECRET.values(),
    }


def test_under_secure_aggregation_nothing_leaves_but_its_stages(tmp_path):
    """And every stage is a line of the page, as what it is sent in."""
    tap = run(tmp_path, "privacy.secure-aggregation.max-norm=1", "partition.clients=4")
    page, seen = rows_of_the_page(), set()
    for reply in tap.sent:
        kind, content = reply.metadata.message_type, reply.content
        if kind == "query":
            assert set(content) == {"config"}
            continue
        # One record, of masked words or of what a stage is about: no trunk, no metrics.
        (record,) = content.values()
        assert set(content) == {"masked"} if kind in ("train", "evaluate") else {"secure"}
        assert kind in ("train", "evaluate") or isinstance(record, ConfigRecord)
        seen.add(kind)
    assert seen == {"query.keys", "query.shares", "query.unmask", "train", "evaluate"}
    sent_in = {kind for value in SECRET.values() for kind in page[value].split(", ")}
    assert sent_in == seen


@pytest.mark.parametrize("by", ["train-reply", "message"])
@pytest.mark.parametrize("patience", [None, 1])
def test_all_that_leaves_is_in_the_table_of_the_page(tmp_path, by, patience):
    (tmp_path / "rows").mkdir()
    for client, count in {"a": 9, "b": 8, "small": 1}.items():
        lines = [f"{i},{'york' if i % 2 else 'bath'},{i * 2}\n" for i in range(count)]
        (tmp_path / "rows" / f"{client}.csv").write_text("x,town,t\n" + "".join(lines))
    (tmp_path / "mixed.toml").write_text(MIXED)
    settings = [f"evaluation.by={by}"]
    if patience is not None:  # which scaffold does not go with
        settings += [f"training.patience={patience}", "training.epochs=2"]
        settings += ["federation.algorithm=joint"]
    experiment = load_experiment(str(tmp_path / "mixed.toml"), settings)
    folder = RunFolder(tmp_path / "run")
    folder.create(experiment, "loopback")
    tap = Tap(open_clients(experiment).names)
    federate(tap, experiment, folder, strict=True)
    page, seen = rows_of_the_page(), set()
    for reply in tap.sent:
        kind, content = reply.metadata.message_type, reply.content
        arrays = [name for record in content.array_records.values() for name in record]
        values = [
            VARIATE
            if travels_beside(name)
            else (STATISTICS if STAYS["local-statistics"](name) else TRUNK)
            for name in arrays
        ]
        for record in content.metric_records.values():
            assert all(len(key.split("/")) == 3 for key in record if key != "num-examples")
            values += [measured(key) for key in record]
        for record in content.config_records.values():
            assert set(record) == {"description"}
            values += [DESCRIBED[key] for key in json.loads(record["description"])]
        assert all(page[value] == "any" or kind in page[value] for value in values)
        seen.update(values)
    # Every row but those of secure sums.
    assert seen == set(page) - {*SECRET.values(), STOPPED if patience is None else VARIATE}


def test_an_unexpected_error_tells_its_place_and_no_private_value(monkeypatch, tmp_path, caplog):
    secret = "patient 4711 is ill"

    def explode(*_):
        raise ValueError(secret)

    experiment = load_experiment("digits", SETTINGS)
    tap = Tap(open_clients(experiment).names)
    monkeypatch.setattr("client.job.open_state", explode)
    folder = RunFolder(tmp_path / "run")
    folder.create(experiment, "loopback")
    with pytest.raises(NothingLearnedError) as told:
        federate(tap, experiment, folder, strict=True)
    errors = [reply.error for reply in tap.sent if reply.has_error()]
    assert errors
    assert {error.code for error in errors} == {REFUSED}
    assert all("ValueError in explode" in error.reason for error in errors)
    assert secret not in str(told.value) + caplog.text + "".join(error.reason for error in errors)


class Saboteur(LoopbackGrid):
    """A loopback in which one client misbehaves."""

    def __init__(self, names, misdeed):
        super().__init__(app, names)
        self.misdeed = misdeed

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            reply = self.deliver(message)
            if (
                message.metadata.dst_node_id == FIRST_NODE + 1
                and message.metadata.message_type == "train"
            ):
                reply = self.misdeed(reply)
            if reply is not None:
                replies.append(reply)
        return replies


def poison(reply):
    arrays = reply.content.array_records["arrays"]
    name = next(iter(arrays))
    arrays[name] = type(arrays[name])(np.full(arrays[name].shape, np.nan, np.float32))
    return reply


def strip(reply):
    del reply.content["metrics"]
    return reply


@pytest.mark.parametrize(
    "misdeed", [poison, strip, lambda reply: None], ids=["nan", "bare", "mute"]
)
def test_the_run_goes_on_without_a_client_that_misbehaves(tmp_path, misdeed):
    experiment = load_experiment("digits", SETTINGS)
    names = open_clients(experiment).names
    folder = RunFolder(tmp_path / "run")
    folder.create(experiment, "loopback")
    lines = []
    federate(Saboteur(names, misdeed), experiment, folder, strict=True, watch=Watch(lines.append))
    assert [line["clients"]["answered"] for line in lines] == [9, 9, 9]
    assert all(list(line["clients"]["left-out"]) == [names[1]] for line in lines)
    assert np.isfinite([line["train"]["loss"] for line in lines]).all()
