"""A mapped file holds what was written, is whole or refused, and is what safetensors reads."""

import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.errors import StateError
from common.tensor_file import TensorFile, as_tensor, map_file

ARRAYS = {
    "mask": np.array([True, False, True]),
    "wide": np.arange(6, dtype=np.float64).reshape(3, 2),
    "codes": np.array([3, -1, 2], np.int32),
    "none": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def path(tmp_path):
    layout = {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}
    target = tmp_path / "a.safetensors"
    with TensorFile(layout, path=target, metadata={"info": "mine"}) as file:
        for name, array in ARRAYS.items():
            for start in range(len(array)):
                file.write(name, start, array[start : start + 1])
    return target


def test_pieces_that_were_written_are_the_arrays(path):
    mapped, metadata = map_file(path)
    assert metadata == {"info": "mine"}
    for name, array in ARRAYS.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)
        assert mapped[name].flags.aligned


def test_safetensors_reads_the_file(path):
    found = load_file(path)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_owner_alone_can_read_it(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_mapped_cannot_be_written_and_outlives_the_file(path):
    mapped, _ = map_file(path)
    path.unlink()
    with pytest.raises(ValueError, match="read-only"):
        mapped["wide"][0] = 1
    assert as_tensor(mapped["wide"]).sum() == 15


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_a_file_that_is_not_whole_is_refused(path, length):
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match="file of arrays"):
        map_file(path)


def test_rows_beyond_the_layout_are_not_written(tmp_path):
    with (
        TensorFile({"a": (np.dtype(np.int64), (2,))}, tmp_path) as file,
        pytest.raises(RuntimeError, match="do not fit 'a'"),
    ):
        file.write("a", 1, np.zeros(2, np.int64))


def test_a_write_that_fails_half_way_leaves_a_line_and_no_file(tmp_path, monkeypatch):
    def crowded(_file, content, _offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", crowded)
    with pytest.raises(StateError, match="No space left on device"):
        TensorFile({"a": (np.dtype(np.int64), (2,))}, tmp_path)
    assert list(tmp_path.iterdir()) == []
