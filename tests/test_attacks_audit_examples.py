"""Audits by example: of DP-SGD that is made up here, and of the clients' own."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from client.row_privacy import RowPrivacy
from common.agreement import agree
from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.privacy.accounting import Event, epsilon_of
from simulations.attacks.audit_bound import audit
from simulations.attacks.audit_clients import read_prepared
from simulations.attacks.audit_examples import audit_examples, choose_client
from simulations.attacks.canary_rows import CanaryRows
from simulations.attacks.row_watch import RowGradients, regress
from simulations.cli import app

DELTA = 1e-5
SMALL = ["partition.clients=4", "trunk.widths=[32]", "training.epochs=1", "training.batch-size=64",
         'training.optimiser="sgd"', "federation.rounds=3"]  # fmt: skip


def experiment_with(*settings):
    return load_experiment("digits", [*SMALL, *settings])


def fake_dp_sgd(noise, rate, steps, canaries, seed, claimed_noise=None):
    """Steps of DP-SGD on Dirac canaries alone: scores, who was in, and what is claimed."""
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    scores = np.zeros(canaries)
    for _ in range(steps):
        taken = included & (rng.random(canaries) < rate)
        scores += taken + noise * rng.standard_normal(canaries)
    claimed = epsilon_of([Event(claimed_noise or noise, rate, steps)], DELTA)
    return scores, included, claimed


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(0.5, 0.1, 50), (1.0, 0.2, 30), (2.0, 1.0, 10)]
)
def test_no_bound_passes_what_dp_sgd_costs(noise, rate, steps):
    for seed in range(3):
        scores, included, claimed = fake_dp_sgd(noise, rate, steps, 300, seed)
        assert audit(scores, included, DELTA).epsilon <= claimed


def test_dp_sgd_without_its_noise_is_caught():
    scores, included, claimed = fake_dp_sgd(1e-6, 0.2, 30, 300, 0, claimed_noise=3.0)
    assert audit(scores, included, DELTA).epsilon > claimed


def make_rows(experiment, canaries=30):
    prepared = read_prepared(experiment)
    rows = CanaryRows(experiment, prepared, choose_client(prepared, ""), canaries)
    return rows, prepared


NOISE = "privacy.example-level.noise-multiplier=1.0"


def encode(experiment, rows):
    agreement = agree([rows.describe(name) for name in rows.names], experiment)
    return rows.encode(rows.client, agreement)


def test_canaries_that_are_in_stand_behind_the_client_s_rows():
    experiment = experiment_with(NOISE)
    rows, prepared = make_rows(experiment)
    data = encode(experiment, rows)
    own, more = len(prepared[rows.client].splits["train"]), int(rows.included.sum())
    assert 0 < more < 30
    assert len(data.train) == own + more
    chosen = rows.canaries.select(torch.from_numpy(np.flatnonzero(rows.included)))
    assert torch.equal(data.train.inputs["pixels"][own:], chosen.inputs["pixels"])
    described = rows.describe(rows.client)
    assert described.examples["train"] == len(data.train)
    assert described.labelled == {t: int(m.sum()) for t, m in data.train.labelled.items()}


def test_other_clients_are_left_alone():
    experiment = experiment_with(NOISE)
    rows, prepared = make_rows(experiment)
    other = next(name for name in rows.names if name != rows.client)
    assert rows.describe(other).examples["train"] == len(prepared[other].splits["train"])


def test_canaries_do_not_depend_on_who_is_in():
    one, two = (make_rows(experiment_with(NOISE, "seed=7"))[0] for _ in range(2))
    encode(one.experiment, one)
    two.included[:] = ~one.included
    encode(two.experiment, two)
    assert torch.equal(one.canaries.inputs["pixels"], two.canaries.inputs["pixels"])


def test_rows_in_an_update_are_found_exactly_without_noise():
    experiment = experiment_with(NOISE)
    rows, _ = make_rows(experiment)
    encode(experiment, rows)
    gradients = RowGradients(rows)
    trunk = torch.cat([gradients.values[name].flatten() for name in gradients.shapes]).numpy()
    units = gradients._unit_gradients()
    shares = torch.zeros(len(units))
    shares[:30] = torch.from_numpy(rows.included).float()
    shares[40:60] = 2.0
    update = -(shares @ units).numpy()
    found = gradients.shares(trunk, update, {})
    np.testing.assert_allclose(found[:30], rows.included, atol=0.05)


def test_gradients_are_those_of_autograd():
    experiment = experiment_with(NOISE)
    rows, _ = make_rows(experiment, canaries=3)
    encode(experiment, rows)
    gradients = RowGradients(rows)
    units = gradients._unit_gradients()[1]
    model = gradients.model
    row = rows.canaries.select(slice(1, 2))
    outputs, _ = model(row.inputs, list(row.targets))
    loss = (
        torch.nn.functional.cross_entropy(outputs["digit"], row.targets["digit"])
        + torch.nn.functional.binary_cross_entropy_with_logits(
            outputs["parity"][:, 0], row.targets["parity"])
        + (outputs["ink"] - row.targets["ink"]).square().mean()
    )  # fmt: skip
    loss.backward()
    length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    trunk = torch.cat([dict(model.named_parameters())[n].grad.flatten() for n in gradients.shapes])
    torch.testing.assert_close(units, trunk / length)


@pytest.mark.parametrize("noise", [1e-4, 0.05, 0.5])
def test_rows_are_found_as_well_as_the_noise_lets_them_be(noise):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(400, generator=generator)
    gradients = torch.randn(60, 400, generator=generator) + 2 * common  # alike, as gradients are
    gradients /= gradients.norm(dim=1, keepdim=True)
    parts = torch.randint(0, 2, (60,), generator=generator).float()
    step = parts @ gradients + noise * torch.randn(400, generator=generator)
    found = torch.from_numpy(regress(gradients, step)).float()
    plain = gradients @ step
    errors = [
        float(
            ((values - values.mean()) / values.std() - (parts - parts.mean()) / parts.std()).norm()
        )
        for values in (found, plain)
    ]
    assert errors[0] < errors[1]
    if noise < 0.01:
        torch.testing.assert_close(found, parts, atol=0.02, rtol=0)


@pytest.mark.parametrize("score", ["gradient", "loss"])
@pytest.mark.parametrize("noise", [0.6, 2.0])
def test_no_bound_passes_the_accountant_s(tmp_path, score, noise):
    experiment = experiment_with(f"privacy.example-level.noise-multiplier={noise}")
    figures = audit_examples(experiment, 60, tmp_path, score=score)
    assert figures["bound"]["epsilon"] <= figures["claimed"]
    assert not figures["refuted"]
    assert figures["taken"] == 3


def test_a_client_that_took_no_part_shows_nothing(tmp_path):
    few = ("federation.clients-per-round=1", "federation.rounds=1")
    audited = []
    for client in ("client-000", "client-001"):
        try:
            audit_examples(experiment_with(NOISE, *few), 60, tmp_path / client, client=client)
            audited.append(client)
        except ConfigError as error:
            told = str(error)
    assert len(audited) < 2
    assert "took part in none of the 1 rounds; ask more clients per round" in told


def test_hardly_any_noise_lets_nearly_every_guess_be_right(tmp_path):
    experiment = experiment_with("privacy.example-level.noise-multiplier=0.01",
                                 "training.batch-size=1000")  # fmt: skip
    figures = audit_examples(experiment, 60, tmp_path)
    assert figures["bound"]["epsilon"] > 1.8
    assert figures["bound"]["gaussian"] > figures["bound"]["epsilon"]


def test_noise_left_out_is_caught(tmp_path, monkeypatch):
    experiment = experiment_with("privacy.example-level.noise-multiplier=8.0",
                                 "training.batch-size=1000")  # fmt: skip
    leave_noise_out(monkeypatch)
    figures = audit_examples(experiment, 100, tmp_path)
    assert figures["claimed"] < 1.2
    assert figures["bound"]["epsilon"] > figures["claimed"]
    assert figures["refuted"]


def leave_noise_out(monkeypatch):
    def draw_noise(self, clients, width):
        return torch.zeros(clients, width)

    monkeypatch.setattr(RowPrivacy, "draw_noise", draw_noise)


@pytest.mark.parametrize(
    "settings",
    [
        ('federation.algorithm="mr-mtl"',),
        ('federation.algorithm="fedbabu"', 'privacy.example-level.covers="trunk"'),
        ('federation.algorithm="ditto"',),
    ],
)
def test_canaries_are_found_under_algorithms_of_every_kind(tmp_path, settings):
    experiment = experiment_with("privacy.example-level.noise-multiplier=0.01",
                                 "training.batch-size=1000", *settings)  # fmt: skip
    figures = audit_examples(experiment, 60, tmp_path)
    assert figures["bound"]["epsilon"] > 1
    assert not figures["refuted"]


def test_heads_that_nothing_is_claimed_about_are_no_witnesses(tmp_path):
    settings = ('federation.algorithm="fedbabu"', 'privacy.example-level.covers="trunk"')
    with pytest.raises(ConfigError, match="makes no claim about"):
        audit_examples(experiment_with(NOISE, *settings), 60, tmp_path, score="loss")


def run(*arguments):
    small = [word for setting in SMALL for word in ("--set", setting)]
    return CliRunner().invoke(
        app, ["attack", "audit", "digits", "--unit", "example", *small, *map(str, arguments)]
    )


def error_of(result):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_the_command_tells_bound_estimate_and_claim(tmp_path):
    result = run("--out", tmp_path / "a", "--canaries", 40, "--set", NOISE)
    assert result.exit_code == 0, result.output
    assert "lower bound at 95%" in result.stdout
    figures = json.loads((tmp_path / "a/attack-audit.json").read_text())
    assert figures["unit"] == "example"
    assert figures["rows"] > 100
    assert "Privacy audit by example" in (tmp_path / "a/attack-audit.html").read_text()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--client", "nobody"], "--client must name a client of the experiment, got 'nobody'"),
        (["--score", "guess"], "--score must be one of gradient, loss, got 'guess'"),
        (["--canaries", "3"], "--canaries must be at least 20"),
    ],
)
def test_bad_options_are_told_in_a_line(tmp_path, options, what):
    assert what in error_of(run("--out", tmp_path / "a", "--set", NOISE, *options))


def test_an_experiment_without_a_claim_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"needs \[privacy.example-level\]"):
        audit_examples(experiment_with(), 50, tmp_path)
