"""A deployed run as others see it: its log, its status, its figures."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from common.experiment import Experiment
from common.journal import Journal, describe_error
from common.status import DONE, FAILED, TRAINING, WAITING, Status, StatusFile
from server.checkpoint import Progress, resume_command
from server.figures import Figures
from server.prometheus import ServerFigures, reason_class
from server.roster import Roster
from server.run_folder import RunFolder
from server.watch import Watch

logger = logging.getLogger("fedmtl.server")
LOGGERS = ("fedmtl", "flwr")
STOPPED = "stopped from outside: by a signal, by flwr stop, or because the SuperLink is gone"
LEAST_AGE_S, MOST_AGE_S = 60.0, 600.0  # of a status: a server at work renews it every few seconds


class DeployedWatch(Watch):
    """Keeps log.jsonl, status.json and metrics.prom of a run folder.

    Args:
        folder: the run folder.
        experiment: the resolved experiment.
        resumed: whether the run goes on from a checkpoint.
    """

    def __init__(self, folder: RunFolder, experiment: Experiment, resumed: bool) -> None:
        super().__init__()
        self.folder, self.experiment, self.resumed = folder, experiment, resumed
        self.journal = Journal(folder.path / "log.jsonl")
        self.journal.setLevel(logging.INFO)
        federation = experiment.federation
        age = max(LEAST_AGE_S, min(MOST_AGE_S, federation.round_timeout_s))
        self.status = StatusFile(
            folder.path, Status("server", rounds=federation.rounds, max_age_s=age)
        )
        self.figures = ServerFigures(folder.path)
        self.roster: Roster | None = None

    def started(self, progress: Progress, roster: Roster) -> None:
        """Name the run in everything that follows."""
        self.roster, self.journal.fields["run"] = roster, progress.run
        self.status.set(state=TRAINING, run=progress.run, round=progress.round)
        self.figures.started(progress.run, self.experiment.name, progress.round, roster.count)
        logger.info(
            "run %s of experiment %s %s: %d of %d rounds done, %d clients",
            progress.run,
            self.experiment.name,
            "goes on" if self.resumed else "starts",
            progress.round,
            self.experiment.federation.rounds,
            roster.count,
            extra={
                "event": "resumed" if self.resumed else "started",
                "folder": self.folder.path.name,
                "experiment": self.experiment.name,
                "fingerprint": progress.fingerprint,
                "round": progress.round,
                "clients": roster.names,
                "heads_from": progress.heads_from,
            },
        )

    def waiting(self, connected: int, needed: int) -> None:
        """Say that a round waits for clients."""
        self.status.set(state=WAITING)
        self.figures.waiting(connected)
        logger.warning(
            "waiting for clients: %d of %d that are needed are connected",
            connected,
            needed,
            extra={"event": "waiting", "connected": connected, "needed": needed},
        )

    def gathered(self, connected: int) -> None:
        """Say that the run goes on."""
        self.status.set(state=TRAINING)
        logger.info(
            "the run goes on with %d clients",
            connected,
            extra={"event": "gathered", "connected": connected},
        )

    def round_done(self, line: Figures) -> None:
        """Tell of a round that is done and on disk."""
        number, clients, traffic = line["round"], line["clients"], line["traffic"]
        self.status.set(state=TRAINING, round=number)
        self.figures.round_done(line, self.roster.count if self.roster else clients["asked"])
        logger.info(
            "round %d of %d: %d of %d answered, %.1f s",
            number,
            self.experiment.federation.rounds,
            clients["answered"],
            clients["asked"],
            line["time_s"],
            extra={
                "event": "round",
                "round": number,
                "asked": clients["asked"],
                "answered": clients["answered"],
                "attempts": len(line["lost-attempts"]) + 1,
                "skipped": line["skipped"],
                "left_out": {
                    name: {"reason": reason, "class": reason_class(reason)}
                    for name, reason in clients["left-out"].items()
                },
                "sent_bytes": traffic["sent-bytes"],
                "received_bytes": traffic["received-bytes"],
                "seconds": line["time_s"],
                "train_loss": line["train"]["loss"],
                "checkpoint": number,
            },
        )

    def beat(self) -> None:
        """Show that the server is alive."""
        self.status.beat()

    def ended(self, error: BaseException | None) -> None:
        """Tell how the run ended; one that failed can be resumed."""
        if error is None:
            self.status.set(state=DONE)
            done = {"event": "done", "round": self.status.status.round}
            logger.info("the run is done", extra=done)
            return
        reason = describe_error(error) if isinstance(error, Exception) else STOPPED
        self.status.set(state=FAILED, error=reason)
        logger.error(
            "the run ended early: %s",
            reason,
            extra={
                "event": "stopped",
                "round": self.status.status.round,
                "reason": reason,
                "resume": resume_command(self.folder.path),
            },
        )


@contextmanager
def followed(folder: RunFolder, experiment: Experiment, resumed: bool) -> Iterator[DeployedWatch]:
    """Keep a run's log, status and figures while the block runs it."""
    watch = DeployedWatch(folder, experiment, resumed)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for each in loggers:
        each.addHandler(watch.journal)
    try:
        watch.figures.file.serve(logger)
        yield watch
    except BaseException as error:
        watch.ended(error)
        raise
    else:
        watch.ended(None)
    finally:
        watch.figures.file.close()
        for each in loggers:
            each.removeHandler(watch.journal)
        watch.journal.close()
