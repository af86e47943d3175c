"""The server's side of one exchange; of everything that it is sent it can make the sum alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.secure_aggregation.client import (
    Dealt,
    Uncovered,
    pair_mask_key,
    self_mask_key,
)
from common.secure_aggregation.keys import PublicKeys, Words, add_mask, commit, public_key
from common.secure_aggregation.shamir import join_shares


class BelowThresholdError(Exception):
    """Too few clients stayed, so that nothing can be uncovered; the message counts them."""


@dataclass
class ServerMachine:
    """The server in one exchange.

    Args:
        exchange: names it.
        threshold: how many of a client's neighbours, itself among them, must stay.
        least: how many clients must stay in all.

    Attributes:
        neighbours: place -> its neighbours; filled in once it is known who has keys.
        keys: place -> public keys.
        dealt: place -> what it dealt out.
        staying: places whose vectors are in the sum.
        wrong: (holder, owner) -> what is wrong with the share that the one had of the other.
    """

    exchange: str
    threshold: int
    least: int
    neighbours: dict[int, tuple[int, ...]] = field(default_factory=dict)
    keys: dict[int, PublicKeys] = field(default_factory=dict)
    dealt: dict[int, Dealt] = field(default_factory=dict)
    staying: set[int] = field(default_factory=set)
    wrong: dict[tuple[int, int], str] = field(default_factory=dict)
    _total: list[Words] = field(default_factory=list)
    _seeds: dict[int, dict[int, bytes]] = field(default_factory=dict)  # owner -> holder -> share
    _mask_keys: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def meet(self, keys: Mapping[int, PublicKeys], neighbours: dict[int, tuple[int, ...]]) -> None:
        """Take in keys and the graph.

        Raises:
            BelowThresholdError: a client has too few neighbours.
        """
        self.keys, self.neighbours = dict(keys), neighbours
        self._check(keys, "keys")

    def take_shares(self, place: int, dealt: Dealt) -> bool:
        """Take in what a client dealt out; False where it is not for its neighbours."""
        others = set(self.neighbours[place])
        if set(dealt.sealed) != others or set(dealt.commitments) != {place, *others}:
            return False
        self.dealt[place] = dealt
        return True

    def close_shares(self) -> None:
        """Go on with those who dealt.

        Raises:
            BelowThresholdError: a client has too few neighbours among them.
        """
        self._check(self.dealt, "shares")

    def sealed_for(self, place: int) -> dict[int, bytes]:
        """Get what a client's neighbours dealt to it, sender -> sealed."""
        return {
            sender: self.dealt[sender].sealed[place]
            for sender in self.neighbours[place]
            if sender in self.dealt
        }

    def add(self, place: int, words: Sequence[Words]) -> None:
        """Add a masked vector; the first one is kept, and changed by the next."""
        if place in self.staying or place not in self.dealt:
            raise ValueError(f"place {place} has no vector to add")
        self.staying.add(place)
        if not self._total:
            self._total = [np.array(vector) for vector in words]
            return
        for total, vector in zip(self._total, words, strict=True):
            total += vector

    def close_masks(self) -> None:
        """Go on with those whose vectors are there.

        Raises:
            BelowThresholdError: a client that is to be uncovered has too few neighbours among them.
        """
        self._check(self.staying, "masked vectors")

    def take_uncovered(self, place: int, uncovered: Uncovered) -> None:
        """Take in shares, each held against its owner's commitment; a wrong one does not count."""
        for owner in uncovered.tampered:
            if owner in self.dealt:
                self.wrong[place, owner] = "was changed on its way"
        for kept, shares, which in (
            (self._seeds, uncovered.seeds, 0),
            (self._mask_keys, uncovered.keys, 1),
        ):
            for owner, share in shares.items():
                if owner not in self.dealt:
                    continue
                promised = self.dealt[owner].commitments
                if place in promised and commit(share) == promised[place][which]:
                    kept.setdefault(owner, {})[place] = share
                else:
                    self.wrong[place, owner] = "is not the one that was dealt out"

    def total(self) -> list[Words]:
        """Take the masks off the sum.

        Raises:
            BelowThresholdError: too few shares of a client's secret are there.
        """
        seeds = {p: self._join(self._seeds, p, "seed") for p in sorted(self.staying)}
        gone = [p for p in sorted(self.dealt) if p not in self.staying]
        rest = {p: [j for j in self.neighbours[p] if j in self.staying] for p in gone}
        keys = {p: self._join(self._mask_keys, p, "mask key") for p in gone if rest[p]}
        for place, key in keys.items():
            if public_key(key) != self.keys[place].mask:
                raise BelowThresholdError(f"the shares of place {place} are not of its mask key")
        for seed in seeds.values():
            add_mask(self_mask_key(seed, self.exchange), self._total, subtract=True)
        for place, key in keys.items():
            for other in rest[place]:
                # `other` added the mask where the one who is gone comes behind it.
                shared = pair_mask_key(key, self.keys[other].mask, self.exchange)
                add_mask(shared, self._total, subtract=other < place)
        return self._total

    def _join(self, kept: dict[int, dict[int, bytes]], place: int, what: str) -> bytes:
        shares = kept.get(place, {})
        if len(shares) < self.threshold:
            raise BelowThresholdError(
                f"{len(shares)} shares of a {what} are there, {self.threshold} are needed"
            )
        try:
            return join_shares(shares, self.threshold)
        except ValueError:
            raise BelowThresholdError(f"the shares of a {what} are of none") from None

    def _check(self, there: Collection[int], what: str) -> None:
        """Require that everybody who is there has enough neighbours who are, too."""
        counts = [1 + sum(other in there for other in self.neighbours[place]) for place in there]
        if len(there) < self.least:
            raise BelowThresholdError(f"{what} of {len(there)} clients, {self.least} are needed")
        fewest = min(counts, default=0)
        if fewest < self.threshold:
            raise BelowThresholdError(
                f"{what} of {fewest} clients next to each other, {self.threshold} are needed"
            )
