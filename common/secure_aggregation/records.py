"""The records of secure aggregation's messages, in both directions.

====== =================== ============================================== =======================
stage  message             server -> client                               client -> server
====== =================== ============================================== =======================
keys   query.keys          exchange                                       public keys
shares query.shares        place, neighbours' places and keys             sealed shares, commitments
mask   train or evaluate   trunk, places of all who dealt                 masked vectors
unmask query.unmask        places of all who stay, shares for this client shares of seeds and keys
====== =================== ============================================== =======================

Every message carries the round's instruction as well. None but the `mask` stage's is about data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from common.lazy_array import LazyArray
from common.secure_aggregation.client import Dealt, Uncovered
from common.secure_aggregation.keys import KEY_BYTES, PublicKeys, Words
from common.secure_aggregation.shamir import SHARE_BYTES
from common.wire import read_array

SECURE, MASKED = "secure", "masked"  # keys of a message's records
KEYS, SHARES, UNMASK = "query.keys", "query.shares", "query.unmask"  # message types
WORDS = {"update": np.dtype(np.uint32), "sums": np.dtype(np.uint64)}
COMMITMENT_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + 12 + 16  # with AES-GCM's nonce and tag


class MalformedRecordError(ValueError):
    """A record is not of the form that its stage has."""


def secure_of(content: RecordDict) -> Mapping[str, Any]:
    """Get the record of a stage.

    Raises:
        MalformedRecordError: there is none.
    """
    record = content.get(SECURE)
    if not isinstance(record, ConfigRecord):
        raise MalformedRecordError(f"the message has no record '{SECURE}'")
    return record


def pack_keys(keys: PublicKeys) -> ConfigRecord:
    """Pack a client's public keys."""
    return ConfigRecord({"keys": keys.to_bytes()})


def unpack_keys(record: Mapping[str, Any]) -> PublicKeys:
    """Unpack them.

    Raises:
        MalformedRecordError: they are none.
    """
    _require(record, {"keys": bytes})
    _require_sizes([record["keys"]], 2 * KEY_BYTES)
    return PublicKeys.from_bytes(record["keys"])


def pack_peers(exchange: str, place: int, peers: Mapping[int, PublicKeys]) -> ConfigRecord:
    """Pack what a client needs to deal shares out."""
    return ConfigRecord(
        {
            "exchange": exchange,
            "place": place,
            "peers": list(peers),
            "keys": [keys.to_bytes() for keys in peers.values()],
        }
    )


def unpack_peers(record: Mapping[str, Any]) -> tuple[int, dict[int, PublicKeys]]:
    """Unpack a client's place and its neighbours' keys.

    Raises:
        MalformedRecordError: they are none.
    """
    _require(record, {"exchange": str, "place": int, "peers": list, "keys": list})
    _require_sizes(record["keys"], 2 * KEY_BYTES)
    places = _places(record["peers"])
    _require_lengths(places, record["keys"])
    keys = [PublicKeys.from_bytes(content) for content in record["keys"]]
    return record["place"], dict(zip(places, keys, strict=True))


def pack_dealt(dealt: Dealt) -> ConfigRecord:
    """Pack what a client dealt out."""
    return ConfigRecord(
        {
            "peers": list(dealt.sealed),
            "sealed": list(dealt.sealed.values()),
            "holders": list(dealt.commitments),
            "seed-commitments": [seed for seed, _ in dealt.commitments.values()],
            "key-commitments": [key for _, key in dealt.commitments.values()],
        }
    )


def unpack_dealt(record: Mapping[str, Any]) -> Dealt:
    """Unpack it.

    Raises:
        MalformedRecordError: it is of another form.
    """
    names = ("peers", "sealed", "holders", "seed-commitments", "key-commitments")
    _require(record, dict.fromkeys(names, list))
    peers, holders = _places(record["peers"]), _places(record["holders"])
    seeds, keys = record["seed-commitments"], record["key-commitments"]
    _require_sizes(record["sealed"], SEALED_BYTES)
    _require_sizes([*seeds, *keys], COMMITMENT_BYTES)
    _require_lengths(peers, record["sealed"])
    _require_lengths(holders, seeds, keys)
    pairs = zip(seeds, keys, strict=True)
    return Dealt(
        dict(zip(peers, record["sealed"], strict=True)), dict(zip(holders, pairs, strict=True))
    )


def pack_staying(
    exchange: str, staying: Sequence[int], sealed: Mapping[int, bytes]
) -> ConfigRecord:
    """Pack who stays, and what a client's neighbours dealt to it."""
    return ConfigRecord(
        {
            "exchange": exchange,
            "staying": list(staying),
            "senders": list(sealed),
            "sealed": list(sealed.values()),
        }
    )


def unpack_staying(record: Mapping[str, Any]) -> tuple[list[int], dict[int, bytes]]:
    """Unpack it.

    Raises:
        MalformedRecordError: it is of another form.
    """
    _require(record, {"exchange": str, "staying": list, "senders": list, "sealed": list})
    senders = _places(record["senders"])
    _require_lengths(senders, record["sealed"])
    return _places(record["staying"]), dict(zip(senders, record["sealed"], strict=True))


def pack_uncovered(uncovered: Uncovered) -> ConfigRecord:
    """Pack what a client uncovers."""
    return ConfigRecord(
        {
            "seed-owners": list(uncovered.seeds),
            "seed-shares": list(uncovered.seeds.values()),
            "key-owners": list(uncovered.keys),
            "key-shares": list(uncovered.keys.values()),
            "tampered": list(uncovered.tampered),
        }
    )


def unpack_uncovered(record: Mapping[str, Any]) -> Uncovered:
    """Unpack it.

    Raises:
        MalformedRecordError: it is of another form.
    """
    names = ("seed-owners", "seed-shares", "key-owners", "key-shares", "tampered")
    _require(record, dict.fromkeys(names, list))
    seeds, keys = _places(record["seed-owners"]), _places(record["key-owners"])
    _require_sizes([*record["seed-shares"], *record["key-shares"]], SHARE_BYTES)
    _require_lengths(seeds, record["seed-shares"])
    _require_lengths(keys, record["key-shares"])
    return Uncovered(
        dict(zip(seeds, record["seed-shares"], strict=True)),
        dict(zip(keys, record["key-shares"], strict=True)),
        _places(record["tampered"]),
    )


def pack_masked(update: Words, sums: Words) -> ArrayRecord:
    """Pack masked vectors; they are not copied and must not change afterwards."""
    record = ArrayRecord()
    for name, words in (("update", update), ("sums", sums)):
        record[name] = LazyArray(words)
    return record


def unpack_masked(content: RecordDict, widths: Mapping[str, int]) -> list[Words]:
    """Read masked vectors.

    Args:
        content: of a reply.
        widths: "update" and "sums" -> how many words each has.

    Raises:
        MalformedRecordError: they are not these.
    """
    record = content.get(MASKED)
    if not isinstance(record, ArrayRecord) or record.keys() != WORDS.keys():
        raise MalformedRecordError("the reply does not hold exactly the masked vectors")
    words: list[Words] = []
    for name, dtype in WORDS.items():
        try:
            values = read_array(record[name])
        except ValueError:
            raise MalformedRecordError(f"masked {name} cannot be read as an array") from None
        if values.shape != (widths[name],) or values.dtype != dtype:
            raise MalformedRecordError(
                f"masked {name} is {values.dtype} {values.shape}, expected {dtype} "
                f"({widths[name]},)"
            )
        words.append(values)
    return words


def _require(record: Mapping[str, Any], types: Mapping[str, type]) -> None:
    if {name: type(value) for name, value in record.items()} != types:
        raise MalformedRecordError(f"the record must hold exactly {sorted(types)}")


def _require_sizes(contents: Sequence[Any], size: int) -> None:
    if any(not isinstance(content, bytes) or len(content) != size for content in contents):
        raise MalformedRecordError(f"keys, shares and commitments must have {size} bytes each")


def _require_lengths(places: Sequence[int], *others: Sequence[Any]) -> None:
    if any(len(other) != len(places) for other in others):
        raise MalformedRecordError("lists that belong together have different lengths")


def _places(values: Sequence[Any]) -> list[int]:
    if any(not isinstance(value, int) or value < 1 for value in values):
        raise MalformedRecordError("places must be positive whole numbers")
    if len(set(values)) != len(values):
        raise MalformedRecordError("a place occurs twice")
    return list(values)
