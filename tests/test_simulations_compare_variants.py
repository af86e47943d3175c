"""A comparison of variants: its table by hand on made-up outcomes, and a small real one."""

import json
import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from common.errors import CheckpointError, ConfigError
from common.experiment_file import load_experiment
from simulations import compare_variants as module
from simulations.compare_variants import Outcome, compare_variants
from simulations.comparison_table import columns_of, print_comparison, rivals_of
from simulations.gains import YARDSTICK
from simulations.run_record import read_run
from simulations.simulate import simulate
from simulations.step_time import clients_asked, ms_per_step
from simulations.variants import plan_variants
from tests.test_simulations_report import change_results, fabricate_run

QUICK = ["federation.rounds=2", "partition.clients=2", "trunk.widths=[8]"]
SLOW, FAST = "training.lr=0.1", "training.lr=0.2"
MADE_UP = {  # name -> digit, parity and ink of a run with seed 0, and what each seed adds
    YARDSTICK: (0.5, 0.8, 0.4, 0.0),
    SLOW: (0.6, 0.8, 0.4, 0.1),
    FAST: (0.7, 0.6, 0.4, 0.0),
}


def make_up(job):
    *figures, step = MADE_UP[job.name]
    tasks = dict(zip(("digit", "parity", "ink"), figures, strict=True))
    tasks["digit"] += step * job.experiment.seed
    return Outcome(tasks, math.nan if job.name == YARDSTICK else 2.0 + job.experiment.seed)


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(module, "do_job", make_up)


def plan(*options, **more):
    return plan_variants("digits", options, QUICK, **more)


def printed(comparison, width=200):
    console = Console(width=width, record=True)
    with console.capture() as capture:
        print_comparison(comparison, console)
    return capture.get()


def test_means_deviations_and_delta_m_by_hand(made_up, tmp_path):
    result = compare_variants(plan("training.lr=0.1,0.2"), range(2), tmp_path / "out")
    slow, fast = result["contenders"][SLOW], result["contenders"][FAST]
    assert slow["tasks"]["digit"]["mean"] == pytest.approx(0.65)  # 0.6 and 0.7
    assert slow["tasks"]["digit"]["deviation"] == pytest.approx(0.1 / math.sqrt(2))
    # (+20 % + 0 + 0) / 3, then (+40 % + 0 + 0) / 3
    assert slow["delta-m"]["seeds"] == pytest.approx([20 / 3, 40 / 3])
    assert slow["delta-m"]["deviation"] == pytest.approx(20 / 3 / math.sqrt(2))
    assert fast["delta-m"]["mean"] == pytest.approx((40 - 25 + 0) / 3)
    assert slow["step-ms"]["mean"] == 2.5
    assert result["contenders"][YARDSTICK]["delta-m"]["mean"] == 0
    assert "step-ms" not in result["contenders"][YARDSTICK]


def test_the_table_says_the_same_and_one_row_each(made_up, tmp_path):
    text = printed(compare_variants(plan("training.lr=0.1,0.2"), range(2), tmp_path / "out"))
    rows = [" ".join(line.replace("│", " ").split()) for line in text.splitlines() if "│" in line]
    assert rows == [
        "single-task local 0.5000 ± 0 0.8000 ± 0 0.4000 ± 0 +0.0 ± 0.0 -",
        "0.1 0.6500 ± 0.071 0.8000 ± 0 0.4000 ± 0 +10.0 ± 4.7 2.500 ± 0.71",
        "0.2 0.7000 ± 0 0.6000 ± 0 0.4000 ± 0 +5.0 ± 0.0 2.500 ± 0.71",
    ]
    assert "over 2 seeds" in text
    assert "ms per local step: the wall time of a round" in text


def test_the_best_variant_of_a_column_is_marked_the_yardstick_never(made_up, tmp_path):
    result = compare_variants(plan("training.lr=0.1,0.2"), range(2), tmp_path / "out")
    best = {c.heading: c.best(rivals_of(result)) for c in columns_of(result)}
    assert best == {
        "digit": {FAST},
        "parity": {SLOW},
        "ink": {SLOW, FAST},
        "Delta-m": {SLOW},
        "local step": {SLOW, FAST},
    }


def test_low_is_best_for_times_and_a_variant_without_figures_is_never_best(
    made_up, tmp_path, monkeypatch
):
    def diverge(job):
        outcome = make_up(job)
        return Outcome(dict.fromkeys(outcome.tasks, math.nan)) if job.name == FAST else outcome

    monkeypatch.setattr(module, "do_job", diverge)
    three = plan("training.lr=0.1,0.2,0.3")
    monkeypatch.setitem(MADE_UP, "training.lr=0.3", (0.1, 0.1, 0.1, 0.0))
    result = compare_variants(three, [0], tmp_path / "out")
    assert math.isnan(result["contenders"][FAST]["delta-m"]["mean"])
    assert all(FAST not in column.best(rivals_of(result)) for column in columns_of(result))
    assert "0.2 - - - - -" in " ".join(printed(result).replace("│", " ").split())


def test_every_seed_is_written_as_a_comparison_of_its_own_as_soon_as_it_is_done(
    tmp_path, monkeypatch
):
    out = tmp_path / "out"

    def stop_at_seed_1(job):
        if job.experiment.seed:
            raise KeyboardInterrupt
        return make_up(job)

    monkeypatch.setattr(module, "do_job", stop_at_seed_1)
    with pytest.raises(KeyboardInterrupt):
        compare_variants(plan("training.lr=0.1,0.2"), range(2), out)
    first = json.loads((out / "seed-0" / "comparison.json").read_text())
    assert first["seeds"] == [0]
    assert first["contenders"][SLOW]["tasks"]["digit"] == {
        "mean": 0.6,
        "deviation": 0.0,
        "seeds": [0.6],
    }
    assert not (out / "comparison.json").exists()


def test_progress_counts_every_run_and_yardstick(made_up, tmp_path):
    told = []
    compare_variants(
        plan("training.lr=0.1,0.2"),
        range(2),
        tmp_path / "out",
        on_progress=lambda *numbers: told.append(numbers),
    )
    assert told == [(done, 6) for done in range(1, 7)]


def test_without_a_yardstick_there_is_no_delta_m(made_up, tmp_path):
    few = plan("training.lr=0.1,0.2", with_yardstick=False)
    result = compare_variants(few, [0], tmp_path / "out")
    assert list(result["contenders"]) == [SLOW, FAST]
    assert "delta-m" not in result["contenders"][SLOW]
    assert "Delta-m" not in printed(result)


def test_other_rows_are_told_and_have_their_own_yardstick(tmp_path, monkeypatch):
    digit = {2: 0.5, 3: 0.25}

    def by_clients(job):
        gain = 2 if job.folder else 1
        value = gain * digit[job.experiment.partition.clients]
        return Outcome({"digit": value, "parity": 0.5, "ink": 0.5})

    monkeypatch.setattr(module, "do_job", by_clients)
    result = compare_variants(plan("partition.clients=2,3"), [0], tmp_path / "out")
    names = [f"partition.clients={n}" for n in (2, 3)]
    assert list(result["contenders"]) == [*(f"{YARDSTICK}, {name}" for name in names), *names]
    for name in names:  # twice its own yardstick in one of three tasks
        assert result["contenders"][name]["delta-m"]["mean"] == pytest.approx(100 / 3)
    assert "Variants have different test rows" in printed(result)


def test_a_folder_that_exists_is_refused_before_anything_trains(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr(module, "do_job", pytest.fail)
    with pytest.raises(CheckpointError, match="choose another --out"):
        compare_variants(plan("training.lr=0.1"), [0], tmp_path)


def test_a_real_comparison_is_what_its_runs_say(tmp_path):
    out = tmp_path / "out"
    result = compare_variants(plan("training.lr=0.005,0.02"), range(2), out)
    assert json.loads((out / "comparison.json").read_text()) == result
    for name in ("training.lr=0.005", "training.lr=0.02"):
        contender = result["contenders"][name]
        assert contender["engine"] == "batched"
        for place, seed in enumerate(range(2)):
            record = read_run(out / f"seed-{seed}" / name)
            assert record.experiment.seed == seed
            assert record.environment["engine"] == "batched"
            tasks = record.results["best"]["test"]["tasks"]
            assert contender["tasks"]["ink"]["seeds"][place] == tasks["ink"]["r2"]
            assert contender["step-ms"]["seeds"][place] == ms_per_step(record) > 0


def test_a_variant_that_diverges_is_nan_and_told_in_one_line(tmp_path, caplog):
    diverging = plan("training.lr=0.01,1e6", "training.optimiser=sgd", with_yardstick=False)
    result = compare_variants(diverging, [0], tmp_path / "out")
    bad, good = (
        "training.lr=1e6, training.optimiser=sgd",
        "training.lr=0.01, training.optimiser=sgd",
    )
    assert math.isnan(result["contenders"][bad]["tasks"]["digit"]["mean"])
    assert math.isnan(result["contenders"][bad]["step-ms"]["mean"])
    assert result["contenders"][good]["tasks"]["digit"]["mean"] >= 0
    assert len(caplog.messages) == 1
    assert "nothing was learned" in caplog.messages[0]


@pytest.mark.slow
def test_jobs_in_processes_give_what_jobs_in_turn_give(tmp_path):
    few = plan("training.lr=0.005,0.02")
    one, two = (
        compare_variants(few, range(2), tmp_path / str(jobs), jobs)["contenders"] for jobs in (1, 2)
    )
    for contender in (*one.values(), *two.values()):
        contender.pop("step-ms", None)
    assert one == two


def test_an_error_in_a_job_is_told(tmp_path, monkeypatch):
    def refuse(job):
        raise ConfigError("no")

    monkeypatch.setattr(module, "do_job", refuse)
    with pytest.raises(ConfigError, match="no"):
        compare_variants(plan("training.lr=0.1"), [0], tmp_path / "out")


def test_time_per_step_by_hand(tmp_path):
    fabricate_run(tmp_path, clients=10, rounds=20)  # 100 training rows each, batches of 16
    record = read_run(tmp_path)
    total_s = sum(line["time_s"] for line in record.rounds[1:])
    assert ms_per_step(record) == pytest.approx(1000 * total_s / (19 * 10 * 7))


def test_of_one_round_the_first_is_all_there_is(tmp_path):
    fabricate_run(tmp_path, clients=2, rounds=1)
    record = read_run(tmp_path)
    assert ms_per_step(record) == pytest.approx(1000 * record.rounds[0]["time_s"] / (2 * 7))


def test_a_run_that_did_not_end_or_lost_a_client_has_no_time_per_step(tmp_path):
    fabricate_run(tmp_path)
    change_results(tmp_path, warnings=["client-003: no answer in time"])
    assert math.isnan(ms_per_step(read_run(tmp_path)))
    (tmp_path / "results.json").unlink()
    assert math.isnan(ms_per_step(read_run(tmp_path)))


BY_SIZE = "federation.sampling=by-size"
TRACE = 'federation.availability=["client,from-round,to-round", "client-004,3,9"]'


@pytest.mark.parametrize("more", [[], [BY_SIZE], [TRACE], [BY_SIZE, TRACE]])
def test_steps_are_counted_of_the_clients_that_a_round_drew(tmp_path, more):
    sampled = ["partition.clients=5", "federation.clients-per-round=2", "partition.kind=dirichlet"]
    unlike = [*sampled, "partition.by=digit", "partition.alpha=0.3", "federation.rounds=4"]
    experiment = load_experiment("digits", [*unlike, *more])
    simulate(experiment, engine="loopback", out=tmp_path / "run")
    record = read_run(tmp_path / "run")
    clients = record.results["clients"]
    sizes = {name: client["examples"]["train"] for name, client in clients.items()}
    assert len({*sizes.values()}) == 5  # a wrong draw would show
    for line in record.rounds:
        rows = sum(sizes[name] for name in clients_asked(record, sizes, line))
        assert line["train"]["tasks"]["digit"]["examples"] == rows * experiment.training.epochs


def test_clients_of_lost_attempts_count_too():
    experiment = load_experiment("digits", ["federation.clients-per-round=2"])
    record = SimpleNamespace(experiment=experiment)
    sizes = dict.fromkeys("abcdef", 100)
    once = clients_asked(record, sizes, {"round": 1})
    twice = clients_asked(record, sizes, {"round": 1, "lost-attempts": [{}]})
    assert (len(once), twice[:2], len(twice)) == (2, once, 4)


def test_steps_of_every_pass_over_the_rows_count(tmp_path):
    settings = ["federation.algorithm=fedrep", "federation.algorithm-options.head-epochs=3"]
    tiny = ["partition.clients=2", "federation.rounds=2", "training.epochs=1", "trunk.widths=[4]"]
    experiment = load_experiment("digits", [*settings, *tiny])
    simulate(experiment, engine="loopback", out=tmp_path / "run")
    record = read_run(tmp_path / "run")
    batches = sum(
        math.ceil(client["examples"]["train"] / experiment.training.batch_size)
        for client in record.results["clients"].values()
    )
    expected = 1000 * record.rounds[1]["time_s"] / (4 * batches)
    assert ms_per_step(record) == pytest.approx(expected)
