"""An experiment's scaling and weighting together, and what they remember about the tasks.

The rules see present tasks only: an absent task's loss is NaN, its weight is 0, and what is
remembered of it stays as it was, whatever a rule returns. K is the number of clients that train
side by side; T that of the experiment's tasks, in its order.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.experiment import Experiment
from common.methods import make_options
from common.seeding import torch_generator
from common.weighting.fixed import Fixed
from common.weighting.gradients import GradientBalancing
from common.weighting.scaling import SCALINGS
from common.weighting.table import WEIGHTINGS
from common.weighting.weighting import Step, Weighting

Memory = Mapping[str, Mapping[str, float]]  # task -> name -> what is remembered
SCALE = "scale"  # what a scaling remembers
STATE = "state-"  # begins the name of what is remembered, in a report
# In a report: w_t, |g_t|, w_t |g_t|, and the mean cosine of g_t with the other tasks' gradients.
FIGURES = ("weight", "norm", "pull", "cosine")


class Rules:
    """The rules of an experiment; they remember nothing from round to round.

    Attributes:
        tasks: T names.
        weighting: the loss weighting.
        scaling: what comes before it.
        initial: name of what clients remember -> its value at first.
    """

    def __init__(self, experiment: Experiment) -> None:
        loss = experiment.loss
        self.experiment = experiment
        self.tasks = tuple(experiment.tasks)
        options = make_options(WEIGHTINGS, loss.weighting, loss.options)
        self.weighting: Weighting = WEIGHTINGS[loss.weighting].load()(options, experiment)
        self.scaling = SCALINGS[loss.scaling]
        self.initial = self.weighting.initial
        if self.scaling.observe is not None:
            self.initial[SCALE] = 0.0

    @property
    def is_fixed(self) -> bool:
        """Whether weights are those of the round at every step, and nothing else is recorded."""
        plain = isinstance(self.weighting, Fixed) and self.experiment.loss.scaling == "none"
        return plain and not self.norms

    @property
    def gradients(self) -> GradientBalancing | None:
        """The weighting, where it balances gradients."""
        return self.weighting if isinstance(self.weighting, GradientBalancing) else None

    @property
    def norms(self) -> set[str]:
        """Whose gradient norms each step needs: "last" shared layer, "trunk", both or neither."""
        needed = {self.weighting.needs_norms} if self.weighting.needs_norms else set()
        return needed | ({"trunk"} if self.experiment.loss.record == "gradients" else set())

    def remember(self, memory: Memory, device: torch.device) -> dict[str, Tensor]:
        """Lay out what one client remembers: name -> [1, T]; initial where there is nothing."""
        return {
            name: torch.tensor(
                [[memory.get(task, {}).get(name, value) for task in self.tasks]],
                dtype=torch.float32,
                device=device,
            )
            for name, value in self.initial.items()
        }

    def recall(self, state: Mapping[str, Tensor], row: int = 0) -> dict[str, dict[str, float]]:
        """Read one client's row back: task -> name -> what is remembered."""
        columns = {name: values[row].tolist() for name, values in state.items()}
        return {
            task: {name: values[place] for name, values in columns.items()}
            for place, task in enumerate(self.tasks)
        }


class Balance:
    """The rules at work during a round, for K clients side by side.

    Args:
        rules: of the experiment.
        state: name -> [K, T], what each client remembers; changed in place.
        base: task name -> the weight that comes with the round and multiplies the rules'.
    """

    def __init__(self, rules: Rules, state: dict[str, Tensor], base: Mapping[str, float]) -> None:
        self.rules, self.state = rules, state
        self._base = torch.tensor([base[task] for task in rules.tasks])
        self._sums: dict[str, Tensor] = {}  # figure -> [K, T], summed over steps
        self._steps: dict[str, Tensor] = {}  # figure -> [K, T], over how many
        self._noise: torch.Generator | None = None
        self._last: Step | None = None
        if rules.gradients is not None:
            rules.gradients.reset()

    def start_epoch(self, round_number: int, epoch: int) -> None:
        """Begin the epoch's random draws, the same at every client."""
        if self.rules.weighting.needs_noise:
            seed = self.rules.experiment.seed
            self._noise = torch_generator(seed, "loss-weights", round_number, epoch)

    def scale(self, losses: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the losses of the first clients' batches.

        Args:
            losses: [K', T], mean over labelled rows.
            taught: bool [K', T].

        Returns:
            Values, NaN where absent, and slopes times the round's weights, 0 where absent; [K', T]
            both.
        """
        losses = torch.where(taught, losses, torch.nan)
        scaling = self.rules.scaling
        if scaling.observe is not None:
            self._write({SCALE: scaling.observe(losses, self._rows(losses)[SCALE])}, taught)
        values, slopes = scaling.apply(losses, self._rows(losses).get(SCALE, losses))
        return values, torch.where(taught, slopes * self._base.to(slopes), 0)

    def weigh(
        self,
        losses: Tensor,
        taught: Tensor,
        norms: Mapping[str, Tensor] | None = None,
        cosines: Tensor | None = None,
    ) -> Tensor:
        """Compute one step's weights for the first clients, ``dL / dL_t``.

        Args:
            losses: [K', T], mean over labelled rows.
            taught: bool [K', T].
            norms: for each of `Rules.norms`, the norms of the unscaled losses' gradients, [K', T].
            cosines: of those gradients, as in `record`.

        Returns:
            [K', T], 0 where absent.
        """
        values, slopes = self.scale(losses, taught)
        noise = None
        if self._noise is not None:
            noise = torch.randn(len(self.rules.tasks), generator=self._noise).to(losses)
        weights = self.rules.weighting.weigh(values, taught, self._rows(losses), noise)
        weights = torch.where(taught, weights, 0)
        norms = norms or {}
        watched = norms.get(self.rules.weighting.needs_norms or "")
        scaled = None if watched is None else watched * slopes
        self._last = Step(values, taught, weights, scaled)
        return self.record(weights * slopes, taught, norms.get("trunk", watched), cosines)

    def learn(self, after: Tensor | None = None) -> None:
        """Learn from the step that `weigh` was last asked about.

        Args:
            after: [K', T], the losses on the same batch after the step, where the weighting asks.
        """
        step = self._last
        if step is None:
            raise RuntimeError("learn comes after weigh")
        if after is not None:
            after = torch.where(step.taught, after, torch.nan)
            scale = self._rows(after).get(SCALE, after)
            after = self.rules.scaling.apply(after, scale)[0]
        step = Step(step.losses, step.taught, step.weights, step.norms, after)
        changes = self.rules.weighting.learn(step, self._rows(step.losses))
        self._write(changes, step.taught)

    def record(
        self,
        weights: Tensor,
        taught: Tensor,
        norms: Tensor | None,
        cosines: Tensor | None = None,
    ) -> Tensor:
        """Note one step's weights, and of the tasks' gradients norms and cosines; all [K', T].

        Args:
            weights: of the tasks, 0 where absent.
            taught: which tasks are there.
            norms: of their gradients, where known.
            cosines: the mean one of each with the others, where known; NaN where there is none.

        Returns:
            The weights.
        """
        figures = {"weight": (weights, taught)}
        if norms is not None:
            norms = torch.where(taught, norms, 0)
            figures |= {"norm": (norms, taught), "pull": (norms * weights, taught)}
        if cosines is not None:
            known = taught & cosines.isfinite()
            figures["cosine"] = (torch.where(known, cosines, 0), known)
        for name, (numbers, counted) in figures.items():
            if name not in self._sums:
                most = max((len(v) for v in self.state.values()), default=len(numbers))
                self._sums[name] = numbers.new_zeros(most, len(self.rules.tasks))
                self._steps[name] = torch.zeros_like(self._sums[name])
            self._sums[name][: len(numbers)] += numbers
            self._steps[name][: len(numbers)] += counted
        return weights

    def end_round(self, sums: Tensor, rows: Tensor) -> None:
        """Learn from the round.

        Args:
            sums: [K, T], summed training loss.
            rows: [K, T], labelled rows that it was summed over.
        """
        taught = rows > 0
        means = torch.where(taught, sums / rows, torch.nan)
        if self.rules.weighting.scales_rounds:
            means, _ = self.rules.scaling.apply(means, self.state.get(SCALE, means))
        self._write(self.rules.weighting.end_round(means, taught, self.state), taught)

    def close(
        self, losses: Mapping[str, NDArray[np.float64]], device: torch.device
    ) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Learn from the round, and write it up.

        Args:
            losses: task -> [K, 2], summed training loss and the labelled rows it was summed over;
                tasks that no client was taught may be absent.
            device: where the state is.

        Returns:
            As `report`.
        """
        blank = np.zeros_like(next(iter(losses.values())))
        table = np.stack([losses.get(task, blank) for task in self.rules.tasks], 1)
        both = torch.from_numpy(table).to(device, torch.float32)
        self.end_round(both[:, :, 0], both[:, :, 1])
        return {
            task: {name: sums.cpu().numpy() for name, sums in written.items()}
            for task, written in self.report(both[:, :, 1]).items()
        }

    def report(self, rows: Tensor) -> dict[str, dict[str, Tensor]]:
        """Write up the clients' round as sums and counts, to be added up over clients.

        Args:
            rows: [K, T], labelled rows that the round taught.

        Returns:
            Task -> "weight", "norm", "pull", "cosine" (over steps), and under scope "global"
            "state-NAME" (over rows) -> float64 [K, 2], sum and count.
        """
        counts = rows.double()
        written: dict[str, dict[str, Tensor]] = {task: {} for task in self.rules.tasks}
        pairs = {name: (total, self._steps[name]) for name, total in self._sums.items()}
        if self.rules.experiment.loss.scope == "global":
            for name, values in self.state.items():
                kept = torch.where(counts > 0, values.double(), 0)
                pairs[f"{STATE}{name}"] = (kept * counts, counts)
        for name, (total, count) in pairs.items():
            both = torch.stack([total.double(), count.double()], 2)
            for place, task in enumerate(self.rules.tasks):
                written[task][name] = both[:, place]
        return written

    def _rows(self, like: Tensor) -> dict[str, Tensor]:
        """Get what the first clients remember."""
        return {name: values[: len(like)] for name, values in self.state.items()}

    def _write(self, changes: Mapping[str, Tensor], taught: Tensor) -> None:
        """Remember changes, of present tasks only."""
        rows = self._rows(taught)
        # All are read before any is written: a change may be another name's old value.
        kept = {name: torch.where(taught, new, rows[name]) for name, new in changes.items()}
        for name, values in kept.items():
            rows[name].copy_(values)
