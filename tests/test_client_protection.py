"""Updates as they leave a client: clipped, and with noise where the client adds it."""

import numpy as np
import pytest
from flwr.supercore.differential_privacy import compute_clip_model_update
from scipy import stats

from client.protection import Protection, clip_updates
from common.experiment_file import load_experiment
from common.wire import Instruction

LEVEL = ["federation.weight-by=uniform", "privacy.client-level.max-norm=2"]


def protection(*settings: str, seed: int | None = 0) -> Protection:
    return Protection(load_experiment("digits", [*LEVEL, *settings]), seed)


def ask(round_number: int = 1, **privacy: float) -> Instruction:
    return Instruction("", round=round_number, privacy=privacy)


def test_clipping_never_lengthens_and_keeps_the_direction() -> None:
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(200, 30)).astype(np.float32)
    updates *= 10.0 ** rng.uniform(-4, 4, (200, 1)).astype(np.float32)
    before = updates.copy()
    norms = clip_updates(updates, 2.0)
    after = np.linalg.norm(updates.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, np.linalg.norm(before.astype(np.float64), axis=1), rtol=1e-6)
    assert (after <= np.minimum(norms, 2.0) * (1 + 1e-6)).all()
    short = norms <= 2.0
    assert short.any()
    assert (updates[short] == before[short]).all()
    cosines = (updates * before).sum(1) / (after * norms)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_clipping_equals_flowers() -> None:
    rng = np.random.default_rng(1)
    before = [rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)]
    after = [a + rng.normal(size=a.shape).astype(np.float32) for a in before]
    received = dict(zip("ab", before, strict=True))
    sent = dict(zip("ab", after, strict=True))
    guard = protection("privacy.client-level.noise-multiplier=1")
    ours = guard.protect_arrays(sent, received, "one", ask())
    theirs = [array.copy() for array in after]
    compute_clip_model_update(theirs, before, 2.0)
    for name, array in zip("ab", theirs, strict=True):
        np.testing.assert_allclose(ours[name], array, rtol=1e-5, atol=1e-6)


def test_noise_of_clients_has_the_stated_deviation_and_is_each_ones_own() -> None:
    guard = protection(
        "privacy.client-level.noise=client", "privacy.client-level.noise-multiplier=3"
    )
    received = np.zeros(10_000, np.float32)
    sent = guard.protect(np.zeros((2, 10_000), np.float32), received, ["a", "b"], ask())
    for row in sent:
        assert 1e-6 < stats.chi2.cdf((row.astype(np.float64) ** 2).sum() / 36, len(row)) < 1 - 1e-6
    assert abs(np.corrcoef(sent)[0, 1]) < 0.05
    again = guard.protect(np.zeros((1, 10_000), np.float32), received, ["b"], ask())
    assert (again[0] == sent[1]).all()  # a simulation repeats, however clients are grouped
    later = guard.protect(np.zeros((1, 10_000), np.float32), received, ["b"], ask(2))
    assert (later != again).all()


def test_a_deployed_clients_noise_is_not_made_from_the_seed_that_the_server_knows() -> None:
    settings = "privacy.client-level.noise=client", "privacy.client-level.noise-multiplier=3"
    received = np.zeros(10, np.float32)
    rows = [
        protection(*settings, seed=None).protect(received[None], received, ["a"], ask())
        for _ in "ab"
    ]
    assert (rows[0] != rows[1]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_no_number_adds_nothing(bad) -> None:
    settings = "privacy.client-level.noise=client", "privacy.client-level.noise-multiplier=1"
    rows, received = np.zeros((2, 1000), np.float32), np.ones(1000, np.float32)
    rows[0], rows[1] = received, 1e6
    rows[1, 7] = bad
    with np.errstate(invalid="raise"):
        calm, broken = protection(*settings).protect(rows, received, ["a", "a"], ask())
    np.testing.assert_array_equal(broken, calm)  # noise alone, and the same


def test_only_adaptive_clipping_lets_the_server_choose_the_norm() -> None:
    long = np.full((1, 4), 50, np.float32)
    fixed = protection("privacy.client-level.noise-multiplier=1")
    adaptive = protection(
        "privacy.client-level.noise-multiplier=1", "privacy.client-level.quantile=0.5"
    )
    told = ask(**{"max-norm": 10.0})
    lengths = [
        np.linalg.norm(guard.protect(long, np.zeros(4, np.float32), ["a"], told))
        for guard in (fixed, adaptive)
    ]
    assert lengths == pytest.approx([2, 10])


@pytest.mark.parametrize("clip", ["nothing", "server"])
def test_who_does_not_clip_sends_what_it_trained(clip) -> None:
    settings = ["privacy.client-level.clip=server", "privacy.client-level.noise-multiplier=1"]
    asked = [*LEVEL, *settings] if clip == "server" else []
    guard, rows = Protection(load_experiment("digits", asked), 0), np.full((1, 4), 50, np.float32)
    assert guard.protect(rows, np.zeros(4, np.float32), ["a"], ask()) is rows
