"""Conflict-averse weights: how much of each update goes into a step that suits all of them.

Everything here is arithmetic on the products of the updates, [n, n], whatever their length: the
step is a weighted sum of the updates. The aggregators are torchjd's (Quinton & Rey, "Jacobian
descent for multi-objective optimization", 2024), and FedMGDA+'s own.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from common.settings import Settings
from common.wire import FloatArray
from server.aggregation.box_qp import Floats, shortest_near

FAILED = "the solver of aggregator '{}' failed ({}); the mean was taken in its place"
BLOCK = 8192  # columns whose products are taken at once in double precision

Name = Literal[
    "fedmgda+", "mgda", "upgrad", "dualproj", "pcgrad", "cagrad", "imtl-g", "aligned-mtl",
    "nash-mtl", "fairgrad",
]  # fmt: skip


class AverseOptions(Settings):
    """What conflict-averse combination can be told."""

    epsilon: float = Field(
        0.1,
        gt=0,
        le=1,
        description="fedmgda+: how far a weight may move from its share; 1 is MGDA.",
    )
    c: float = Field(
        0.4, gt=0, lt=1, description="cagrad: how far the step may be from the mean, in its length."
    )
    server_lr: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Length of the server's step; 1 goes all the way.",
    )


@dataclass(frozen=True)
class Aggregator:
    """One way to weigh updates.

    Attributes:
        make: makes torchjd's aggregator from shares, [n], and options.
        scale: what its weights are divided by, so that one update, sent n times, comes back.
        minds_shares: shares matter; otherwise all updates count alike.
        needs: modules that must be installed, all in the extra "gradients".
        drops_zeros: updates of length zero are left out, which its solver cannot take.
        options: names of the options that matter.
    """

    make: Callable[[torch.Tensor, AverseOptions], Any]
    scale: Callable[[Floats, AverseOptions], float] = lambda weights, options: 1.0
    minds_shares: bool = False
    needs: tuple[str, ...] = ("torchjd",)
    drops_zeros: bool = False
    options: tuple[str, ...] = ()


def _torchjd(name: str, **options: Any) -> Any:
    from torchjd import aggregation

    return getattr(aggregation, name)(**options)


def _sum(weights: Floats, options: AverseOptions) -> float:
    return float(weights.sum())


QUADPROG = ("torchjd", "qpsolvers", "quadprog")

AGGREGATORS: Mapping[str, Aggregator] = {
    # The shares themselves.
    "mean": Aggregator(lambda shares, options: None, minds_shares=True, needs=()),
    # Hu et al., Federated learning meets multi-objective optimization, 2022, Algorithm 1.
    "fedmgda+": Aggregator(
        lambda shares, options: None, minds_shares=True, needs=(), options=("epsilon",)
    ),
    # Sener & Koltun, NeurIPS 2018, eq. 3; solved exactly, not by Frank & Wolfe's steps.
    "mgda": Aggregator(lambda shares, options: None, needs=()),
    # Quinton & Rey 2024: each update projected onto the dual cone of all, then the mean.
    "upgrad": Aggregator(
        lambda shares, options: _torchjd("UPGrad", pref_vector=shares),
        minds_shares=True,
        needs=QUADPROG,
    ),
    # Lopez-Paz & Ranzato, GEM, NeurIPS 2017: the mean projected onto the dual cone.
    "dualproj": Aggregator(
        lambda shares, options: _torchjd("DualProj", pref_vector=shares),
        minds_shares=True,
        needs=QUADPROG,
    ),
    # Yu et al., NeurIPS 2020, Algorithm 1, which sums.
    "pcgrad": Aggregator(
        lambda shares, options: _torchjd("PCGrad"),
        scale=lambda weights, options: float(len(weights)),
    ),
    # Liu et al., NeurIPS 2021, Algorithm 1, divided by 1 + c.
    "cagrad": Aggregator(
        lambda shares, options: _torchjd("CAGrad", c=options.c, norm_eps=1e-8),
        scale=lambda weights, options: 1 + options.c,
        needs=("torchjd", "cvxpy"),
        options=("c",),
    ),
    # Liu et al., ICLR 2021, section 3.1.
    "imtl-g": Aggregator(lambda shares, options: _torchjd("IMTLG")),
    # Senushkin et al., CVPR 2023, Algorithm 1, a mean instead of a sum.
    "aligned-mtl": Aggregator(
        lambda shares, options: _torchjd("AlignedMTL", pref_vector=shares), minds_shares=True
    ),
    # Navon et al., ICML 2022, Claim 3.1; only the direction is a bargain, so weights sum to 1.
    "nash-mtl": Aggregator(
        lambda shares, options: _torchjd(
            "NashMTL", n_tasks=len(shares), max_norm=0.0, update_weights_every=1, optim_niter=20
        ),
        scale=_sum,
        needs=("torchjd", "cvxpy", "ecos"),
        drops_zeros=True,
    ),
    # Ban & Ji, ICML 2024, Algorithm 1 with alpha 1; weights sum to 1.
    "fairgrad": Aggregator(
        lambda shares, options: _torchjd("FairGrad", alpha=1.0),
        scale=_sum,
        needs=("torchjd", "scipy"),
        drops_zeros=True,
    ),
}


def averse_problems(name: str, options: AverseOptions, *, where: str) -> Iterator[str]:
    """Say what an aggregator lacks, or which option is for another one.

    Args:
        name: the aggregator.
        options: as given.
        where: the option that chooses the aggregator.
    """
    for module in AGGREGATORS[name].needs:
        try:
            importlib.import_module(module)
        except ImportError:
            yield (
                f"federation.strategy-options.{where} '{name}' needs the library {module}, which "
                "is not installed: pip install 'fedmtl[gradients]'"
            )
            return
    used = AGGREGATORS[name].options
    for option in ("epsilon", "c"):
        value, default = getattr(options, option), type(options).model_fields[option].default
        if option not in used and value != default:
            users = " or ".join(f"'{n}'" for n, a in AGGREGATORS.items() if option in a.options)
            yield (
                f"federation.strategy-options.{option} is for {where} {users}, got {value:g} with "
                f"'{name}'; remove it"
            )


def products(steps: FloatArray) -> Floats:
    """Take all products of rows, [n, Q] -> [n, n], in double precision, some columns at a time."""
    gram = np.zeros((len(steps), len(steps)))
    for start in range(0, steps.shape[1], BLOCK):
        block = steps[:, start : start + BLOCK].astype(np.float64)
        gram += block @ block.T
    return gram


def averse_weights(
    name: str,
    gram: Floats,
    shares: Floats,
    options: AverseOptions,
    key: int,
    *,
    normalise: bool,
    notes: list[str],
) -> Floats:
    """Weigh updates so that their weighted sum suits all of them.

    Where updates are normalised, all take the median length of those that are not zero: FedMGDA+
    lets the server choose its step, and this one shrinks as the updates do.

    Args:
        name: the aggregator.
        gram: [n, n], products of the updates.
        shares: [n], > 0, summing to 1.
        options: of the aggregator.
        key: seeds the aggregators that draw random numbers.
        normalise: every update counts by its direction alone.
        notes: gets a line where a solver fails.

    Returns:
        [n], the weights; not those of a mean in general. One update, sent n times, comes back; of
        updates that are all zero, zero. Where a solver fails, the shares.
    """
    lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
    moves = lengths > 0
    if not moves.any():
        return shares
    factors = np.ones(len(gram))
    if normalise:
        factors[moves] = np.median(lengths[moves]) / lengths[moves]
    scaled = gram * np.outer(factors, factors)
    scaled /= np.diag(scaled).max()  # the solvers' tolerances are absolute
    weights = np.zeros(len(gram))
    chosen = moves if AGGREGATORS[name].drops_zeros else np.ones(len(gram), dtype=bool)
    part = shares[chosen] / shares[chosen].sum()
    weights[chosen] = _solve(name, scaled[np.ix_(chosen, chosen)], part, options, key, notes)
    return weights * factors * float(shares[chosen].sum())


def _solve(
    name: str, gram: Floats, shares: Floats, options: AverseOptions, key: int, notes: list[str]
) -> Floats:
    """Ask an aggregator for its weights, [n]; the shares where its solver fails."""
    if len(gram) == 1 or name == "mean":
        return shares
    if name == "fedmgda+":
        return shortest_near(gram, shares, options.epsilon)
    if name == "mgda":
        return shortest_near(gram, np.full(len(gram), 1 / len(gram)), 1.0)
    values, vectors = np.linalg.eigh(gram)
    root = torch.from_numpy(vectors * np.sqrt(np.maximum(values, 0.0)))  # root @ root.T is the gram
    aggregator = AGGREGATORS[name]
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        torch.manual_seed(key & 0x7FFF_FFFF_FFFF_FFFF)
        warnings.simplefilter("ignore")  # solvers remark on their speed
        try:
            found = aggregator.make(torch.from_numpy(shares), options).weighting(root)
            weights: Floats = found.detach().double().numpy()
        except Exception as error:  # each solver has kinds of its own
            notes.append(FAILED.format(name, type(error).__name__))
            return shares
    if name == "cagrad" and not weights.any():  # no convex combination is long: keep to the mean
        return np.full(len(gram), 1 / len(gram))
    scale = aggregator.scale(weights, options)
    if not np.isfinite(weights).all() or abs(scale) < 1e-12:
        notes.append(FAILED.format(name, "no finite weights"))
        return shares
    return weights / scale
