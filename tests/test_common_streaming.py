"""Rows read in pieces from a file are the rows that are read at once, to the last bit."""

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from common.blocks import blocks
from common.clients import open_clients
from common.errors import ConfigError, DataError, StateError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from common.preparation import prepare
from common.scaling import scaling_of
from common.sources.files import read_columns
from common.sources.pieces import open_pieces
from tests.streamed_files import (
    assert_same,
    frame_of,
    in_memory,
    mixed_frame,
    mixed_plan,
    read_all,
    write_frame,
)

FORMATS = (".parquet", ".csv", ".npz")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Pieces and blocks of a few rows, so that small files have many."""
    monkeypatch.setattr("common.sources.pieces.CELLS", 60)
    monkeypatch.setattr("common.blocks.NUMBERS", 50)


@pytest.fixture
def folder(tmp_path):
    for number, suffix in enumerate(FORMATS):
        write_frame(mixed_frame(40 + 20 * number, number), tmp_path / f"client-{number}{suffix}")
    return tmp_path


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"data": {"stratify": "kind"}},
        {"data": {"split": "ordered", "split-column": "day"}},
        {"inputs": {"x": {"columns": ["x*"], "missing": "drop-row", "standardise": "federation"}}},
        {"inputs": {"x": {"columns": ["x*"], "missing": "zero"}}},
        {"data": {"min-rows": 45, "unusable": "leave-out"}},
    ],
    ids=["means", "stratified", "ordered", "dropped", "zeros", "left-out"],
)
def test_all_rules_give_the_same_rows(folder, tables):
    experiment = mixed_plan(folder, **tables)
    told, streamed = read_all(experiment)
    told_whole, whole = read_all(in_memory(experiment))
    assert told == told_whole
    assert not streamed[0].resident
    for own, other in zip(streamed, whole, strict=True):
        assert_same(own, other)


@pytest.mark.skipif(
    "FEDMTL_DATA" not in os.environ,
    reason="FEDMTL_DATA names no folder with the public data sets",
)
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["communities-crime", "parkinsons-time", "heart-disease"])
def test_public_data_gives_the_same_rows(tmp_path, name, suffix, monkeypatch):
    monkeypatch.setattr("common.sources.pieces.CELLS", 3000)
    shipped = load_experiment(name)
    source = open_clients(shipped)
    for client in source.names[:3]:
        write_frame(frame_of(source.read(client)), tmp_path / f"{client}{suffix}", group=50)
    data = {"source": "folder", "path": str(tmp_path), "memory": "disk"}
    settings = shipped.model_dump(by_alias=True, mode="json")
    experiment = Experiment.model_validate({**settings, "data": {**settings["data"], **data}})
    told, streamed = read_all(experiment)
    told_whole, whole = read_all(in_memory(experiment))
    assert told == told_whole
    for own, other in zip(streamed, whole, strict=True):
        assert_same(own, other)


def test_images_are_streamed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 4, 4), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", image=pixels, kind=np.arange(40) % 3, y=np.arange(40.0))
    image = {"kind": "image", "columns": ["image"], "shape": [1, 4, 4], "scale": 255}
    settings = mixed_plan(tmp_path).model_dump(by_alias=True, mode="json")
    experiment = Experiment.model_validate({**settings, "inputs": {"pixels": image}})
    (streamed,), (whole,) = (read_all(e)[1] for e in (experiment, in_memory(experiment)))
    assert streamed.train.inputs["pixels"].shape[1:] == (1, 4, 4)
    assert_same(streamed, whole)


def test_the_clients_of_one_table_are_those_of_the_whole_file(tmp_path):
    frame = mixed_frame(90).assign(site=[10, 2, 10] * 30)
    write_frame(frame, tmp_path / "all.parquet")
    table = {"source": "table", "path": str(tmp_path / "all.parquet"), "client-column": "site"}
    experiment = mixed_plan(tmp_path, data=table)
    streamed, whole = read_all(experiment)[1], read_all(in_memory(experiment))[1]
    assert [data.name for data in streamed] == ["2", "10"]
    for own, other in zip(streamed, whole, strict=True):
        assert_same(own, other)


@pytest.mark.parametrize("suffix", FORMATS)
def test_pieces_put_together_are_the_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_frame(mixed_frame(50), path)
    whole, pieces = read_columns(path), list(open_pieces(path).read())
    assert len(pieces) > 3
    assert list(pieces[0]) == list(whole) == list(open_pieces(path).columns)
    for name, cells in whole.items():
        joined = np.concatenate([piece[name] for piece in pieces])
        assert [str(c) for c in joined] == [str(c) for c in cells]


def test_a_column_of_a_csv_file_has_one_type_in_all_pieces(tmp_path):
    """A piece of "007" alone would read as the number 7; "TRUE" beside gaps is a truth."""
    cells = {
        "code": ["007"] * 30 + ["x"] * 30,
        "whole": [str(2**60)] * 30 + ["0.5"] * 30,
        "truth": ["TRUE"] * 30 + [""] * 30,
        "mixed": ["TRUE"] * 30 + ["1"] * 30,
    }
    pd.DataFrame(cells).to_csv(tmp_path / "a.csv", index=False)
    whole = read_columns(tmp_path / "a.csv")
    pieces = list(open_pieces(tmp_path / "a.csv").read())
    for name in ("code", "mixed", "truth"):
        assert [c for piece in pieces for c in map(_cell, piece[name])] == list(
            map(_cell, whole[name])
        )
    assert np.concatenate([piece["whole"] for piece in pieces]).tolist() == whole["whole"].tolist()


def _cell(cell):
    return None if cell is None or cell != cell else str(cell)


def test_a_scaling_of_many_blocks_is_that_of_one(monkeypatch):
    values = np.random.default_rng(0).normal(5, 2, (200, 3))
    rows = np.arange(0, 200, 2)
    assert len(list(blocks(values, rows))) > 3
    in_blocks = scaling_of(values, rows)
    monkeypatch.setattr("common.blocks.NUMBERS", 10**6)
    np.testing.assert_allclose(in_blocks.mean, scaling_of(values[rows]).mean)
    np.testing.assert_allclose(in_blocks.deviation, scaling_of(values[rows]).deviation)


def test_text_in_a_later_piece_is_told_with_its_rows(tmp_path):
    frame = mixed_frame(60)
    frame["x0"] = [*map(str, range(50)), *["high"] * 10]
    write_frame(frame, tmp_path / "a.parquet")
    experiment = mixed_plan(tmp_path)
    with pytest.raises(DataError) as caught:
        read_all(experiment)
    assert "among its rows 50 to 56, client 'a', column 'x0' (inputs.x) must hold numbers" in str(
        caught.value
    )
    assert "high" not in str(caught.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_changes_between_passes_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_frame(mixed_frame(50), path)
    file = open_pieces(path)
    pieces = file.read()
    next(pieces)
    write_frame(mixed_frame(80), path)
    with pytest.raises(DataError, match=r"file 'a.* changed while it was read in pieces"):
        list(pieces)
    with pytest.raises(DataError, match="changed while it was read"):
        list(file.read())


def test_a_full_disk_is_a_line(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    experiment = mixed_plan(folder)
    table = open_clients(experiment).read("client-0")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StateError, match=r"data\.memory 'disk'.*No space left on device.*TMPDIR"):
        prepare(table, experiment)


def test_a_scratch_folder_that_is_missing_is_a_line(folder):
    experiment = mixed_plan(folder)
    table = open_clients(experiment).read("client-0").beside(folder / "nowhere")
    with pytest.raises(StateError, match=r"nowhere.*No such file or directory"):
        prepare(table, experiment)


def test_no_file_is_seen_and_none_stays_open(folder, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    before = len(os.listdir("/proc/self/fd"))
    experiment = mixed_plan(folder)
    prepared = prepare(open_clients(experiment).read("client-0").beside(scratch), experiment)
    assert len(os.listdir("/proc/self/fd")) > before
    assert list(scratch.iterdir()) == []
    del prepared
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("suffix", "content"), [(".csv", b""), (".parquet", b"PAR1"), (".npz", b"PK")]
)
def test_a_broken_file_is_a_line(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=f"file 'a{suffix}' cannot be read as"):
        open_pieces(tmp_path / f"a{suffix}")


def test_arrays_stored_column_by_column_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(np.ones((5, 3))))
    with pytest.raises(DataError, match="'x' stored column by column; save it again"):
        open_pieces(tmp_path / "a.npz")


def test_arrays_of_unlike_lengths_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(5), y=np.ones(4))
    with pytest.raises(DataError, match="same number of rows, got 4 in 'y' and 5 in 'x'"):
        open_pieces(tmp_path / "a.npz")


def test_a_missing_client_column_is_a_line(tmp_path):
    write_frame(mixed_frame(20), tmp_path / "a.parquet")
    table = {"source": "table", "path": str(tmp_path / "a.parquet"), "client-column": "site"}
    with pytest.raises(DataError, match="has no column 'site'"):
        open_clients(mixed_plan(tmp_path, data=table))


def test_gaps_in_the_client_column_are_counted(tmp_path):
    write_frame(mixed_frame(20).assign(site=["a", None] * 10), tmp_path / "a.parquet")
    table = {"source": "table", "path": str(tmp_path / "a.parquet"), "client-column": "site"}
    with pytest.raises(DataError, match="got 10 empty cells of 20"):
        open_clients(mixed_plan(tmp_path, data=table))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["data.memory=disk"], "data.memory 'disk' is for data.source 'table' or 'folder'"),
        (["data.memory=disk", "data.source=table"], r"must be 'ram' with a \[partition\]"),
        (["data.memory=tape"], "data.memory must be"),
    ],
)
def test_what_cannot_be_streamed_is_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        load_experiment("digits", settings)


def test_where_rows_are_does_not_change_what_a_run_is(folder):
    experiment = mixed_plan(folder)
    assert experiment.fingerprint() == in_memory(experiment).fingerprint()


def test_a_file_too_large_for_memory_names_the_way_out(tmp_path, monkeypatch):
    def crowded(_: Path):
        raise MemoryError

    (tmp_path / "a.csv").write_text("x\n1\n")
    monkeypatch.setitem(read_columns.__globals__["READERS"], ".csv", crowded)
    with pytest.raises(DataError, match=r"does not fit in memory; set data\.memory to 'disk'"):
        read_columns(tmp_path / "a.csv")


def test_a_thread_that_arrow_has_no_memory_for_is_a_file_too_large(tmp_path, monkeypatch):
    def crowded(_: Path):
        reason = os.strerror(errno.EAGAIN)
        raise pa.ArrowException(f"Unknown error: Failed to launch worker thread: {reason}")

    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setattr(pd, "read_parquet", crowded)
    with pytest.raises(DataError, match="does not fit in memory"):
        read_columns(tmp_path / "a.parquet")
