"""Contradictions of ``[privacy]`` are refused before anything is trained, each in one line."""

import pytest

from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.metrics import METRICS
from common.privacy.problems import MEANS

CLIENT = ["privacy.client-level.noise-multiplier=1", "federation.weight-by=uniform"]
EXAMPLE = ["privacy.example-level.noise-multiplier=1"]
SECURE = ["privacy.secure-aggregation.max-norm=1", "federation.weight-by=uniform"]
BOTH = [*CLIENT, "privacy.secure-aggregation.threshold=0.7"]
NOISED = [*CLIENT, "privacy.sums=noised", "privacy.sums-noise-multiplier=1"]
WITHHELD = [*CLIENT, "privacy.sums=withheld"]

REFUSED = {
    # no budget, no bound
    "privacy.client-level must have a noise-multiplier or an epsilon": [
        "privacy.client-level.delta=1e-6",
        "federation.weight-by=uniform",
    ],
    "privacy.example-level must have a noise-multiplier or an epsilon": [
        "privacy.example-level.delta=1e-6"
    ],
    "privacy.client-level.max-norm must be a finite number of at least 1e-12 and of at most "
    "1e+12, got 0": [
        *CLIENT,
        "privacy.client-level.max-norm=0",
    ],
    "privacy.client-level.noise-multiplier must be a finite number of at least 1e-12 and of at "
    "most 1e+12, got -1": [
        *CLIENT,
        "privacy.client-level.noise-multiplier=-1",
    ],
    "privacy.client-level.noise-multiplier must be a finite number of at least 1e-12 and of at "
    "most 1e+12, got nan": [
        *CLIENT,
        "privacy.client-level.noise-multiplier=nan",
    ],
    "privacy.client-level.noise-multiplier must be a finite number of at least 1e-12 and of at "
    "most 1e+12, got 1e+300": [*CLIENT, "privacy.client-level.noise-multiplier=1e300"],
    "privacy.example-level.noise-multiplier must be a finite number of at least 1e-12 and of at "
    "most 1e+12, got 1e-300": ["privacy.example-level.noise-multiplier=1e-300"],
    "[privacy.secure-aggregation] needs 2 clients a round or more": [
        *SECURE,
        "federation.clients-per-round=1",
    ],
    "privacy.client-level.delta must be a finite number above 0 and below 1, got 1": [
        *CLIENT,
        "privacy.client-level.delta=1",
    ],
    "privacy.secure-aggregation.max-norm must be given": [
        "privacy.secure-aggregation.threshold=0.7"
    ],
    "privacy.secure-aggregation.max-norm must be left out": [
        *CLIENT,
        "privacy.secure-aggregation.max-norm=1",
    ],
    # who clips, who adds noise
    "privacy.client-level.clip must be 'client' with noise 'client'": [
        *CLIENT,
        "privacy.client-level.noise=client",
        "privacy.client-level.clip=server",
    ],
    "privacy.client-level.clip must be 'client' under secure aggregation": [
        *BOTH,
        "privacy.client-level.clip=server",
    ],
    "privacy.client-level.noise 'shares' needs [privacy.secure-aggregation]": [
        *CLIENT,
        "privacy.client-level.noise=shares",
    ],
    "privacy.client-level.noise must be 'shares' or 'server' under secure": [
        *BOTH,
        "privacy.client-level.noise=client",
    ],
    "privacy.client-level.distribution is for noise 'shares'": [
        *CLIENT,
        "privacy.client-level.distribution=skellam",
    ],
    "privacy.client-level.quantile needs noise 'server'": [
        *CLIENT,
        "privacy.client-level.noise=client",
        "privacy.client-level.quantile=0.5",
    ],
    "privacy.client-level.quantile-lr is for a quantile": [
        *CLIENT,
        "privacy.client-level.quantile-lr=0.1",
    ],
    # what the accountant assumes
    "privacy.client-level.amplification must be false unless federation.sampling is 'poisson'": [
        *CLIENT,
        "privacy.client-level.amplification=true",
    ],
    "privacy.client-level.amplification needs noise 'server'": [
        *CLIENT,
        "privacy.client-level.noise=client",
        "privacy.client-level.amplification=true",
        "federation.sampling=poisson",
    ],
    "with an availability trace, or too-few 'repeat'": [
        *CLIENT,
        "privacy.client-level.amplification=true",
        "federation.sampling=poisson",
        "federation.too-few=repeat",
    ],
    "privacy.client-level.amplification must be false under [privacy.secure-aggregation]": [
        *BOTH,
        "privacy.client-level.amplification=true",
        "federation.sampling=poisson",
        "federation.clients-per-round=4",
    ],
    "federation.least-replies must be 0 with privacy.client-level.amplification": [
        *CLIENT,
        "privacy.client-level.amplification=true",
        "federation.sampling=poisson",
        "federation.clients-per-round=4",
        "federation.least-replies=0.5",
        "federation.too-few=skip",
    ],
    "federation.weight-by must be 'uniform' under [privacy.client-level]": [
        CLIENT[0],
        "federation.weight-by=examples",
    ],
    "federation.over-selection must be 0 under [privacy.client-level]": [
        *CLIENT,
        "federation.over-selection=0.2",
        "federation.clients-per-round=4",
    ],
    # strategies, algorithms, models
    "federation.strategy must be one of fedavg, fedavgm, fedadam": [
        *CLIENT,
        "federation.strategy=krum",
    ],
    "federation.algorithm must not be 'scaffold'": [
        *CLIENT,
        "federation.algorithm=scaffold",
        "training.optimiser=sgd",
    ],
    "federation.algorithm must not be 'local'": [*CLIENT, "federation.algorithm=local"],
    "trunk.norm-parameters must be 'local' or 'local-statistics'": [*CLIENT, "trunk.norm=batch"],
    "federation.affinity-every must be 0": [*SECURE, "federation.affinity-every=2"],
    "trunk.norm must not be 'batch' under [privacy.example-level]": [*EXAMPLE, "trunk.norm=batch"],
    "trunk.sharing must not be 'adversarial'": [*EXAMPLE, "trunk.sharing=adversarial"],
    "loss.weighting must be one of equal, manual": [*EXAMPLE, "loss.weighting=uncertainty"],
    "federation.algorithm must not be 'fedala'": [*EXAMPLE, "federation.algorithm=fedala"],
    "privacy.example-level.covers 'trunk' needs federation.algorithm 'fedbabu'": [
        *EXAMPLE,
        "privacy.example-level.covers=trunk",
    ],
    # secure aggregation
    "federation.weight-by must be 'examples' or 'uniform' under [privacy.secure-aggregation]": [
        SECURE[0],
        "federation.weight-by=labelled",
    ],
    "privacy.secure-aggregation.neighbours must be 2 or more": [
        *SECURE,
        "privacy.secure-aggregation.neighbours=1",
    ],
    "privacy.secure-aggregation.threshold must be a finite number above 0.5": [
        *SECURE,
        "privacy.secure-aggregation.threshold=0.5",
    ],
    "privacy.secure-aggregation.bits must leave room for 300 clients": [
        *SECURE,
        "privacy.secure-aggregation.bits=24",
        "federation.clients-per-round=300",
    ],
    "privacy.secure-aggregation.most-examples must be given": [
        SECURE[0],
        "federation.weight-by=examples",
        "privacy.counts=withheld",
    ],
    "privacy.accountant must be 'rdp'": [
        *CLIENT,
        "privacy.secure-aggregation.bits=21",
        "privacy.client-level.noise=shares",
        "privacy.accountant=pld",
    ],
    # figures and counts
    "privacy.sums 'secure' needs [privacy.secure-aggregation]": ["privacy.sums=secure"],
    "privacy.sums 'noised' needs [privacy.client-level]": [
        "privacy.sums=noised",
        "privacy.sums-noise-multiplier=1",
    ],
    "privacy.sums-noise-multiplier must be given": [*CLIENT, "privacy.sums=noised"],
    "privacy.sums-max-norm is for privacy.sums 'noised'": [*CLIENT, "privacy.sums-max-norm=2"],
    "tasks.ink.metric must be one of accuracy, auroc, mse, rmse, mae": NOISED,
    "evaluation.patience must be left out with privacy.sums 'withheld'": [
        *WITHHELD,
        "evaluation.patience=3",
    ],
    "privacy.smallest-group is for privacy.sums 'sent' or 'secure'": [
        *WITHHELD,
        "privacy.smallest-group=4",
    ],
    "loss.record must be 'weights' with privacy.sums 'withheld'": [
        *WITHHELD,
        "loss.record=gradients",
    ],
    "loss.scope must be 'local' with privacy.sums 'withheld'": [
        *WITHHELD,
        "loss.weighting=uncertainty",
    ],
    "privacy.counts 'withheld' needs [privacy.client-level]": ["privacy.counts=withheld"],
    "privacy.sums must be 'withheld' or 'secure' with privacy.counts": [
        *CLIENT,
        "privacy.counts=withheld",
    ],
    "federation.sampling must not be 'by-size'": [
        *WITHHELD,
        "privacy.counts=withheld",
        "federation.sampling=by-size",
        "federation.clients-per-round=4",
    ],
    "inputs.pixels.standardise must not be 'federation'": [
        *WITHHELD,
        "privacy.counts=withheld",
        "inputs.pixels.standardise=federation",
    ],
    "privacy.accountant is for": ["privacy.accountant=pld"],
    "privacy.accountant is for [privacy.client-level]": [*SECURE, "privacy.accountant=pld"],
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_contradiction_is_refused_with_a_reason(said) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits", REFUSED[said])
    lines = [line for line in str(caught.value).splitlines() if said in line]
    assert len(lines) == 1, str(caught.value)
    assert len(lines[0]) < 400


ALLOWED = {
    "central": CLIENT,
    "local": [*CLIENT, "privacy.client-level.noise=client"],
    "distributed": [*BOTH, "privacy.client-level.noise=shares"],
    "central, under secure aggregation": BOTH,
    "amplified": [
        *CLIENT,
        "privacy.client-level.amplification=true",
        "federation.sampling=poisson",
        "federation.clients-per-round=4",
    ],
    "both units": [*CLIENT, *EXAMPLE],
    "secure": SECURE,
    "rows, secure": [*EXAMPLE, *SECURE],
    "withheld, weighting at home": [*WITHHELD, "loss.weighting=uncertainty", "loss.scope=local"],
    "withheld, weighting without a memory": [*WITHHELD, "loss.weighting=pcgrad"],
    "mr-mtl": [*EXAMPLE, "federation.algorithm=mr-mtl"],
    "trunk alone": [*EXAMPLE, "privacy.example-level.covers=trunk", "federation.algorithm=fedbabu"],
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_makes_sense_together_is_allowed(case) -> None:
    assert load_experiment("digits", ALLOWED[case]).privacy.is_on


@pytest.mark.parametrize(
    ("more", "differs"), [(["privacy.client-level.epsilon=4"], True), ([CLIENT[0]], False)]
)
def test_how_many_rounds_matters_to_a_run_whose_budget_they_share(more, differs) -> None:
    marks = {
        load_experiment("digits", [CLIENT[1], *more, f"federation.rounds={rounds}"]).fingerprint()
        for rounds in (3, 5)
    }
    assert (len(marks) == 2) == differs


def test_means_are_the_metrics_that_are_a_sum_and_a_count() -> None:
    assert {name for name, rule in METRICS.items() if rule.length(1) == rule.length(5) == 2} == {
        *MEANS
    }
