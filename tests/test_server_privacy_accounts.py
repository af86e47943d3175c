"""What clients paid is known after every round, kept through a resume, and never exceeded."""

import json
from types import SimpleNamespace

import pytest

from common.errors import CheckpointError, ConfigError
from common.experiment_file import load_experiment
from common.privacy.accounting import Event, epsilon_of
from common.privacy.example_level import example_events
from common.privacy.ledger import Entry, Released, add_costs
from server.privacy_accounts import PrivacyAccounts
from server.run_folder import RunFolder
from simulations.simulate import simulate

LEVEL = [
    "federation.weight-by='uniform'",
    "federation.rounds=6",
    "federation.checkpoint-interval-s=0",
    "partition.clients=4",
    "training.epochs=1",
    "trunk.widths=[8]",
]
NOISE = "privacy.client-level.noise-multiplier=2.0"
SAMPLED = [
    "federation.sampling='poisson'",
    "federation.clients-per-round=2",
    "privacy.client-level.amplification=true",
]
NOISED = [
    "privacy.sums='noised'",
    "privacy.sums-noise-multiplier=9.0",
    "tasks.ink.metric='mae'",
]
ROWS = {"a": 100, "b": 50, "c": 20, "d": 10}


def experiment(*overrides):
    return load_experiment("digits", [*LEVEL, *overrides])


def accounts(*overrides, kept=None):
    roster = SimpleNamespace(
        names=sorted(ROWS),
        node_ids=ROWS,
        descriptions={n: SimpleNamespace(examples={"train": rows}) for n, rows in ROWS.items()},
    )
    return PrivacyAccounts(experiment(*overrides), roster, kept or {})


def test_a_client_pays_for_the_rounds_it_was_asked_in():
    opened = accounts(NOISE)
    opened.count("train", ["a", "b"])
    opened.count("train", ["a"])
    told = opened.figures()["client"]
    assert told["epsilon"] == pytest.approx(epsilon_of([Event(2.0, 1.0, 2)], 1e-5))
    assert told["median-epsilon"] == pytest.approx(epsilon_of([Event(2.0, 1.0, 1)], 1e-5))


def test_under_amplification_everybody_pays_for_every_round():
    opened = accounts(NOISE, *SAMPLED)
    for asked in (["a", "b"], [], ["c"]):
        opened.count("train", asked)
    paid = epsilon_of([Event(2.0, 0.5, 3)], 1e-5)
    assert opened.figures()["client"]["epsilon"] == pytest.approx(paid)
    assert opened.figures()["client"]["median-epsilon"] == pytest.approx(paid)


def test_each_client_has_an_epsilon_of_its_own_for_its_rows():
    opened = accounts("privacy.example-level.noise-multiplier=2.0")
    opened.count("train", list(ROWS))
    own = {
        name: epsilon_of(example_events(opened.experiment, rows, 1), 1e-5)
        for name, rows in ROWS.items()
    }
    told = opened.figures()["example"]
    assert told["epsilon"] == pytest.approx(max(own.values()))
    assert told["median-epsilon"] in sorted(own.values())[1:3]
    assert "client" not in opened.figures()


def test_a_ledger_adds_up_to_what_its_client_paid():
    opened = accounts(NOISE, *SAMPLED, *NOISED, "privacy.example-level.noise-multiplier=3.0")
    entries = []
    for number, asked in enumerate((["a"], ["b"], [], ["a", "b"]), start=1):
        opened.count("train", asked)
        held = {name: {"update": 10, "sums": 4} for name in asked}
        entries += opened.entries("run", number, "train", held)
    opened.count("evaluate", list(ROWS))
    entries += opened.entries("run", 4, "evaluate", {name: {"sums": 4} for name in ROWS})
    for name in ROWS:
        own = [entry for entry in entries if entry.client == name]
        events = add_costs(entry.cost for entry in own)
        for unit, events_of_unit in events.items():
            assert own[-1].epsilon[unit] == pytest.approx(epsilon_of(events_of_unit, 1e-5))


def test_what_is_kept_in_a_checkpoint_is_where_it_goes_on():
    opened = accounts(NOISE)
    opened.count("train", ["a"])
    kept = json.loads(json.dumps(opened.state()))
    again = accounts(NOISE, kept=kept)
    assert again.figures() == opened.figures()


def test_each_sitting_of_a_deployment_counts_a_round_that_may_have_been_asked():
    opened = accounts(NOISE)
    opened.count("train", ["a"])
    opened.restarted()
    assert opened.figures()["client"]["epsilon"] == pytest.approx(
        epsilon_of([Event(2.0, 1.0, 2)], 1e-5)
    )


def test_a_round_beyond_the_budget_is_told_before_it_is_asked():
    budget = epsilon_of([Event(2.0, 1.0, 2)], 1e-5) + 0.01
    opened = accounts(NOISE, f"privacy.client-level.epsilon={budget}")
    opened.count("train", ["a"])
    assert not opened.exhausted()
    opened.count("train", ["a"])
    assert "the next round would take a client to epsilon" in opened.exhausted()


def test_without_a_budget_there_is_no_end():
    opened = accounts(NOISE)
    for _ in range(50):
        opened.count("train", list(ROWS))
    assert not opened.exhausted()


def test_a_budget_for_less_than_a_round_is_refused():
    with pytest.raises(ConfigError, match="privacy: not even one round fits") as error:
        accounts(NOISE, "privacy.client-level.epsilon=0.1").require_a_round()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("delta", "refused"), [(0.25, False), (0.26, True)])
def test_delta_is_at_most_one_over_the_clients(delta, refused):
    if refused:
        with pytest.raises(ConfigError, match="must be at most 1/4"):
            accounts(NOISE, f"privacy.client-level.delta={delta}")
    else:
        accounts(NOISE, f"privacy.client-level.delta={delta}")


def run(out, engine="loopback", overrides=(NOISE,), resume=False, listener=None):
    return simulate(
        experiment(*overrides), engine=engine, out=out, resume=resume, listener=listener
    )


def lines(folder, name="ledgers.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def without_run(entries):
    return [{**entry, "run": ""} for entry in entries]


class StoppedError(Exception):
    pass


def stop_after(number):
    def listener(line):
        if line["round"] == number:
            raise StoppedError

    return listener


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize("overrides", [(NOISE,), (NOISE, *SAMPLED)], ids=["all", "sampled"])
def test_a_resumed_run_has_paid_what_an_uninterrupted_one_has(tmp_path, engine, overrides):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    results = run(whole, engine, overrides)
    with pytest.raises(StoppedError):
        run(broken, engine, overrides, listener=stop_after(3))
    resumed = run(broken, engine, overrides, resume=True)
    assert resumed["privacy"] == results["privacy"]
    assert without_run(lines(broken)) == without_run(lines(whole))
    per_round = [[line["privacy"] for line in lines(f, "metrics.jsonl")] for f in (whole, broken)]
    assert per_round[0] == per_round[1]


def test_ledger_lines_of_a_round_that_is_done_again_are_dropped(tmp_path):
    overrides = [NOISE, "federation.checkpoint-interval-s=3600"]
    with pytest.raises(StoppedError):
        run(tmp_path / "run", overrides=overrides, listener=stop_after(4))
    assert {line["round"] for line in lines(tmp_path / "run")} == {0, 1, 2, 3, 4}
    run(tmp_path / "run", overrides=overrides, resume=True)
    trained = [line["round"] for line in lines(tmp_path / "run") if line["reply"] == "train"]
    assert trained == sorted(list(range(1, 7)) * 4)


def test_a_torn_ledger_line_is_done_again(tmp_path):
    with pytest.raises(StoppedError):
        run(tmp_path / "run", listener=stop_after(3))
    path = tmp_path / "run" / "ledgers.jsonl"
    path.write_text(path.read_text() + '{"run": "dig')
    run(tmp_path / "run", resume=True)
    assert len(lines(tmp_path / "run")) == 4 + 4 * 6 + 4


def test_a_ledger_that_lost_lines_is_refused(tmp_path):
    with pytest.raises(StoppedError):
        run(tmp_path / "run", listener=stop_after(3))
    (tmp_path / "run" / "ledgers.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"has 0 lines, and the checkpoint knows of"):
        run(tmp_path / "run", resume=True)


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_run_stops_before_it_exceeds_its_budget(tmp_path, engine):
    budget = epsilon_of([Event(2.0, 1.0, 4)], 1e-5) + 0.01
    limited = (NOISE, f"privacy.client-level.epsilon={budget}")
    results = run(tmp_path / "run", engine, limited)
    assert results["rounds"] == 4
    assert results["stopped"].startswith("budget: ")
    assert results["privacy"]["client"]["epsilon"] <= budget
    assert len(lines(tmp_path / "run", "metrics.jsonl")) == 4


def test_a_run_whose_budget_is_spent_does_nothing_more(tmp_path):
    budget = epsilon_of([Event(2.0, 1.0, 4)], 1e-5) + 0.01
    limited = (NOISE, f"privacy.client-level.epsilon={budget}")
    run(tmp_path / "run", overrides=limited)
    again = run(tmp_path / "run", overrides=(*limited, "federation.rounds=9"), resume=True)
    assert again["rounds"] == 4
    assert again["stopped"].startswith("budget: ")


def test_a_budget_for_less_than_a_round_trains_nothing(tmp_path):
    with pytest.raises(ConfigError, match="not even one round fits"):
        run(tmp_path / "run", overrides=(NOISE, "privacy.client-level.epsilon=0.1"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_noise_found_from_a_budget_lasts_for_all_rounds(tmp_path):
    results = run(tmp_path / "run", overrides=("privacy.client-level.epsilon=5.0",))
    assert results["stopped"] == "all rounds done"
    assert 4.99 < results["privacy"]["client"]["epsilon"] <= 5.0


def test_a_ledger_says_what_left_every_client_in_every_round(tmp_path):
    run(tmp_path / "run")
    entries = [Entry.from_json(json.dumps(line)) for line in lines(tmp_path / "run")]
    assert len(entries) == 4 + 4 * 6 + 4
    told, first, last = entries[0], entries[4], entries[-1]
    # Rows of three splits, labels of three tasks.
    assert (told.reply, told.released) == ("query", (Released("counts", 6, (), "none"),))
    assert [each.what for each in first.released] == ["update", "sums", "counts"]
    assert [each.what for each in last.released] == ["sums", "counts"]
    assert first.released[0].units == ("client",)
    assert first.released[0].numbers == 64 * 8 + 8
    assert (first.cost, last.cost) == ({"client": (Event(2.0),)}, {})


def test_without_privacy_a_run_keeps_neither_ledgers_nor_epsilons(tmp_path):
    results = run(tmp_path / "run", overrides=())
    assert "privacy" not in results
    assert not (tmp_path / "run" / "ledgers.jsonl").exists()
    assert "privacy" not in lines(tmp_path / "run", "metrics.jsonl")[0]


def test_ledgers_that_cannot_be_written_end_the_run_in_one_line(tmp_path):
    folder = RunFolder(tmp_path)
    folder.ledgers.mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        folder.append_ledgers([Entry("r", 1, "a", "train", ())])


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_the_last_evaluation_is_not_forgotten_when_a_run_is_given_more_rounds(tmp_path, engine):
    noised = (NOISE, *NOISED)
    run(tmp_path / "run", engine, (*noised, "federation.rounds=2"))
    longer = run(tmp_path / "run", engine, (*noised, "federation.rounds=3"), resume=True)
    paid = [Event(2.0, 1.0, 3), Event(9.0, 1.0, 3 + 2)]
    assert longer["privacy"]["client"]["epsilon"] == pytest.approx(epsilon_of(paid, 1e-5))
    assert len(lines(tmp_path / "run")) == 4 + 4 * (3 + 2)


SECURE = ("privacy.secure-aggregation.threshold=0.7",)
SHARES = (NOISE, "privacy.client-level.noise='shares'", *SECURE)


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_under_secure_aggregation_a_client_pays_for_its_masked_vectors(tmp_path, engine):
    results = run(tmp_path / "run", engine, SHARES)
    spent = epsilon_of([Event(2.0, 1.0, 6)], 1e-5)
    assert results["privacy"]["client"]["epsilon"] == pytest.approx(spent)
    own = [line for line in lines(tmp_path / "run") if line["client"] == "client-002"]
    assert [line["reply"] for line in own] == ["query", *["train"] * 6, "evaluate"]
    assert own[-1]["epsilon"]["client"] == pytest.approx(spent)
    held = [(each["what"], each["mechanism"]) for each in own[1]["released"]]
    assert held[0][0] == "masked vector"
    assert all("masked by secure aggregation" in way for _, way in held[:2])


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_without_noise_secure_aggregation_has_ledgers_and_no_epsilon(tmp_path, engine):
    unpaid = (*SECURE, "privacy.secure-aggregation.max-norm=5")
    results = run(tmp_path / "run", engine, unpaid)
    assert "privacy" not in results
    trained = [line for line in lines(tmp_path / "run") if line["reply"] == "train"]
    assert len(trained) == 4 * 6
    assert not any(line["epsilon"] for line in trained)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_noise_for_a_plan_with_evaluations_by_message_lasts_to_its_end(tmp_path, every):
    planned = ("evaluation.by='message'", f"evaluation.every={every}", *NOISED)
    results = run(tmp_path / "run", "batched", ("privacy.client-level.epsilon=9.0", *planned))
    assert results["stopped"] == "all rounds done"
    assert 8.99 < results["privacy"]["client"]["epsilon"] <= 9.0


def test_evaluations_still_to_come_are_in_the_next_rounds_cost():
    paid = [Event(2.0, 1.0, 1), Event(9.0, 1.0, 3)]  # a round, its evaluation, the last one
    by_message = ("evaluation.by='message'", *NOISED)
    for spare, fits in ((0.01, True), (-0.01, False)):
        budget = epsilon_of(paid, 1e-5) + spare
        opened = accounts(NOISE, *by_message, f"privacy.client-level.epsilon={budget}")
        assert bool(opened.exhausted()) != fits
