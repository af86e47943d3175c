"""Who is asked: by seed and name, by size, by trace; and when a round closes."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from common.agreement import Description
from common.errors import ConfigError
from server.closing import CLOSED, SILENT, Closing, Tally
from server.roster import Roster
from server.sampling import (
    choose_clients,
    count_asked,
    require_trace,
    sample_by_size,
    sample_poisson,
)
from tests.conftest import make_experiment

NAMES = ("anna", "bert", "cleo", "dora", "emil")


def roster_of(**federation):
    roster = Roster(make_experiment(federation=federation))
    for node_id, name in enumerate(NAMES):
        roster.node_ids[name] = node_id
        roster.descriptions[name] = Description(client=name, examples={"train": 10**node_id})
    return roster


def choose(roster, round_number, attempt=0):
    return choose_clients(roster.experiment, roster, round_number, attempt)


def test_each_attempt_and_each_round_draw_anew_and_the_same_when_drawn_again():
    roster = roster_of(**{"clients-per-round": 2})
    drawn = [choose(roster, r, a) for r in range(1, 20) for a in range(3)]
    assert drawn == [choose(roster, r, a) for r in range(1, 20) for a in range(3)]
    assert len({*map(tuple, drawn)}) == 10  # all pairs of five occur
    assert all(choose(roster, r) == sorted(choose(roster, r)) for r in range(9))


def test_larger_clients_are_drawn_in_proportion_to_their_rows():
    sizes = {"small": 1, "large": 3}
    found = Counter(sample_by_size(sizes, 1, seed, "x")[0] for seed in range(4000))
    assert found["large"] / 4000 == pytest.approx(0.75, abs=0.02)  # 3 deviations of the mean


def test_draws_without_replacement_follow_the_sizes_that_are_left():
    sizes = {"a": 1, "b": 2, "c": 3}
    found = Counter(tuple(sample_by_size(sizes, 2, seed, "x")) for seed in range(4000))
    # a and b: a first (1/6), then b (2/5), or b first (2/6), then a (1/4).
    assert found["a", "b"] / 4000 == pytest.approx(1 / 6 * 2 / 5 + 2 / 6 * 1 / 4, abs=0.02)


@pytest.mark.parametrize("claimed", [10**400, 2**70, -5])
def test_a_size_that_nobody_has_does_not_end_the_run(claimed):
    roster = roster_of(**{"clients-per-round": 2, "sampling": "by-size"})
    roster.descriptions["anna"] = Description(client="anna", examples={"train": claimed})
    assert len(choose(roster, 1)) == 2


def test_clients_of_one_size_are_drawn_alike():
    found = Counter(sample_by_size(dict.fromkeys("abcd", 7), 1, s, "x")[0] for s in range(4000))
    assert all(found[name] / 4000 == pytest.approx(0.25, abs=0.025) for name in "abcd")


def test_over_selection_beyond_all_bounds_asks_everybody():
    settings = {"clients-per-round": 2, "over-selection": 1e308}
    assert choose(roster_of(**settings), 1) == list(NAMES)


def test_the_order_of_names_does_not_change_the_draw_by_size():
    for order in itertools.permutations(["a", "b", "c"]):
        assert sample_by_size(dict.fromkeys(order, 2), 2, 5, "x") == sample_by_size(
            {"a": 2, "b": 2, "c": 2}, 2, 5, "x"
        )


def test_by_size_asks_the_largest_far_more_often_than_the_smallest():
    roster = roster_of(**{"clients-per-round": 1, "sampling": "by-size"})
    found = Counter(choose(roster, number)[0] for number in range(200))
    assert found["emil"] > 150
    uniform = roster_of(**{"clients-per-round": 1})
    assert Counter(choose(uniform, number)[0] for number in range(200))["emil"] < 80


def test_only_clients_that_are_there_are_asked_and_nobody_where_nobody_is():
    lines = ["client,from-round,to-round", *(f"{name},2,3" for name in NAMES[:4]), "emil,3,3"]
    roster = roster_of(availability=lines, **{"clients-per-round": 4})
    assert choose(roster, 1) == []
    assert choose(roster, 2) == list(NAMES[:4])
    assert len(choose(roster, 3)) == 4


def test_over_selection_asks_more_but_not_more_than_there_are():
    federation = roster_of(**{"clients-per-round": 10, "over-selection": 0.1}).experiment.federation
    assert count_asked(federation, 100) == 11  # 10 * 1.1 is 11.000000000000002
    assert count_asked(federation, 8) == 8


def test_a_trace_about_strangers_is_refused_or_told():
    lines = ["client,from-round,to-round", "anna,1,2", "zoe,1,2", "yan,1,2"]
    roster = roster_of(availability=lines)
    with pytest.raises(ConfigError) as caught:
        require_trace(roster.experiment, roster, strict=True)
    assert str(caught.value).splitlines() == [
        "federation.availability, line 3: client must be one of the 5 clients, got 'zoe'",
        "federation.availability, line 4: client must be one of the 5 clients, got 'yan'",
    ]
    assert len(require_trace(roster.experiment, roster, strict=False)) == 2


def closing(asked, **settings):
    defaults = {"clients_per_round": 4, "over_selection": 0.0, "least_replies": 0.0}
    return Closing.of(SimpleNamespace(**{**defaults, **settings}), asked)


def test_a_share_of_the_clients_asked_or_of_those_wanted_is_needed():
    assert closing(4, least_replies=0.5).needed == 2
    assert closing(3, least_replies=0.5).needed == 2
    assert closing(6, least_replies=0.5, over_selection=0.5).needed == 2
    assert closing(10, least_replies=0.7, clients_per_round="all").needed == 7  # not 7.000...1
    assert closing(4).is_plain
    assert not closing(6, over_selection=0.5).is_plain


def test_the_first_usable_replies_count_and_the_rest_came_too_late():
    tally = Tally(Closing(asked=5, wanted=2, needed=1))
    assert [tally.take(*pair) for pair in [("dora", None), ("bert", "bad"), ("anna", None)]] == [
        False,
        False,
        True,
    ]
    tally.take("cleo", None)
    assert list(tally.usable) == ["dora", "anna"]
    assert tally.left_out(NAMES) == {"bert": "bad", "cleo": CLOSED, "emil": CLOSED}
    assert not tally.loss


def test_a_round_that_never_fills_waits_for_its_deadline_and_may_be_lost():
    tally = Tally(Closing(asked=5, wanted=3, needed=2))
    tally.take("dora", None)
    assert tally.left_out(["anna", "dora"]) == {"anna": SILENT}
    assert tally.loss == "usable replies: 1, needed: 2"


def test_a_poisson_sample_draws_each_client_by_itself_with_one_rate():
    names = [f"client-{place:03d}" for place in range(50)]
    rounds = [sample_poisson(names, 0.3, 7, "sampling", number) for number in range(2000)]
    drawn = np.array([[name in sample for name in names] for sample in rounds])
    rates = drawn.mean(0)
    assert np.abs(rates - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)
    sizes = drawn.sum(1)  # binomial: no fixed size
    assert sizes.var() == pytest.approx(50 * 0.3 * 0.7, rel=0.15)
    pairs = np.corrcoef(drawn[:, :10].T) - np.eye(10)
    assert np.abs(pairs).max() < 0.12
    assert rounds[3] == sample_poisson(names[::-1], 0.3, 7, "sampling", 3)
    assert all(sample == sorted(sample) for sample in rounds[:5])
