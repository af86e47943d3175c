"""Secure aggregation: sums are right whoever drops out, and nothing but sums can be made."""

import itertools
import math
from random import Random

import numpy as np
import pytest

from common.secure_aggregation.client import ClientMachine, ExchangeError
from common.secure_aggregation.graph import count_needed, draw_neighbours
from common.secure_aggregation.keys import (
    TamperedError,
    add_mask,
    agree_on_key,
    make_key,
    open_sealed,
    public_key,
    seal,
)
from common.secure_aggregation.server import BelowThresholdError
from common.secure_aggregation.shamir import PRIME, join_shares, split_secret
from tests.secure_rounds import Exchange

STAGES = ("keys", "shares", "mask", "unmask")


def assert_sum_is_plain(exchange):
    for total, plain in zip(exchange.run(), exchange.plain(), strict=True):
        np.testing.assert_array_equal(total, plain)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 20, 50])
def test_the_sum_is_the_plain_one(count):
    assert_sum_is_plain(Exchange(count))


@pytest.mark.slow
def test_the_sum_of_a_hundred_clients_is_the_plain_one_with_a_third_gone():
    lost = {"mask": set(range(1, 18)), "unmask": set(range(18, 35))}
    exchange = Exchange(100, lost=lost)
    assert_sum_is_plain(exchange)
    assert len(exchange.server.staying) == 83


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "gone", [set(c) for n in (1, 2) for c in itertools.combinations("1356", n)]
)
def test_the_sum_is_right_whoever_drops_out_at_any_stage(stage, gone):
    exchange = Exchange(6, lost={stage: {int(place) for place in gone}})
    assert exchange.needed == 4
    assert_sum_is_plain(exchange)


@pytest.mark.parametrize("seed", range(12))
def test_the_sum_is_right_when_clients_drop_out_at_all_stages_at_once(seed):
    random = Random(seed)
    count = random.randint(4, 15)
    most = count - count_needed(count, "all", 0.66)
    lost = {stage: set() for stage in STAGES}
    for place in random.sample(range(1, count + 1), most):
        lost[random.choice(STAGES)].add(place)
    exchange = Exchange(count, lost=lost, seed=seed)
    assert_sum_is_plain(exchange)
    assert len(exchange.server.staying) >= exchange.needed


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_there_is_no_sum(stage):
    with pytest.raises(BelowThresholdError, match="4 are needed"):
        Exchange(6, lost={stage: {1, 2, 3}}).run()


@pytest.mark.parametrize("neighbours", [4, 5, 8])
def test_the_sum_is_right_among_few_neighbours(neighbours):
    exchange = Exchange(
        20, neighbours=neighbours, threshold=0.51, lost={"mask": {3}, "unmask": {9}}
    )
    assert_sum_is_plain(exchange)
    assert {len(others) for others in exchange.server.neighbours.values()} == {
        neighbours + neighbours % 2
    }


def test_neighbours_are_mutual_and_all_hang_together():
    graph = draw_neighbours(30, 4, Random(1))
    assert all(place in graph[other] for place, others in graph.items() for other in others)
    reached, front = {1}, [1]
    while front:
        new = set(graph[front.pop()]) - reached
        reached |= new
        front += new
    assert reached == set(graph)


def test_more_than_half_are_needed_and_two_at_least():
    assert count_needed(2, "all", 0.51) == 2
    assert count_needed(4, "all", 0.5 + 1e-12) == 3  # two pairs could be told different things
    assert count_needed(100, "all", 0.66) == 66
    assert count_needed(1000, 20, 0.66) == math.ceil(21 * 0.66)


def test_what_the_server_receives_is_spread_evenly():
    width = 40_000
    exchange = Exchange(3, width=width)
    for vectors in exchange.vectors.values():
        vectors[0][:] = 7  # all alike: a mask that did not cover would show
    exchange.meet()
    exchange.deal()
    exchange.cover()
    for masked in exchange.masked.values():
        counts = np.bincount(masked[0] >> 24, minlength=256)
        expected = width / 256
        statistic = float(((counts - expected) ** 2 / expected).sum())
        # 255 degrees of freedom: mean 255, deviation 22.6; six deviations.
        assert abs(statistic - 255) < 6 * 22.6
    together = exchange.masked[1][0] - exchange.masked[2][0]  # own masks are left in a difference
    assert len(np.unique(together)) > 0.99 * width


def test_pair_masks_alone_would_cancel_and_own_masks_do_not():
    exchange = Exchange(3)
    exchange.meet()
    exchange.deal()
    exchange.cover()
    still_masked = sum((words[0] for words in exchange.masked.values()), np.uint32(0))
    plain = sum((vectors[0] for vectors in exchange.vectors.values()), np.uint32(0))
    assert (still_masked != plain).all()


def test_one_share_too_few_uncovers_nothing():
    exchange = Exchange(6)
    exchange.meet()
    exchange.deal()
    exchange.cover()
    before = [vector.copy() for vector in exchange.server._total]
    exchange.lost["unmask"] = {1, 2, 3}
    exchange.uncover()
    with pytest.raises(BelowThresholdError, match="3 shares of a seed"):
        exchange.server.total()
    for vector, kept in zip(exchange.server._total, before, strict=True):
        np.testing.assert_array_equal(vector, kept)


def test_shares_below_the_threshold_fit_every_secret():
    # Two of three shares fix a polynomial; one share and any secret fix another: nothing is known.
    secret, guess = make_key(), int.from_bytes(make_key(), "big")
    shares = split_secret(secret, 2, [1, 2, 3])
    known = int.from_bytes(shares[1], "big")
    slope = (known - guess) % PRIME
    other = (guess + 2 * slope) % PRIME
    faked = {1: shares[1], 2: other.to_bytes(33, "big")}
    assert join_shares(faked, 2) == guess.to_bytes(32, "big")
    assert join_shares({2: shares[2], 3: shares[3]}, 2) == secret
    with pytest.raises(ValueError, match="2 shares are needed"):
        join_shares({1: shares[1]}, 2)


def test_a_client_never_gives_both_shares_of_a_peer():
    exchange = Exchange(4, lost={"mask": {4}})
    exchange.meet()
    exchange.deal()
    exchange.cover()
    client, sealed = exchange.clients[1], exchange.server.sealed_for(1)
    found = client.uncover({1, 2, 3}, sealed)
    assert (set(found.seeds), set(found.keys)) == ({1, 2, 3}, {4})
    with pytest.raises(ExchangeError, match="this client is at 'over'"):
        client.uncover({1, 2, 4}, sealed)


def test_a_client_refuses_a_set_of_too_few_and_one_without_itself():
    for staying, reason in (({1, 2}, "2 neighbours stayed, 3 are needed"), ({2, 3, 4}, "as gone")):
        exchange = Exchange(4)
        exchange.meet()
        exchange.deal()
        exchange.cover()
        with pytest.raises(ExchangeError, match=reason):
            exchange.clients[1].uncover(staying, exchange.server.sealed_for(1))
        assert not exchange.clients[1].seed  # nor can it be asked again


def test_a_client_refuses_too_few_neighbours_and_too_few_dealers():
    exchange = Exchange(6)
    exchange.meet()
    keys = {place: exchange.server.keys[place] for place in (2, 3)}
    with pytest.raises(ExchangeError, match="4 are needed"):
        exchange.clients[1].deal(1, keys, exchange.needed, exchange.least)
    exchange = Exchange(6)
    exchange.meet()
    exchange.deal()
    words = [vector.copy() for vector in exchange.vectors[1]]
    with pytest.raises(ExchangeError, match="3 neighbours dealt shares out, 4 are needed"):
        exchange.clients[1].cover(words, {2, 3})
    np.testing.assert_array_equal(words[0], exchange.vectors[1][0])


def test_a_client_refuses_keys_that_two_have():
    exchange = Exchange(4)
    exchange.meet()
    keys = dict.fromkeys((2, 3, 4), exchange.server.keys[2])
    with pytest.raises(ExchangeError, match="the same keys"):
        exchange.clients[1].deal(1, keys, 3, 3)


def test_a_vector_is_masked_once():
    exchange = Exchange(3)
    exchange.meet()
    exchange.deal()
    exchange.cover()
    with pytest.raises(ExchangeError, match="stage 'mask' follows 'shares'"):
        exchange.clients[1].cover([np.zeros(3, np.uint32)], {1, 2, 3})


def test_shares_that_were_changed_on_their_way_are_noticed_and_not_needed():
    exchange = Exchange(6)
    exchange.meet()
    exchange.deal()
    exchange.cover()
    staying = set(exchange.server.staying)
    for place in sorted(staying):
        sealed = dict(exchange.server.sealed_for(place))
        if place == 2:
            changed = bytearray(sealed[5])
            changed[20] ^= 1
            sealed[5] = bytes(changed)
        found = exchange.clients[place].uncover(staying, sealed)
        assert found.tampered == ([5] if place == 2 else [])
        exchange.server.take_uncovered(place, found)
    assert exchange.server.wrong == {(2, 5): "was changed on its way"}
    np.testing.assert_array_equal(exchange.server.total()[0], exchange.plain()[0])


@pytest.mark.parametrize("liars", [{2}, {2, 3, 4}])
def test_a_wrong_share_is_noticed_and_without_enough_right_ones_there_is_no_sum(liars):
    exchange = Exchange(6)
    exchange.meet()
    exchange.deal()
    exchange.cover()
    staying = set(exchange.server.staying)
    for place in sorted(staying):
        found = exchange.clients[place].uncover(staying, exchange.server.sealed_for(place))
        if place in liars:
            share = bytearray(found.seeds[1])
            share[-1] ^= 1
            found = type(found)({**found.seeds, 1: bytes(share)}, found.keys, found.tampered)
        exchange.server.take_uncovered(place, found)
    assert set(exchange.server.wrong) == {(liar, 1) for liar in liars}
    if len(liars) == 1:
        np.testing.assert_array_equal(exchange.server.total()[0], exchange.plain()[0])
    else:
        with pytest.raises(BelowThresholdError, match="3 shares of a seed are there"):
            exchange.server.total()


def test_a_sealed_share_opens_for_its_pair_and_purpose_alone():
    one, other, third = make_key(), make_key(), make_key()
    key = agree_on_key(one, public_key(other), b"seal")
    assert key == agree_on_key(other, public_key(one), b"seal")
    sealed = seal(key, b"share", b"1:2")
    assert open_sealed(key, sealed, b"1:2") == b"share"
    for wrong, about in (
        (key, b"2:1"),
        (agree_on_key(third, public_key(one), b"seal"), b"1:2"),
        (agree_on_key(one, public_key(other), b"pair"), b"1:2"),
    ):
        with pytest.raises(TamperedError):
            open_sealed(wrong, sealed, about)


def test_a_mask_is_one_stream_over_all_vectors_and_comes_off_again():
    key = make_key()
    words = [np.arange(100_001, dtype=np.uint32), np.arange(7, dtype=np.uint64)]
    kept = [vector.copy() for vector in words]
    add_mask(key, words)
    mask = words[0] - kept[0]
    # No part of the stream occurs twice, where a vector is longer than the pieces it is made in.
    assert len(np.unique(mask)) > 0.999 * len(mask)
    add_mask(key, words, subtract=True)
    for vector, before in zip(words, kept, strict=True):
        np.testing.assert_array_equal(vector, before)


def test_another_process_goes_on_from_a_clients_state():
    exchange = Exchange(4, lost={"mask": {4}})
    for stage in (exchange.meet, exchange.deal, exchange.cover, exchange.uncover):
        stage()
        exchange.clients = {
            place: ClientMachine.from_state(client.to_state())
            for place, client in exchange.clients.items()
        }
    np.testing.assert_array_equal(exchange.server.total()[1], exchange.plain()[1])


def test_secrets_are_forgotten_once_they_are_uncovered():
    exchange = Exchange(3)
    exchange.run()
    state = exchange.clients[1].to_state()
    assert not any(state[name] for name in ("mask-key", "seal-key", "seed", "own-share"))


def test_no_log_can_print_a_secret():
    exchange = Exchange(3)
    exchange.meet()
    exchange.deal()
    for client in exchange.clients.values():
        told = repr(client)
        secrets = client.mask_key, client.seal_key, client.seed, client.own_share
        assert all(secret and repr(secret) not in told for secret in secrets)
