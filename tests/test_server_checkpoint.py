"""The run folder and its checkpoint: what cannot be read or written is told, nothing is lost."""

import errno
import json
import math

import numpy as np
import pytest

from common.errors import CheckpointError
from server import checkpoint
from server.checkpoint import Checkpoints, Progress
from server.run_folder import RunFolder

TRUNK = {"trunk.w": np.arange(6, dtype=np.float32)}


def keep_clients(folder, number):
    (folder / "clients.safetensors").write_bytes(
        (folder / f"trunk-{number:08d}.safetensors").read_bytes()
    )
    return {"clients": "clients.safetensors"}


MEMORY = {"m_t": np.array([1.5, -2.5], np.float32), "count": np.array([7])}
FILES = ["trunk-00000001.safetensors", "clients.safetensors", "strategy-00000001.safetensors"]


@pytest.fixture
def saved(tmp_path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoint", keep_clients)
    checkpoints.strategy_state = lambda: MEMORY
    checkpoints.save(Progress("one", round=1), TRUNK)
    return checkpoints


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [None, b"", b"garbage", "half"])
def test_a_file_that_is_gone_or_damaged_is_told(saved, file, content):
    path = saved.folder / file
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    if content is not None:
        path.write_bytes(half if content == "half" else content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        saved.load("one")


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(saved, monkeypatch):
    def refuse(path, text, *, durable):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "replace_text", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left.*--resume"):
        saved.save(Progress("one", round=2), TRUNK)
    progress, trunk = saved.load("one")
    assert progress.round == 1
    np.testing.assert_array_equal(trunk["trunk.w"], TRUNK["trunk.w"])
    np.testing.assert_array_equal(saved.load_strategy(progress)["m_t"], MEMORY["m_t"])
    files = {path.name for path in saved.folder.iterdir()}
    assert files == {"checkpoint.json", *FILES}  # nothing of what could not be finished


def test_what_the_strategy_remembers_is_kept_as_it_is(saved):
    progress, _ = saved.load("one")
    kept = saved.load_strategy(progress)
    assert {name: array.tolist() for name, array in kept.items()} == {
        "m_t": [1.5, -2.5],
        "count": [7],
    }
    assert kept["m_t"].dtype == np.float32


def test_a_later_checkpoint_removes_the_strategys_earlier_file(saved):
    saved.save(Progress("one", round=2), TRUNK)
    assert sorted(path.name for path in saved.folder.glob("strategy-*")) == [
        "strategy-00000002.safetensors"
    ]
    saved.strategy_state = dict
    saved.save(Progress("one", round=3), TRUNK)
    assert not list(saved.folder.glob("strategy-*"))
    progress, _ = saved.load("one")
    assert "strategy" not in progress.files
    assert saved.load_strategy(progress) == {}


@pytest.mark.parametrize("round_number", [1, 2])
def test_a_state_that_cannot_be_written_leaves_the_checkpoint_before(
    saved, monkeypatch, round_number
):
    """Of the next round, or of the same one, whose files have the same names."""

    def refuse(tensors, path, metadata):
        path.write_bytes(b"")
        if "strategy" in path.name or round_number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        saved.save(Progress("one", round=round_number), TRUNK)
    assert saved.load("one")[0].round == 1
    assert {path.name for path in saved.folder.iterdir()} == {"checkpoint.json", *FILES}


def test_a_record_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written: No such file"):
        RunFolder(tmp_path / "gone").append({"round": 1})


def test_figures_that_do_not_exist_are_null_in_files(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append({"round": 1, "loss": math.nan})
    folder.finish({"final": {"auroc": math.nan}})
    assert json.loads(folder.metrics.read_text(), parse_constant=pytest.fail)["loss"] is None
    assert json.loads(folder.results.read_text(), parse_constant=pytest.fail) == {
        "final": {"auroc": None}
    }


def test_a_folder_whose_run_could_not_start_is_used_again(tmp_path, tiny):
    RunFolder(tmp_path / "run").create(tiny, "loopback")
    RunFolder(tmp_path / "run").create(tiny, "loopback")


def test_only_a_run_with_a_checkpoint_is_offered_to_be_resumed(tmp_path, tiny):
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"choose another --out$"):
        RunFolder(tmp_path).create(tiny, "loopback")
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(CheckpointError, match="--resume"):
        RunFolder(tmp_path).create(tiny, "loopback")
