"""A run on rows that stay on the disk is the run on rows in memory, on every engine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from common.errors import ConfigError
from common.experiment import Experiment
from simulations.benchmarks.larger_than_memory import plan, run_under, write_rows
from simulations.simulate import choose_engine, simulate
from tests.streamed_files import in_memory, mixed_frame, mixed_plan, write_frame


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Three clients in three formats, in pieces of a few rows."""
    monkeypatch.setattr("common.sources.pieces.CELLS", 100)
    monkeypatch.setattr("common.blocks.NUMBERS", 100)
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, suffix in enumerate((".parquet", ".csv", ".npz")):
        write_frame(mixed_frame(40 + 20 * number, number), folder / f"client-{number}{suffix}")
    return folder


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def outcome(experiment: Experiment, out: Path, workers: int = 1):
    """What a run leaves: the last checkpoint's arrays, and its figures."""
    simulate(experiment, out=out, engine="loopback", workers=workers)
    arrays = {
        str(path.relative_to(out)): {k: v.tobytes() for k, v in load_file(path).items()}
        for path in (out / "checkpoint").glob("*-00000002.safetensors")
    }
    return arrays, read_figures(out)


def read_figures(out: Path):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("round", "train", "evaluation")} for line in lines]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"data": {"stratify": "kind"}, "training": {"epochs": 2, "optimiser": "adam"}},
        {"trunk": {"sharing": "mmoe"}},
        {"loss": {"weighting": "uncertainty"}},
        {
            "data": {"validation": 0.2},
            "trunk": {"norm": "batch"},
            "training": {"epochs": 4, "patience": 1, "lr": 0.3},
        },
    ],
    ids=["plain", "stratified", "autograd", "weighed", "judged by batch norm at rest"],
)
def test_a_streamed_run_is_the_run_in_memory(rows, scratch, tmp_path, tables, workers):
    settings = {"federation": {"checkpoint-interval-s": 0}, **tables}
    experiment = mixed_plan(rows, **settings)
    streamed = outcome(experiment, tmp_path / "disk", workers=workers)
    assert streamed == outcome(in_memory(experiment), tmp_path / "ram")
    assert len(streamed[0]) > 1
    assert list(scratch.iterdir()) == []


def test_the_batched_engine_is_refused_and_never_chosen(rows, tmp_path):
    experiment = mixed_plan(rows)
    with pytest.raises(ConfigError, match=r"engine 'batched'.*data\.memory 'disk'"):
        simulate(experiment, out=tmp_path / "run", engine="batched")
    engine, reason = choose_engine(experiment)
    assert engine == "loopback"
    assert "data.memory 'disk'" in reason


IN_A_PROCESS = """
import sys, tempfile
tempfile.tempdir = sys.argv[4]
from pathlib import Path
from common.experiment import Experiment
from simulations.simulate import simulate
experiment = Experiment.model_validate_json(sys.argv[1])
simulate(experiment, out=Path(sys.argv[2]), engine=sys.argv[3],
         listener=lambda line: print("round", flush=True))
"""


def command(experiment: Experiment, out: Path, engine: str, scratch: Path) -> list[str]:
    written = experiment.model_dump_json(by_alias=True)
    return [sys.executable, "-c", IN_A_PROCESS, written, str(out), engine, str(scratch)]


@pytest.mark.slow
def test_flowers_engine_streams_too(rows, scratch, tmp_path):
    pytest.importorskip("ray")
    experiment = mixed_plan(rows)
    subprocess.run(command(experiment, tmp_path / "disk", "flower", scratch), check=True)
    simulate(in_memory(experiment), out=tmp_path / "ram", engine="loopback")
    assert read_figures(tmp_path / "disk") == read_figures(tmp_path / "ram")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_rows(rows, scratch, tmp_path, ending):
    experiment = mixed_plan(rows, federation={"rounds": 100000})
    words = command(experiment, tmp_path / "run", "loopback", scratch)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "round\n"
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert str(scratch) in maps  # the rows are there, in a file that has no name any more
        process.send_signal(ending)
        process.stdout.read()
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts all private memory")
def test_rows_of_several_times_the_memory_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path, ceiling = tmp_path / "rows.parquet", 900 * 10**6
    write_rows(path, 500_000)
    found = {memory: run_under(ceiling, plan(path, memory, 1)) for memory in ("disk", "ram")}
    assert "failed" not in found["disk"]
    assert found["disk"]["anonymous_mb"] < ceiling / 10**6
    assert "memory" in found["ram"]["failed"]
    assert os.listdir(tmp_path) == ["rows.parquet"]
