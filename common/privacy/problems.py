"""What ``[privacy]`` cannot be asked for, each with its reason; read before anything is trained."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.algorithms import ALGORITHMS
from common.errors import ConfigError
from common.privacy.settings import (
    Budget,
    ClientLevel,
    ExampleLevel,
    Privacy,
    SecureAggregation,
)
from common.secure_aggregation.grids import Grid
from common.strategies import STRATEGIES

if TYPE_CHECKING:
    from common.experiment import Experiment

CLIENT, EXAMPLE = "privacy.client-level", "privacy.example-level"
SECURE = "privacy.secure-aggregation"
# Loss weightings that no row has a say in, so that a row's gradient depends on that row alone.
BLIND = ("equal", "manual")
# Metrics whose numbers are a sum and a count; `common.metrics`, which needs PyTorch, has the rules.
MEANS = ("accuracy", "auroc", "mse", "rmse", "mae")


def privacy_problems(experiment: "Experiment") -> Iterator[str]:
    """Name every contradiction, a line each: what it must be, what it was, a way out."""
    privacy = experiment.privacy
    yield from _sums_problems(experiment)
    if privacy.client_level is not None:
        yield from _client_problems(experiment, privacy.client_level)
    if privacy.example_level is not None:
        yield from _example_problems(experiment, privacy.example_level)
    if privacy.secure_aggregation is not None:
        yield from _secure_problems(experiment, privacy.secure_aggregation)
    if privacy.client_level is not None or privacy.secure_aggregation is not None:
        yield from _update_problems(experiment)


def _budget_problems(place: str, budget: Budget) -> Iterator[str]:
    if budget.noise_multiplier is None and budget.epsilon is None:
        yield (
            f"{place} must have a noise-multiplier or an epsilon to work it out from, got neither; "
            "give one of them"
        )


def _client_problems(experiment: "Experiment", level: ClientLevel) -> Iterator[str]:
    federation, secure = experiment.federation, experiment.privacy.secure_aggregation
    yield from _budget_problems(CLIENT, level)
    partition = experiment.partition
    if (
        partition is not None
        and partition.kind != "natural"
        and level.delta * partition.clients > 1
    ):
        yield (
            f"{CLIENT}.delta must be at most 1/{partition.clients}, for with {partition.clients} "
            f"clients one of them may be told as it is above that, got {level.delta:g}; lower it"
        )
    if level.clip == "server" and (level.noise != "server" or secure is not None):
        what = "under secure aggregation" if secure else f"with noise '{level.noise}'"
        yield (
            f"{CLIENT}.clip must be 'client' {what}, where no server sees an update to clip, got "
            "'server'; remove it"
        )
    if level.noise == "shares" and secure is None:
        yield (
            f"{CLIENT}.noise 'shares' needs [{SECURE}]: a share alone protects nobody; add that "
            "table, or set noise to 'client'"
        )
    if level.noise == "client" and secure is not None:
        yield (
            f"{CLIENT}.noise must be 'shares' or 'server' under secure aggregation, got 'client': "
            "the sum would hold as many times the noise as there are clients; set 'shares'"
        )
    if level.distribution != "discrete-gaussian" and level.noise != "shares":
        yield (
            f"{CLIENT}.distribution is for noise 'shares', got '{level.distribution}' with noise "
            f"'{level.noise}'; remove it"
        )
    if level.quantile is not None and level.noise != "server":
        yield (
            f"{CLIENT}.quantile needs noise 'server', got '{level.noise}': how many updates were "
            "clipped would leave each client without noise; remove it"
        )
    for name in ("quantile_lr", "quantile_noise"):
        if level.quantile is None and level.is_given(name):
            yield f"{CLIENT}.{name.replace('_', '-')} is for a quantile, got none; remove it"
    if level.amplification:
        yield from _amplification_problems(experiment, level)
    if federation.weight_by != "uniform":
        yield (
            f"federation.weight-by must be 'uniform' under [{CLIENT}], got "
            f"'{federation.weight_by}': a weight would stretch an update past max-norm, which the "
            "noise is measured against; set it to 'uniform'"
        )
    if federation.over_selection:
        yield (
            f"federation.over-selection must be 0 under [{CLIENT}], got "
            f"{federation.over_selection:g}: who answers first may depend on the rows; remove it"
        )


def _amplification_problems(experiment: "Experiment", level: ClientLevel) -> Iterator[str]:
    """Name what makes a round no secret Poisson sample."""
    federation, secure = experiment.federation, experiment.privacy.secure_aggregation
    if level.noise != "server":
        yield (
            f"{CLIENT}.amplification needs noise 'server', got '{level.noise}': the server knows "
            "whom it asked, and it is who must not learn; remove it"
        )
    if federation.sampling != "poisson":
        yield (
            f"{CLIENT}.amplification must be false unless federation.sampling is 'poisson', which "
            f"the accountant assumes, got '{federation.sampling}'; set it, or remove amplification"
        )
    if secure is not None:
        yield (
            f"{CLIENT}.amplification must be false under [{SECURE}]: clients learn how many were "
            "drawn, and a round with fewer than two is lost without noise; remove one of them"
        )
    if federation.least_replies:
        yield (
            f"federation.least-replies must be 0 with {CLIENT}.amplification, got "
            f"{federation.least_replies:g}: a round that is lost without noise tells of its "
            "sample; remove one of them"
        )
    if federation.availability or federation.too_few == "repeat":
        yield (
            f"{CLIENT}.amplification must be false with an availability trace, or too-few "
            "'repeat', under which a round is no Poisson sample; remove one of them"
        )


def _example_problems(experiment: "Experiment", level: ExampleLevel) -> Iterator[str]:
    algorithm, loss = experiment.federation.algorithm, experiment.loss
    yield from _budget_problems(EXAMPLE, level)
    if loss.weighting not in BLIND or loss.scaling != "none" or loss.record != "weights":
        yield (
            f"loss.weighting must be one of {', '.join(BLIND)}, without scaling or record, under "
            f"[{EXAMPLE}], got '{loss.weighting}' with scaling '{loss.scaling}' and record "
            f"'{loss.record}': weights made from losses or gradients would carry rows past the "
            "noise; set 'equal' or 'manual'"
        )
    if experiment.trunk.norm == "batch":
        yield (
            f"trunk.norm must not be 'batch' under [{EXAMPLE}]: it mixes the rows of a batch, so "
            "that no gradient belongs to one row; use 'layer' or 'group'"
        )
    if experiment.trunk.sharing == "adversarial":
        yield (
            f"trunk.sharing must not be 'adversarial' under [{EXAMPLE}]: its discriminator's loss "
            "is none of the rows' own; use another"
        )
    if algorithm == "fedala":
        yield (
            f"federation.algorithm must not be 'fedala' under [{EXAMPLE}]: its mixing weights are "
            "learned without noise, and so would carry rows into what is sent; use another, such "
            "as 'mr-mtl'"
        )
    yield from _example_training_problems(experiment, level)
    if level.covers == "model" and algorithm == "fedbabu":
        yield (
            f"{EXAMPLE}.covers must be 'trunk' under federation.algorithm 'fedbabu', which fits "
            "its heads anew at every evaluation, got 'model': each of these would cost as much as "
            "a round; set covers to 'trunk', or use another algorithm, such as 'joint'"
        )
    if level.covers == "trunk" and algorithm != "fedbabu":
        yield (
            f"{EXAMPLE}.covers 'trunk' needs federation.algorithm 'fedbabu', whose heads do not "
            f"move while the trunk trains, got '{algorithm}': a head trained without noise changes "
            "the trunk gradient of every other row, so that clipping row by row bounds nothing; "
            f"set covers to 'model', or use [{CLIENT}], which heads without noise do not weaken"
        )


def _example_training_problems(experiment: "Experiment", level: ExampleLevel) -> Iterator[str]:
    """Name what of ``[training]`` rows' own gradients do not allow."""
    training = experiment.training
    if training.precision != "float32":
        yield (
            f"training.precision must be 'float32' under [{EXAMPLE}], whose rows' gradients are "
            f"clipped in it, got '{training.precision}'; remove it"
        )
    if training.patience is not None:
        yield (
            f"training.patience must be left out under [{EXAMPLE}], got {training.patience}: "
            "validation rows would decide what is sent, outside the budget; remove it"
        )
    if training.recompute_activations:
        yield (
            f"training.recompute-activations must be false under [{EXAMPLE}], which needs what "
            "every layer gave for the gradients of single rows, got true; remove it, or set "
            "training.micro-batch, which saves memory there"
        )
    if training.compile:
        yield (
            f"training.compile must be false under [{EXAMPLE}], whose steps are not compiled; "
            "remove it"
        )
    if level.covers == "model" and training.is_given("balance"):
        yield (
            f"training.balance is of no use under [{EXAMPLE}], which draws every row of a batch by "
            f"itself, got '{training.balance}'; remove it"
        )


def _secure_problems(experiment: "Experiment", secure: SecureAggregation) -> Iterator[str]:
    privacy, federation = experiment.privacy, experiment.federation
    if privacy.client_level is None and secure.max_norm is None:
        yield (
            f"{SECURE}.max-norm must be given, for it fixes the range of the integers that are "
            f"summed, got none; give it, or add [{CLIENT}]"
        )
    if privacy.client_level is not None and secure.max_norm is not None:
        yield (
            f"{SECURE}.max-norm must be left out beside [{CLIENT}], whose max-norm clips already, "
            f"got {secure.max_norm:g}; remove it"
        )
    if federation.weight_by == "labelled":
        yield (
            f"federation.weight-by must be 'examples' or 'uniform' under [{SECURE}], got "
            "'labelled'; set one of them"
        )
    if federation.weight_by == "uniform" and secure.is_given("most_examples"):
        yield (
            f"{SECURE}.most-examples is for federation.weight-by 'examples', got 'uniform'; "
            "remove it"
        )
    if (
        federation.weight_by == "examples"
        and privacy.counts == "withheld"
        and not secure.is_given("most_examples")
    ):
        yield (
            f"{SECURE}.most-examples must be given for federation.weight-by 'examples' with "
            "privacy.counts 'withheld': weights are fractions of it, and nobody says how many rows "
            f"a client has at most; got the default, {secure.most_examples:,}; set it near that"
        )
    level = privacy.client_level
    if level is not None and level.noise == "shares" and privacy.accountant != "rdp":
        yield (
            f"privacy.accountant must be 'rdp' with {CLIENT}.noise 'shares', whose cost is known "
            f"as a Renyi divergence alone, got '{privacy.accountant}'; remove it"
        )
    yield from _room_problems(experiment, secure)
    if isinstance(secure.neighbours, int) and secure.neighbours < 2:
        yield f"{SECURE}.neighbours must be 2 or more, or 'all', got {secure.neighbours}"
    if federation.over_selection:
        yield (
            f"federation.over-selection must be 0 under [{SECURE}], got "
            f"{federation.over_selection:g}: masks of those who are cut off would have to be "
            "uncovered every round; remove it"
        )


def _room_problems(experiment: "Experiment", secure: SecureAggregation) -> Iterator[str]:
    """Name clients per round whose sum has no room, as far as their number is known beforehand."""
    wanted, partition = experiment.federation.clients_per_round, experiment.partition
    if wanted == "all":
        wanted = 0 if partition is None or partition.kind == "natural" else partition.clients
    if wanted == 1:
        yield (
            f"[{SECURE}] needs 2 clients a round or more, for a sum over one is that one's, got 1; "
            "raise federation.clients-per-round, or partition.clients"
        )
    try:
        Grid(1.0, secure.bits).require_room(wanted)
    except ConfigError as error:
        yield str(error)


def _update_problems(experiment: "Experiment") -> Iterator[str]:
    """Name what cannot work where the server uses, or sees, nothing but the updates' sum."""
    federation, trunk = experiment.federation, experiment.trunk
    where = f"[{CLIENT}]" if experiment.privacy.client_level is not None else f"[{SECURE}]"
    means = [name for name, strategy in STRATEGIES.items() if strategy.by_mean]
    if federation.strategy not in means:
        yield (
            f"federation.strategy must be one of {', '.join(means)} under {where}, got "
            f"'{federation.strategy}', which needs more than the updates' mean; set one of them"
        )
    shares = ALGORITHMS[federation.algorithm]
    if shares.travels or shares.shares == "nothing":
        what = "sends more than an update" if shares.travels else "sends no update"
        yield (
            f"federation.algorithm must not be '{federation.algorithm}' under {where}: it {what}; "
            "use another, such as 'joint'"
        )
    if trunk.norm == "batch" and trunk.norm_parameters == "shared":
        yield (
            f"trunk.norm-parameters must be 'local' or 'local-statistics' with norm 'batch' under "
            f"{where}: a running variance that is clipped, or has noise, may be negative; set it"
        )
    if federation.affinity_every and federation.is_given("affinity_every"):
        yield (
            f"federation.affinity-every must be 0 under {where}, got {federation.affinity_every}: "
            "it compares single updates; remove it, then nothing is compared"
        )


def _sums_problems(experiment: "Experiment") -> Iterator[str]:
    privacy: Privacy = experiment.privacy
    regime, secure = privacy.sums_regime, privacy.secure_aggregation
    if regime == "secure" and secure is None:
        yield f"privacy.sums 'secure' needs [{SECURE}]; add that table, or set another"
    if regime == "noised":
        if privacy.client_level is None or secure is not None:
            yield (
                f"privacy.sums 'noised' needs [{CLIENT}], in whose budget its noise counts, and no "
                f"[{SECURE}]; set another"
            )
        if privacy.sums_noise_multiplier is None:
            yield "privacy.sums-noise-multiplier must be given for sums 'noised', got none"
    else:
        for name in ("sums_noise_multiplier", "sums_max_norm"):
            if privacy.is_given(name):
                yield (
                    f"privacy.{name.replace('_', '-')} is for privacy.sums 'noised', got "
                    f"'{regime}'; remove it, or set sums"
                )
    if privacy.smallest_group > 1 and regime not in ("sent", "secure"):
        yield (
            "privacy.smallest-group is for privacy.sums 'sent' or 'secure', got "
            f"{privacy.smallest_group} with '{regime}'; remove it"
        )
    yield from _figure_problems(experiment)
    yield from _count_problems(experiment)
    if not any(privacy.levels) and privacy.is_given("accountant"):
        yield (
            f"privacy.accountant is for [{CLIENT}] or [{EXAMPLE}], got '{privacy.accountant}' with "
            "neither; remove it"
        )


def _figure_problems(experiment: "Experiment") -> Iterator[str]:
    """Name what needs figures that are not sent."""
    regime, loss = experiment.privacy.sums_regime, experiment.loss
    if regime not in ("noised", "withheld"):
        return
    if loss.record != "weights":
        yield (
            f"loss.record must be 'weights' with privacy.sums '{regime}', which keeps gradient "
            f"norms at home, got '{loss.record}'; remove it"
        )
    if loss.weighting not in BLIND and loss.scope == "global" and _remembers(experiment):
        yield (
            f"loss.scope must be 'local' with privacy.sums '{regime}', which keeps at home what "
            f"loss.weighting '{loss.weighting}' remembers, got 'global'; set it, or use 'equal'"
        )
    unfit = [task for task, own in experiment.tasks.items() if own.metric_name not in MEANS]
    if regime == "noised" and unfit:
        yield (
            f"tasks.{unfit[0]}.metric must be one of {', '.join(MEANS)} with privacy.sums "
            f"'noised', which blurs means, got '{experiment.tasks[unfit[0]].metric_name}'; set one "
            "of them"
        )


def _remembers(experiment: "Experiment") -> bool:
    from common.weighting.balance import Rules

    try:
        return bool(Rules(experiment).initial)
    except ValueError:  # options that are refused elsewhere
        return False


def _count_problems(experiment: "Experiment") -> Iterator[str]:
    privacy, federation = experiment.privacy, experiment.federation
    if privacy.counts == "sent":
        return
    where = "privacy.counts 'withheld'"
    if privacy.client_level is None and privacy.secure_aggregation is None:
        yield f"{where} needs [{CLIENT}] or [{SECURE}]: updates tell which tasks a client has"
    if privacy.sums_regime not in ("withheld", "secure"):
        yield (
            f"privacy.sums must be 'withheld' or 'secure' with {where}, got "
            f"'{privacy.sums_regime}': sums hold counts, and tell which tasks a client has"
        )
    if federation.weight_by != "uniform" and privacy.secure_aggregation is None:
        yield f"federation.weight-by must be 'uniform' with {where}, got '{federation.weight_by}'"
    if federation.sampling == "by-size":
        yield f"federation.sampling must not be 'by-size' with {where}; use 'uniform'"
    for name, settings in experiment.inputs.items():
        if settings.standardise == "federation":
            yield (
                f"inputs.{name}.standardise must not be 'federation' with {where}, for it sends "
                "the number of rows; use 'client'"
            )
