"""Audits by client, of the server's and the clients' own mechanism."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import client.protection
import server.private_mean
from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.privacy.shares import Shares
from simulations.attacks.audit_clients import audit_clients
from simulations.attacks.canary_clients import (
    CanaryClients,
    add_canaries,
    draw_directions,
    keep_rates,
)
from simulations.attacks.candidates import divide_clients
from simulations.cli import app

SMALL = ["partition.clients=4", "trunk.widths=[32]", "training.epochs=1", "training.batch-size=64",
         "federation.rounds=3", 'federation.weight-by="uniform"',
         "privacy.client-level.max-norm=0.5"]  # fmt: skip


def experiment_with(*settings):
    return load_experiment("digits", [*SMALL, *settings])


def audit(out, *settings, canaries=200):
    return audit_clients(experiment_with(*settings), canaries, out)


class Silent:
    """A generator of noise that makes none."""

    def normal(self, mean, deviation, size=None):
        return np.zeros(size) if size is not None else 0.0


def leave_noise_out(monkeypatch, module):
    monkeypatch.setattr(module, "secret_generator", lambda *stream: Silent())


MECHANISMS = {
    "server": (),
    "sampled": ("federation.clients-per-round=2",),
    "amplified": ("federation.clients-per-round=2", 'federation.sampling="poisson"',
                  "privacy.client-level.amplification=true"),
    "adaptive": ("privacy.client-level.quantile=0.5",),
    "server-clip": ('privacy.client-level.clip="server"',),
    "momentum": ('federation.strategy="fedavgm"',),
    "local": ('privacy.client-level.noise="client"',),
}  # fmt: skip


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("noise", [0.7, 3.0])
def test_no_bound_passes_the_accountant_s(tmp_path, mechanism, noise):
    settings = MECHANISMS[mechanism]
    figures = audit(tmp_path, *settings, f"privacy.client-level.noise-multiplier={noise}")
    assert figures["bound"]["epsilon"] <= figures["claimed"]
    assert (figures["bound"]["gaussian"] or 0) <= figures["claimed"]
    assert not figures["refuted"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [1.0, 2.0, 8.0])
def test_no_bound_passes_the_accountant_s_with_any_seed(tmp_path, seed, noise):
    figures = audit(tmp_path, f"seed={seed}", f"privacy.client-level.noise-multiplier={noise}")
    assert not figures["refuted"]


# Where rounds are samples, a canary that was never asked cannot be guessed.
@pytest.mark.parametrize("mechanism", [name for name in MECHANISMS if "mpl" not in name])
def test_hardly_any_noise_lets_every_guess_be_right(tmp_path, mechanism):
    figures = audit(tmp_path, *MECHANISMS[mechanism], "privacy.client-level.noise-multiplier=0.01",
                    "privacy.client-level.delta=1e-7")  # fmt: skip
    assert figures["bound"]["epsilon"] > 3  # 100 right of 100
    assert figures["estimates"]["all rounds"] > 100


@pytest.mark.parametrize("mechanism", ["server", "adaptive", "server-clip"])
def test_noise_left_out_by_the_server_is_caught(tmp_path, monkeypatch, mechanism):
    leave_noise_out(monkeypatch, server.private_mean)
    figures = audit(tmp_path, *MECHANISMS[mechanism], "privacy.client-level.noise-multiplier=5.0")
    assert figures["claimed"] < 2
    assert figures["bound"]["epsilon"] > figures["claimed"]
    assert figures["refuted"]


def test_noise_left_out_by_clients_is_caught(tmp_path, monkeypatch):
    leave_noise_out(monkeypatch, client.protection)
    figures = audit(tmp_path, *MECHANISMS["local"], "privacy.client-level.noise-multiplier=5.0")
    assert figures["bound"]["epsilon"] > figures["claimed"]


def test_clipping_left_out_is_caught(tmp_path, monkeypatch):
    def total(self, rows, before):
        updates = rows.astype(np.float64) - before
        return server.private_mean.Total(updates.sum(0), len(rows), 0)

    monkeypatch.setattr(server.private_mean.PrivateMean, "total", total)
    figures = audit(tmp_path, "privacy.client-level.noise-multiplier=5.0")
    assert figures["refuted"]


def test_noise_of_an_honest_mechanism_is_not_taken_for_a_broken_one(tmp_path):
    figures = audit(tmp_path, "privacy.client-level.noise-multiplier=5.0")
    assert figures["bound"]["epsilon"] < 0.5 * figures["claimed"]


def test_under_amplification_nobody_is_told_who_was_asked(tmp_path):
    noise = "privacy.client-level.noise-multiplier=1.0"
    amplified = audit(tmp_path / "a", *MECHANISMS["amplified"], noise, canaries=40)
    sampled = audit(tmp_path / "b", *MECHANISMS["sampled"], noise, canaries=40)
    assert list(amplified["estimates"]) == ["last trunk"]
    assert amplified["bound"]["gaussian"] is None
    assert "all rounds" in sampled["estimates"]
    assert sampled["taken"] <= 3 == amplified["taken"]


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["server", "client"])
@pytest.mark.parametrize("multiplier", [0.02, 4.0])
def test_models_that_train_one_by_one_are_audited_as_well(tmp_path, noise, multiplier):
    figures = audit(tmp_path, 'trunk.sharing="mmoe"', f'privacy.client-level.noise="{noise}"',
                    f"privacy.client-level.noise-multiplier={multiplier}", canaries=60)  # fmt: skip
    assert not figures["refuted"]
    assert (figures["bound"]["epsilon"] > 2) == (multiplier < 1)


@pytest.mark.slow
def test_the_estimate_comes_near_what_the_noise_costs(tmp_path):
    found = []
    for seed in range(4):
        figures = audit(tmp_path / str(seed), f"seed={seed}", "trunk.widths=[128, 64]",
                        "privacy.client-level.noise-multiplier=1.5",
                        'privacy.accountant="pld"', canaries=800)  # fmt: skip
        found.append(figures["estimates"]["all rounds, one deviation"] / figures["claimed"])
    assert 0.8 < np.mean(found) < 1.2


def test_canaries_are_orthonormal_where_there_is_room_and_of_length_one_elsewhere():
    room = draw_directions(20, 50, seed=0)
    np.testing.assert_allclose(room @ room.T, np.eye(20), atol=1e-6)
    none = draw_directions(50, 20, seed=0)
    np.testing.assert_allclose(np.linalg.norm(none, axis=1), 1, rtol=1e-6)


def test_directions_point_everywhere_alike():
    drawn = np.stack([draw_directions(3, 10, seed) for seed in range(400)])
    means, squares = drawn.mean(0), (drawn**2).mean(0)
    assert np.abs(means).max() < 5 / np.sqrt(10 * 400)
    np.testing.assert_allclose(squares, 0.1, atol=5 * 0.14 / np.sqrt(400))


def make_watched(*settings):
    watched = CanaryClients(experiment_with(*settings), ("canary-0", "canary-1", "canary-2"))
    watched.included = np.array([True, False, True])
    return watched


def test_a_canary_that_is_out_sends_the_trunk_as_it_came():
    watched, before = (
        make_watched("privacy.client-level.noise-multiplier=1.0"),
        np.ones(9, np.float32),
    )
    sent = watched.distort("canary-1", before, before + 5)
    np.testing.assert_array_equal(sent, before)
    assert np.linalg.norm(watched.distort("canary-0", before, before) - before) > 1
    trained = before + 5
    assert watched.distort("client-000", before, trained) is trained


def test_scores_count_the_rounds_that_a_canary_took_part_in():
    watched = make_watched("privacy.client-level.noise-multiplier=1.0")
    trunks = [np.zeros(9, np.float32)]
    watched.distort("canary-0", trunks[0], trunks[0])
    steps = [2 * watched.directions[0], 3 * watched.directions[2]]
    for step in steps:
        trunks.append(trunks[-1] + step)
    watched.distort("canary-2", trunks[1], trunks[1])
    watched.observe(trunks[2])
    np.testing.assert_allclose(watched.scores, [2, 0, 3], atol=1e-5)
    np.testing.assert_allclose(watched.lengths, [2, 0, 3], rtol=1e-5)
    np.testing.assert_array_equal(watched.taken, [1, 0, 1])


def test_a_canary_under_local_noise_keeps_to_the_norm_and_adds_noise():
    settings = (*MECHANISMS["local"], "privacy.client-level.noise-multiplier=0.001")
    watched, before = make_watched(*settings), np.ones(9, np.float32)
    sent = watched.distort("canary-0", before, before) - before
    assert np.linalg.norm(sent) == pytest.approx(0.5, abs=0.01)
    out = watched.distort("canary-1", before, before) - before
    assert 0 < np.linalg.norm(out) < 0.01


def test_a_round_asks_the_same_share_of_the_clients():
    experiment = experiment_with("federation.clients-per-round=2",
                                 "privacy.client-level.noise-multiplier=1.0")  # fmt: skip
    assert keep_rates(experiment, 4, 100).federation.clients_per_round == 52


def test_canaries_have_rows_to_train_on_and_none_to_be_judged_by():
    prepared = {n: c.prepared for n, c in divide_clients(load_experiment("digits")).items()}
    everybody, names = add_canaries(prepared, 3)
    assert list(everybody) == [*prepared, *names]
    assert [len(rows) for rows in everybody[names[0]].splits.values()] == [4, 0, 0]


def run(*arguments):
    small = [word for setting in SMALL for word in ("--set", setting)]
    return CliRunner().invoke(app, ["attack", "audit", "digits", *small, *map(str, arguments)])


def error_of(result):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


NOISE = ["--set", "privacy.client-level.noise-multiplier=2.0"]


def test_the_command_tells_bound_estimate_and_claim(tmp_path):
    result = run("--unit", "client", "--out", tmp_path / "a", "--canaries", 60, *NOISE)
    assert result.exit_code == 0, result.output
    for words in ("lower bound at 95%", "estimate, all rounds", "claimed by the accountant"):
        assert words in result.stdout
    figures = json.loads((tmp_path / "a/attack-audit.json").read_text())
    assert figures["canaries"] == 60
    assert len(figures["scores"]["included"]) == figures["included"]
    assert "not refuted" in (tmp_path / "a/attack-audit.html").read_text()
    assert (tmp_path / "a/run/results.json").exists()


def test_json_goes_to_stdout_alone(tmp_path):
    result = run("--unit", "client", "--out", tmp_path / "a", "--canaries", 20, "--json", *NOISE)
    assert json.loads(result.stdout)["unit"] == "client"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--unit", "house", *NOISE], "--unit must be client or example, got 'house'"),
        (["--unit", "client", "--canaries", "5", *NOISE], "--canaries must be at least 20"),
        (["--unit", "client", "--client", "a", *NOISE], "--client is for --unit example"),
        (["--unit", "client", "--score", "loss", *NOISE], "--score is for --unit example"),
    ],
)
def test_bad_options_are_told_in_a_line(tmp_path, options, what):
    assert what in error_of(run("--out", tmp_path / "a", *options))
    assert not (tmp_path / "a").exists()


def test_an_experiment_without_a_claim_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"needs \[privacy.client-level\]"):
        audit_clients(load_experiment("digits"), 50, tmp_path)


SECURE = ('privacy.client-level.noise="shares"', "privacy.secure-aggregation.threshold=0.66")


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 3.0])
def test_noise_in_shares_is_audited_by_the_sum_that_it_leaves(tmp_path, noise):
    figures = audit(tmp_path, *SECURE, f"privacy.client-level.noise-multiplier={noise}",
                    "trunk.widths=[8]", "federation.rounds=2", canaries=60)  # fmt: skip
    assert not figures["refuted"]
    assert (figures["bound"]["epsilon"] > 1.5) == (noise < 1)


@pytest.mark.slow
def test_shares_that_are_left_out_are_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(Shares, "sample", lambda self, *_: np.zeros(self.width, np.int64))
    figures = audit(tmp_path, *SECURE, "privacy.client-level.noise-multiplier=5.0",
                    "trunk.widths=[8]", "federation.rounds=2", canaries=100)  # fmt: skip
    assert figures["refuted"]


def test_under_secure_aggregation_the_norm_must_stand_still(tmp_path):
    settings = ("privacy.client-level.noise-multiplier=1.0", "privacy.client-level.quantile=0.5",
                "privacy.secure-aggregation.threshold=0.66")  # fmt: skip
    with pytest.raises(ConfigError, match="fixed max-norm"):
        audit(tmp_path, *settings)


def test_under_secure_aggregation_the_model_must_stack(tmp_path):
    settings = (*SECURE, "privacy.client-level.noise-multiplier=1.0", 'trunk.sharing="mmoe"')
    with pytest.raises(ConfigError, match="needs a model that engine 'batched' can train"):
        audit(tmp_path, *settings)
