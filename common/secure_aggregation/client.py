"""A client's side of one exchange: keys, shares, mask, unmask; each stage once, in this order.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017
(Figure 4), with the neighbours of Bell et al., "Secure single-server aggregation with
(poly)logarithmic overhead", CCS 2020 (Algorithm 2). Masks are::

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)

over the neighbours j that shared; the server takes off PRG(b_i) of those who stayed, whose b_i it
joins from shares, and the s_ij of those who dropped out, whose private mask key it joins.

What holds against a server that follows the protocol and looks at all that it is sent, together
with fewer clients than the threshold: it learns the sum alone. Keys are not signed: a server that
hands out keys of its own making learns what it pleases.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.secure_aggregation.keys import (
    PublicKeys,
    TamperedError,
    Words,
    add_mask,
    agree_on_key,
    commit,
    derive_key,
    make_key,
    open_sealed,
    public_key,
    seal,
)
from common.secure_aggregation.shamir import SHARE_BYTES, split_secret

NEW, KEYS, SHARES, MASK, OVER = "new", "keys", "shares", "mask", "over"


class ExchangeError(Exception):
    """A client does not go on with an exchange; the message says why, in names and counts."""


@dataclass(frozen=True)
class Dealt:
    """What a client deals out.

    Attributes:
        sealed: neighbour's place -> shares of seed and key that this neighbour alone can read.
        commitments: place, its own too -> commitments to the share of the seed, and of the key.
    """

    sealed: Mapping[int, bytes]
    commitments: Mapping[int, tuple[bytes, bytes]]


@dataclass(frozen=True)
class Uncovered:
    """What a client uncovers at the end.

    Attributes:
        seeds: place of one who stayed -> the share of its seed.
        keys: place of one who dropped out -> the share of its mask key.
        tampered: places whose sealed shares were changed on their way.
    """

    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]
    tampered: Sequence[int] = ()


@dataclass
class ClientMachine:
    """One client in one exchange; what it knows must never leave it but by these methods.

    Attributes:
        exchange: names the exchange; bound into every key.
        stage: the last that was done.
        mask_key: private, agrees on masks.
        seal_key: private, agrees on what seals shares.
        seed: b_i, of its own mask.
        place: its own, from 1.
        threshold: how many of its neighbours, itself among them, must stay.
        least: how many clients must stay in all.
        peers: neighbour's place -> public keys.
        own_share: of its own seed.
        senders: neighbours with whom it shares masks.
    """

    exchange: str
    stage: str = NEW
    mask_key: bytes = field(default=b"", repr=False)
    seal_key: bytes = field(default=b"", repr=False)
    seed: bytes = field(default=b"", repr=False)
    place: int = 0
    threshold: int = 0
    least: int = 0
    peers: dict[int, PublicKeys] = field(default_factory=dict)
    own_share: bytes = field(default=b"", repr=False)
    senders: tuple[int, ...] = ()

    def advertise(self) -> PublicKeys:
        """Make keys."""
        self._enter(NEW, KEYS)
        self.mask_key, self.seal_key, self.seed = make_key(), make_key(), make_key()
        return PublicKeys(public_key(self.mask_key), public_key(self.seal_key))

    def deal(
        self, place: int, peers: Mapping[int, PublicKeys], threshold: int, least: int
    ) -> Dealt:
        """Split seed and mask key among the neighbours and itself.

        Args:
            place: its own.
            peers: neighbour's place -> keys.
            threshold: how many of its neighbours, itself among them, must stay: by the
                experiment's settings, not by the server's word.
            least: how many clients must stay in all, likewise.

        Raises:
            ExchangeError: the neighbours are too few, or two are the same.
        """
        self._enter(KEYS, SHARES)
        self._require(1 + len(peers), threshold, "neighbours, itself among them, have keys")
        known = {keys.to_bytes() for keys in peers.values()}
        mine = PublicKeys(public_key(self.mask_key), public_key(self.seal_key))
        if place in peers or len({*known, mine.to_bytes()}) != 1 + len(peers):
            raise ExchangeError("two clients have the same place or the same keys")
        self.place, self.peers, self.threshold, self.least = place, dict(peers), threshold, least
        holders = sorted({place, *peers})
        seeds = split_secret(self.seed, threshold, holders)
        keys = split_secret(self.mask_key, threshold, holders)
        self.own_share = seeds[place]
        sealed = {
            peer: seal(self._sealing(peer), seeds[peer] + keys[peer], self._about(place, peer))
            for peer in peers
        }
        return Dealt(sealed, {p: (commit(seeds[p]), commit(keys[p])) for p in holders})

    def cover(self, words: list[Words], dealers: Collection[int]) -> None:
        """Mask vectors, in place.

        Args:
            words: contiguous vectors of unsigned integers.
            dealers: places of all who dealt shares out.

        Raises:
            ExchangeError: too few of its neighbours did.
        """
        self._enter(SHARES, MASK)
        self.senders = tuple(peer for peer in sorted(self.peers) if peer in dealers)
        self._require(1 + len(self.senders), self.threshold, "neighbours dealt shares out")
        add_mask(self_mask_key(self.seed, self.exchange), words)
        for peer in self.senders:
            key = pair_mask_key(self.mask_key, self.peers[peer].mask, self.exchange)
            add_mask(key, words, subtract=peer < self.place)

    def uncover(self, staying: Collection[int], sealed: Mapping[int, bytes]) -> Uncovered:
        """Give the shares of seeds of those who stayed, and of keys of those who did not.

        Of no neighbour both can be got: the stage is over afterwards, whatever came of it.

        Args:
            staying: places of all whose masked vectors the server has.
            sealed: sender's place -> what it dealt to this client.

        Raises:
            ExchangeError: too few stayed, or this client is said to be gone.
        """
        self._enter(MASK, OVER)
        try:
            return self._uncover(staying, sealed)
        finally:
            self.mask_key = self.seal_key = self.seed = self.own_share = b""

    def _uncover(self, staying: Collection[int], sealed: Mapping[int, bytes]) -> Uncovered:
        there = [peer for peer in self.senders if peer in staying]
        if self.place not in staying:
            raise ExchangeError("the server counts this client as gone, which has sent its vector")
        self._require(1 + len(there), self.threshold, "neighbours stayed")
        self._require(len(set(staying)), self.least, "clients stayed")
        seeds, keys, tampered = {self.place: self.own_share}, {}, []
        for peer in self.senders:
            try:
                both = self._open(peer, sealed.get(peer, b""))
            except TamperedError:
                tampered.append(peer)
                continue
            if peer in staying:
                seeds[peer] = both[:SHARE_BYTES]
            else:
                keys[peer] = both[SHARE_BYTES:]
        return Uncovered(seeds, keys, tampered)

    def to_state(self) -> dict[str, Any]:
        """Write down as plain values, to go on in another process."""
        places = sorted(self.peers)
        return {
            "exchange": self.exchange,
            "stage": self.stage,
            "mask-key": self.mask_key,
            "seal-key": self.seal_key,
            "seed": self.seed,
            "place": self.place,
            "threshold": self.threshold,
            "least": self.least,
            "peers": places,
            "peer-keys": [self.peers[place].to_bytes() for place in places],
            "own-share": self.own_share,
            "senders": list(self.senders),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ClientMachine":
        """Go on from what `to_state` wrote."""
        keys = [PublicKeys.from_bytes(content) for content in state["peer-keys"]]
        return cls(
            exchange=state["exchange"],
            stage=state["stage"],
            mask_key=state["mask-key"],
            seal_key=state["seal-key"],
            seed=state["seed"],
            place=state["place"],
            threshold=state["threshold"],
            least=state["least"],
            peers=dict(zip(state["peers"], keys, strict=True)),
            own_share=state["own-share"],
            senders=tuple(state["senders"]),
        )

    def _enter(self, before: str, stage: str) -> None:
        if self.stage != before:
            raise ExchangeError(
                f"stage '{stage}' follows '{before}', this client is at '{self.stage}'"
            )
        self.stage = stage

    def _require(self, found: int, needed: int, what: str) -> None:
        if found < needed:
            raise ExchangeError(f"{found} {what}, {needed} are needed")

    def _sealing(self, peer: int) -> bytes:
        purpose = b"seal" + self.exchange.encode()
        return agree_on_key(self.seal_key, self.peers[peer].seal, purpose)

    def _about(self, sender: int, receiver: int) -> bytes:
        return f"{self.exchange}:{sender}:{receiver}".encode()

    def _open(self, peer: int, sealed: bytes) -> bytes:
        content = open_sealed(self._sealing(peer), sealed, self._about(peer, self.place))
        if len(content) != 2 * SHARE_BYTES:
            raise TamperedError("a sealed share has another length")
        return content


def self_mask_key(seed: bytes, exchange: str) -> bytes:
    """Derive what generates a client's own mask."""
    return derive_key(seed, b"own" + exchange.encode())


def pair_mask_key(private: bytes, public: bytes, exchange: str) -> bytes:
    """Derive what generates the mask of a pair."""
    return agree_on_key(private, public, b"pair" + exchange.encode())
