"""TensorBoard: event files in the run folder, shown by ``tensorboard --logdir runs``."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from common.experiment import Experiment
from common.experiment_file import dump_experiment
from simulations.tracking import Point

FOLDER = "tensorboard"
FLUSH_S = 10  # how late it may show a round


class TensorBoard:
    """Writes event files.

    Args:
        folder: where to; event files in it are of an earlier sitting, whose rounds come anew.
        experiment: shown as text.
    """

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        folder.mkdir(exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(str(folder), flush_secs=FLUSH_S)
        text = "".join(f"    {line}\n" for line in dump_experiment(experiment).splitlines())
        self.writer.add_text("experiment", text)

    def log(self, points: Sequence[Point]) -> None:
        """Add a scalar for each figure."""
        for tag, value, step in points:
            self.writer.add_scalar(tag, value, step)

    def close(self, *, is_whole: bool) -> None:
        """Write out what is kept back; an event file does not know of an end."""
        self.writer.close()


def open_tracker(folder: Path, experiment: Experiment, name: str, group: str) -> TensorBoard:
    """Track a run in its own folder, by whose place TensorBoard names and groups it."""
    return TensorBoard(folder / FOLDER, experiment)
