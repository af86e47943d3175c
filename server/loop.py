"""The round loop: drives any Flower strategy's four hooks, and keeps what a run must not lose.

Flower's own `Strategy.start` cannot resume, stop early, save, or sample reproducibly; the loop does
these and leaves the rest of a round to the strategy: who is asked, and how trunks are combined.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid

from common.algorithms import ALGORITHMS
from common.best import BestBy
from common.errors import NothingLearnedError
from common.experiment import Experiment
from common.privacy.ledger import SUMS, UPDATE
from common.schedules.rates import rate_of_round
from common.weighting.balance import STATE, Rules
from common.wire import FloatArray, Instruction
from server.checkpoint import Checkpoints, Progress
from server.closing import UNUSABLE
from server.exchange import Exchange, Outcome
from server.figures import Figures, mean_figures, split_figures, task_figures
from server.privacy_accounts import PrivacyAccounts
from server.roster import Roster
from server.run_folder import RunFolder
from server.snapshots import Snapshots
from server.sums import EVERYBODY, SumTable
from server.watch import Watch
from server.whole_trunk import keep_whole_trunk

logger = logging.getLogger("fedmtl.server")

EVALUATED = ("validation", "test")


class RoundLoop:
    """One sitting of a run: from where its progress stands to its end.

    Args:
        experiment: the resolved experiment.
        grid: Flower's way to the clients.
        roster: the clients that take part.
        exchange: asks the clients and combines their trunks.
        folder: the run's record.
        checkpoints: where its state is kept.
        progress: where the run stands; changed as rounds are done.
        accounts: what the clients have paid for privacy.
        watch: follows the run.
        snapshots: checkpoints of earlier rounds that it keeps.
    """

    def __init__(
        self,
        experiment: Experiment,
        grid: Grid,
        roster: Roster,
        exchange: Exchange,
        folder: RunFolder,
        checkpoints: Checkpoints,
        progress: Progress,
        accounts: PrivacyAccounts,
        watch: Watch,
        snapshots: Snapshots,
    ) -> None:
        self.experiment, self.grid, self.roster, self.exchange = experiment, grid, roster, exchange
        self.folder, self.checkpoints, self.progress = folder, checkpoints, progress
        self.accounts, self.watch, self.snapshots = accounts, watch, snapshots
        self._reasons: Counter[str] = Counter()  # why replies of this sitting were left out
        self._losses: Counter[str] = Counter()  # why its rounds were skipped
        self._saved_at, self._saved_round = -math.inf, progress.round
        self.weights = experiment.task_weights()
        self.rules, self.best_by = Rules(experiment), BestBy.of(experiment)
        self.experiment_json = experiment.for_clients()
        self.tells = experiment.privacy.sums_regime != "withheld"  # whether there are figures

    def run(self, trunk: dict[str, FloatArray]) -> Figures:
        """Do the remaining rounds, evaluate the trunk it ends with, write results.json.

        Args:
            trunk: the trunk that the progress belongs to.

        Returns:
            What results.json holds.

        Raises:
            NothingLearnedError: no round, or not the last evaluation, had a usable reply.
            ClientsMissingError: too few clients are connected for the next round.
        """
        settings, stopped = self.experiment, "all rounds done"
        if self.progress.round == 0 and self.checkpoints.keep_clients is None:
            # Clients keep what they train in round 1 under the run's name, which must not be lost.
            self._checkpoint(trunk)
        patience = settings.evaluation.patience
        while self.progress.round < settings.federation.rounds:
            if patience is not None and self.progress.waited >= patience:
                stopped = f"early: no better {self.best_by.name} in {patience} evaluations"
                break
            self._gather()
            if why := self.accounts.exhausted():
                stopped = f"budget: {why}"
                break
            trunk, line = self.do_round(trunk)
            self.folder.append(line)
            self.snapshots.take(self.checkpoints, self.progress, trunk)
            self._save(trunk)
            self.watch.round_done(line)
        self._save(trunk, due=True)
        self._gather()
        return self.finish(trunk, stopped)

    def _gather(self) -> None:
        """See who is there, and wait where they are too few."""
        federation = self.experiment.federation
        needed = federation.min_clients
        waited = self.roster.gather(
            self.grid,
            needed,
            federation.round_timeout_s,
            lambda there: self.watch.waiting(there, needed),
        )
        if waited:
            self.watch.gathered(self.roster.count)

    def _save(self, trunk: Mapping[str, FloatArray], *, due: bool = False) -> None:
        """Write a checkpoint, unless one was written a moment ago.

        Where clients keep their own state elsewhere, theirs and ours must not drift apart: then
        every round is written.
        """
        interval = self.experiment.federation.checkpoint_interval_s
        ours = self.checkpoints.keep_clients is not None
        now = time.monotonic()
        if due and self._saved_round == self.progress.round:
            return
        if due or not ours or now - self._saved_at >= interval:
            self._checkpoint(trunk)
            self._saved_at, self._saved_round = time.monotonic(), self.progress.round

    def _checkpoint(self, trunk: Mapping[str, FloatArray]) -> None:
        self.progress.privacy = self.accounts.state()
        self.checkpoints.save(self.progress, trunk)

    def do_round(self, trunk: dict[str, FloatArray]) -> tuple[dict[str, FloatArray], Figures]:
        """Train one round; returns the next trunk and the round's line."""
        started, number = time.perf_counter(), self.progress.round + 1
        private = self.exchange.strategy.private
        max_norm = None if private is None else private.max_norm  # before it moves
        before = (self.progress.sent_bytes, self.progress.received_bytes)
        evaluation = self.experiment.evaluation
        is_due = self.tells and number % evaluation.every == 0
        rides = is_due and evaluation.by == "train-reply"
        outcome, lost = self._train(trunk, number, rides)
        line: Figures = {
            "round": number,
            "clients": participation(outcome),
            "lost-attempts": [participation(earlier) for earlier in lost],
            "skipped": outcome.loss or None,
            "notes": list(outcome.notes),
            "weights": {**self.weights, **mean_figures(outcome.sums, "train", "weight")},
            "lr": rate_of_round(self.experiment, number),
            "train": self._train_figures(outcome.sums),
            "evaluation": self._evaluation(number - 1, outcome) if rides else None,
        }
        moves = self.progress.usable_rounds
        trunk = self._advance(trunk, outcome)
        if is_due and evaluation.by == "message":
            line["evaluation"] = self._evaluation(number, self.evaluate(trunk))
            moves = self.progress.usable_rounds
        if self._judge(line["evaluation"], moves) and evaluation.keep == "best":
            self.checkpoints.best = trunk
            self.progress.best_memory = deepcopy(self.progress.loss_memory)
        if self.accounts.budgets:
            line["privacy"] = self.accounts.figures(max_norm)
        line["time_s"] = time.perf_counter() - started
        self.progress.elapsed_s += line["time_s"]
        line["elapsed_s"] = self.progress.elapsed_s
        line["traffic"] = {
            "sent-bytes": self.progress.sent_bytes - before[0],
            "received-bytes": self.progress.received_bytes - before[1],
        }
        return trunk, line

    def _train(
        self, trunk: Mapping[str, FloatArray], number: int, rides: bool
    ) -> tuple[Outcome, list[Outcome]]:
        """Have a round trained, and trained again where it loses too many replies.

        Returns:
            What came of the last attempt, and of those before it, which are lost.
        """
        federation = self.experiment.federation
        repeats = federation.most_repeats if federation.too_few == "repeat" else 0
        instruction, lost = self._instruct(number, rides), list[Outcome]()
        while True:
            outcome = self._count(self.exchange.train(trunk, instruction, len(lost)))
            self._enter("train", number, outcome, sum(array.size for array in trunk.values()))
            is_over = not outcome.loss or not outcome.asked or len(lost) == repeats
            if is_over or self.accounts.exhausted():  # an attempt costs as much as a round
                self.progress.repeats += len(lost)
                return outcome, lost
            lost.append(outcome)
            logger.warning(
                "round %d, attempt %d: %s; it is asked again", number, len(lost), outcome.loss
            )
            self._gather()

    def _advance(self, trunk: dict[str, FloatArray], outcome: Outcome) -> dict[str, FloatArray]:
        """Note that a round is done; returns the trunk that it leaves."""
        progress, following = self.progress, outcome.trunk
        progress.round += 1
        for note in outcome.notes:
            logger.warning("round %d: %s", progress.round, note)
        if following is None:
            logger.warning("round %d is skipped: %s", progress.round, outcome.loss)
            progress.skipped_rounds += 1
            self._losses[outcome.loss] += 1
            return trunk
        self._remember(outcome.sums)
        progress.usable_rounds += 1
        return following

    def evaluate(
        self, trunk: Mapping[str, FloatArray], *, keep: bool = False, returns: bool = False
    ) -> Outcome:
        """Ask all clients to evaluate a trunk with their own heads.

        Args:
            trunk: to be evaluated.
            keep: have them keep what they fit for it.
            returns: it is the best trunk, to be used with the heads of its time.
        """
        instruction = self._instruct(self.progress.round, evaluate=True)
        instruction = replace(instruction, keep=keep, returns=returns)
        if returns:
            instruction = replace(instruction, memory=self.progress.best_memory)
        outcome = self._count(self.exchange.evaluate(trunk, instruction))
        self._enter("evaluate", self.progress.round, outcome)
        return outcome

    def _enter(self, reply: str, number: int, outcome: Outcome, update: int = 0) -> None:
        """Count what clients released, and write it into the ledgers of a simulation.

        Args:
            reply: "train" or "evaluate".
            number: the round.
            outcome: what clients reported.
            update: how many numbers an update has.
        """
        if not self.accounts.is_on:
            return
        strategy = self.exchange.strategy
        clients = strategy.choose(number) if reply == "train" else self.roster.names
        self.accounts.count(reply, clients)
        if self.folder.keeps_ledgers:
            sums = outcome.sums.count_numbers()
            masked = sums.get(EVERYBODY, 0)  # of whose sums the server sees the total alone
            numbers = {n: {UPDATE: update, SUMS: sums.get(n, masked)} for n in clients}
            entries = self.accounts.entries(self.progress.run, number, reply, numbers)
            self.folder.append_ledgers(entries)

    def finish(self, trunk: Mapping[str, FloatArray], stopped: str) -> Figures:
        """Evaluate the last trunk, or the best, on all clients and write results.json."""
        fits = ALGORITHMS[self.experiment.federation.algorithm].fits_last
        ends_with, returns = self._end(trunk)
        outcome = self.evaluate(ends_with, keep=fits, returns=returns)
        fitted = fits and self.checkpoints.keep_clients is not None
        if fitted or self.experiment.privacy.sums_regime == "noised":  # which cost privacy
            self._checkpoint(trunk)
        if not self.progress.usable_rounds or not outcome.answered:
            raise NothingLearnedError(self._what_failed(outcome.loss), self.progress.best)
        results = {
            "experiment": self.experiment.name,
            "fingerprint": self.progress.fingerprint,
            "seed": self.experiment.seed,
            "rounds": self.progress.round,
            "stopped": stopped,
            "seconds": self.progress.elapsed_s,
            "final": self._evaluation(
                self._best_round() if returns else self.progress.round, outcome
            ),
            "best": self.progress.best,
            "clients": {
                name: self._client_figures(name, outcome.sums)
                for name in ([] if outcome.sums.is_total else outcome.sums.clients)
            },
            "skipped-rounds": self.progress.skipped_rounds,
            "repeats": self.progress.repeats,
            "traffic": {
                "sent-bytes": self.progress.sent_bytes,
                "received-bytes": self.progress.received_bytes,
            },
            "affinity": self.exchange.strategy.next.affinity.figures(),
            **self.exchange.strategy.rule.figures(),
            **self.accounts.results(),
            "warnings": [
                f"{name}: {why}"
                for name, why in sorted({**self.roster.refused, **outcome.left_out}.items())
            ],
        }
        keep_whole_trunk(self.folder, self.experiment, self.progress, ends_with)
        self.folder.finish(results)
        return results

    def _end(self, trunk: Mapping[str, FloatArray]) -> tuple[Mapping[str, FloatArray], bool]:
        """Choose the trunk to end with; returns it, and whether clients go back to its time."""
        best, number = self.checkpoints.best, self._best_round()
        if self.experiment.evaluation.keep == "best" and not number:
            logger.warning("no trunk was judged by all clients: the run ends with its last one")
        if best is None or number in (0, self.progress.round):
            return trunk, False
        return {name: best[name] for name in trunk}, True  # a file keeps no order

    def _best_round(self) -> int:
        """Tell after how many rounds the trunk was best that the run will return to; 0 for none."""
        best, keep = self.progress.best, self.experiment.evaluation.keep
        return int(best["trunk-round"]) if best and keep == "best" else 0

    def _what_failed(self, loss: str) -> str:
        """Say in one line that no reply was usable, why, and what to do.

        Args:
            loss: why the last evaluation came to nothing, where that is known.
        """
        done, skipped = self.progress.round, self.progress.skipped_rounds
        what = f"nothing was learned: no reply was usable in any of {done} rounds"
        if self.progress.usable_rounds:
            what = "no client could evaluate the last trunk" + (f" ({loss})" if loss else "")
        elif skipped and {*self._losses} != {UNUSABLE}:
            what = f"nothing was learned: {skipped} of {done} rounds were skipped"
            for loss, _ in self._losses.most_common(1):
                what += f" ({loss})"
        for reason, count in self._reasons.most_common(1):
            share = f"{count} of {self._reasons.total()} replies"
            what += f"; the commonest reason ({share}): {' '.join(reason.split())}"
        return f"{what}; correct the cause and start anew with another --out"

    def _instruct(self, number: int, evaluate: bool) -> Instruction:
        progress = self.progress
        return Instruction(
            self.experiment_json,
            progress.agreement,
            number,
            self.weights,
            evaluate,
            progress.loss_memory,
            run=progress.run,
            clients=self.roster.asked_per_round,
            heads_from=progress.heads_from,
            best=self._best_round(),
            privacy={**self.exchange.strategy.instruct(), **self.accounts.instruct()},
        )

    def _count(self, outcome: Outcome) -> Outcome:
        self.progress.sent_bytes += outcome.sent_bytes
        self.progress.received_bytes += outcome.received_bytes
        self._reasons.update(outcome.left_out.values())
        return outcome

    def _remember(self, sums: SumTable) -> None:
        """Average what the clients' loss weighting remembers, by labelled rows (scope "global")."""
        for name in self.rules.initial:
            for task, value in mean_figures(sums, "train", f"{STATE}{name}").items():
                self.progress.loss_memory.setdefault(task, {})[name] = value

    def _train_figures(self, sums: SumTable) -> Figures:
        figures = split_figures(self.experiment, sums, "train", self.weights)
        return figures or {"loss": None, "tasks": {}}

    def _evaluation(self, trunk_round: int, outcome: Outcome) -> Figures:
        figures: Figures = {"trunk-round": trunk_round, "clients": outcome.answered}
        for split in EVALUATED:
            figures[split] = split_figures(self.experiment, outcome.sums, split, self.weights)
        return figures

    def _judge(self, evaluation: Figures | None, moves: int) -> bool:
        """Compare with the best so far; only evaluations by all clients can be the best.

        Args:
            evaluation: of a trunk.
            moves: how often the trunk had moved by then. Who judges the same one again, after
                rounds that were skipped, waits no longer for a better one.

        Returns:
            Whether its trunk is the best now.
        """
        if not evaluation or not evaluation["validation"]:
            return False
        progress, is_better = self.progress, self.best_by.is_better
        figure = self.best_by.figure(evaluation["validation"])
        best = self.best_by.figure(progress.best["validation"]) if progress.best else None
        # What some clients alone measured, on rows that may be easier, does not stand in its way.
        is_best = evaluation["clients"] == len(self.roster.node_ids) and is_better(figure, best)
        if is_best:
            progress.best = evaluation
        if is_better(figure, progress.best_figure):
            progress.best_figure, progress.waited = figure, 0
        elif is_best:
            progress.waited = 0
        elif moves > progress.judged_moves:
            progress.waited += 1
        progress.judged_moves = moves
        return is_best

    def _client_figures(self, name: str, sums: SumTable) -> Figures:
        described = self.roster.descriptions[name]
        tasks: dict[str, Any] = {}
        for split in EVALUATED:
            for task, numbers in sums.client(name, split).items():
                metric = self.experiment.tasks[task].metric_name
                tasks.setdefault(task, {})[split] = task_figures(metric, numbers)
        return {"examples": described.examples, "tasks": tasks}


def participation(outcome: Outcome) -> Figures:
    """Say who was asked and what became of the replies."""
    return {
        "asked": outcome.asked,
        "answered": outcome.answered,
        "left-out": outcome.left_out,
    }
