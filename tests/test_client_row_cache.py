"""Rows from the cache are the rows themselves, and a change of file or settings is seen."""

import os
import stat
from dataclasses import replace
from tempfile import TemporaryFile

import numpy as np
import pandas as pd
import pytest
import torch

from client.place import Place
from client.row_cache import RowCache
from client.session import close_sessions, open_rows, open_session
from common.agreement import agree
from common.errors import ConfigError, StateError
from common.experiment_file import load_experiment
from common.sections.rows import Data
from common.sources.registry import source_signature
from common.tensor_file import TensorFile
from tests.streamed_files import assert_same

EXPERIMENT = """
name = "mine"
[data]
source = "folder"
path = "rows"
[inputs.x]
columns = ["x"]
standardise = "client"
[inputs.ward]
kind = "categorical"
columns = ["ward"]
[tasks.size]
kind = "regression"
standardise = "client"
[tasks.kind]
kind = "multiclass"
classes = 3
[trunk]
widths = [4]
"""


def write(folder, offset: float = 0.0) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    kinds = rng.integers(0, 3, size=40).astype(object)
    kinds[:5] = None
    table = pd.DataFrame({"x": x, "size": x + offset, "ward": ["a", "b"] * 20, "kind": kinds})
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / "one.csv", index=False)


@pytest.fixture
def node(tmp_path):
    write(tmp_path / "rows")
    (tmp_path / "mine.toml").write_text(EXPERIMENT)
    experiment = load_experiment(str(tmp_path / "mine.toml"))
    place = Place(data=str(tmp_path / "rows"), state=str(tmp_path / "state"), device="cpu")
    close_sessions()
    yield experiment.model_dump_json(by_alias=True), place
    close_sessions()


def read(node):
    """Describe and encode as a process of its own would."""
    text, place = node
    close_sessions()
    rows = open_rows(text, place)
    description = rows.describe(rows.names[0])
    agreement = agree([description], rows.experiment).to_json()
    return description, open_session(text, agreement, place).client(rows.names[0])


def no_reading(*_):
    raise AssertionError("raw rows were read")


def test_the_second_process_gets_the_same_rows_without_reading_any(node, monkeypatch):
    described, data = read(node)
    monkeypatch.setattr("client.session.open_clients", no_reading)
    monkeypatch.setattr("client.session.prepare", no_reading)
    again, cached = read(node)
    assert again == described
    assert cached.notes == data.notes
    assert cached.tasks == data.tasks
    assert cached.fitted.to_json() == data.fitted.to_json()
    for split, rows in data.splits.items():
        for kind in ("inputs", "targets", "labelled"):
            parts, others = getattr(rows, kind), getattr(cached.splits[split], kind)
            assert list(parts) == list(others)
            assert all(torch.equal(parts[key], others[key]) for key in parts)
    for task, scale in data.target_scales.items():
        assert torch.equal(scale.mean, cached.target_scales[task].mean)
        assert torch.equal(scale.deviation, cached.target_scales[task].deviation)


def test_a_changed_file_is_read_anew_even_where_its_time_was_set_back(node, tmp_path):
    _, before = read(node)
    path = tmp_path / "rows" / "one.csv"
    times = path.stat()
    write(tmp_path / "rows", offset=5.0)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    _, after = read(node)
    assert not torch.equal(before.target_scales["size"].mean, after.target_scales["size"].mean)


def test_a_long_lived_process_sees_a_changed_file_at_its_next_message(node, tmp_path):
    text, place = node
    before = open_rows(text, place)
    assert open_rows(text, place) is before
    write(tmp_path / "rows", offset=5.0)
    assert open_rows(text, place) is not before


def test_a_damaged_entry_is_made_again(node, tmp_path, caplog):
    _, data = read(node)
    for path in (tmp_path / "state" / "cache").rglob("*.*"):
        path.write_bytes(path.read_bytes()[:50])
    _, again = read(node)
    assert torch.equal(data.train.inputs["x"], again.train.inputs["x"])
    assert "encoded anew" in caplog.text


def test_training_does_not_write_into_the_mapped_file(node):
    _, data = read(node)
    _, cached = read(node)
    cached.train.inputs["x"].zero_()
    _, again = read(node)
    assert torch.equal(again.train.inputs["x"], data.train.inputs["x"])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"threads": "4"}, "threads must be a whole number"),
        ({"threads": True}, "threads must be a whole number"),
        ({"precision": "low"}, "precision must be one of highest, high, medium"),
        ({"memory": "tape"}, "memory must be one of ram, disk"),
        ({"divice": "cpu"}, "keys must be among data"),
    ],
)
def test_a_wrong_node_config_is_told_in_a_line(config, told):
    with pytest.raises(ConfigError, match=told):
        Place.of(config)


def test_the_nodes_decisions_stand_above_the_experiment(node):
    text, _ = node
    place = Place.of({"device": "cpu", "threads": 3, "data": "/elsewhere"})
    settled = place.settle(open_rows(text, Place()).experiment)
    assert (settled.training.device, settled.training.threads) == ("cpu", 3)
    assert settled.data.path == "/elsewhere"


def test_a_link_to_nothing_among_the_rows_is_no_fault(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")
    data = Data(source="folder", path=str(tmp_path))
    before = source_signature(data)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert source_signature(data) != before


def test_rows_that_another_version_encoded_are_not_found(tmp_path, monkeypatch):
    experiment = load_experiment("digits", [])
    ours = RowCache(tmp_path, experiment, "x").folder
    monkeypatch.setattr("client.row_cache._own_version", lambda: "0.0.1")
    assert RowCache(tmp_path, experiment, "x").folder != ours


@pytest.fixture
def disk_node(node):
    text, place = node
    return text, replace(place, memory="disk")


def test_rows_on_disk_are_the_same_rows_from_the_first_process_on(node, disk_node):
    described, data = read(node)
    for _ in range(2):  # encoded, then found in the cache
        again, streamed = read(disk_node)
        assert again == described
        assert not streamed.resident
        assert_same(streamed, data)


def test_rows_on_disk_are_read_and_encoded_once(disk_node, monkeypatch):
    read(disk_node)
    monkeypatch.setattr("client.session.open_clients", no_reading)
    monkeypatch.setattr("client.session.prepare", no_reading)
    read(disk_node)


def test_rows_on_disk_lie_in_the_state_folder_for_the_owner_alone(disk_node, tmp_path, monkeypatch):
    made = []
    opened = TemporaryFile

    def note(*arguments, **options):
        made.append(options["dir"])
        return opened(*arguments, **options)

    monkeypatch.setattr("tempfile.TemporaryFile", note)
    read(disk_node)
    cache = tmp_path / "state" / "cache"
    assert made
    assert all(cache in folder.parents for folder in made)
    (entry,) = cache.rglob("*.safetensors")
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(entry.parent.stat().st_mode) == 0o700


def test_a_damaged_entry_on_disk_is_made_again(disk_node, tmp_path, caplog):
    _, data = read(disk_node)
    (entry,) = (tmp_path / "state" / "cache").rglob("*.safetensors")
    content = entry.read_bytes()
    entry.unlink()  # it stays mapped
    entry.write_bytes(content[:-1])
    _, again = read(disk_node)
    assert_same(again, data)
    assert "encoded anew" in caplog.text


def test_without_room_for_the_cache_rows_on_disk_are_used_as_they_are(
    disk_node, node, tmp_path, caplog, monkeypatch
):
    def refuse(*_, **__):
        raise StateError("no room")

    _, whole = read(node)
    plain = TensorFile

    def crowded(layout, folder=None, *, path=None, metadata=None):
        return refuse() if path else plain(layout, folder)

    monkeypatch.setattr("client.row_cache.TensorFile", crowded)
    _, data = read(disk_node)
    assert_same(data, whole)
    assert "no cache of the rows: no room" in caplog.text
    assert list((tmp_path / "state" / "cache").rglob("*.partial")) == []


def test_a_node_cannot_stream_what_is_read_whole():
    experiment = load_experiment("digits", [])
    with pytest.raises(ConfigError, match=r"node config: data\.memory 'disk' is for data\.source"):
        Place(memory="disk").settle(experiment)
