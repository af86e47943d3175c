"""Shamir's secret sharing of 32-byte secrets, over the integers modulo a prime.

Shamir, "How to share a secret", 1979. Pycryptodome's, over GF(2^128), takes 0.1 s to split one
16-byte block among 100 and 0.2 s to join it; a round of 100 clients splits and joins 400 of them.
Integers of Python's own do that in milliseconds, and a set of holders needs its Lagrange
coefficients once for all secrets.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297  # the first one above every secret
SECRET_BYTES, SHARE_BYTES = 32, 33


def split_secret(secret: bytes, threshold: int, places: Sequence[int]) -> dict[int, bytes]:
    """Split a secret, so that `threshold` shares give it and fewer say nothing of it.

    Args:
        secret: 32 bytes.
        threshold: from 1 to the number of places.
        places: of the holders, each different and positive.

    Returns:
        Place -> share.

    Raises:
        ValueError: the secret has another length, or the threshold is out of range.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, got {len(secret)}")
    if not 1 <= threshold <= len(places):
        raise ValueError(f"threshold must be from 1 to {len(places)}, got {threshold}")
    polynomial = [int.from_bytes(secret, "big")]
    polynomial += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    shares = {}
    for place in places:
        value = 0
        for coefficient in reversed(polynomial):
            value = (value * place + coefficient) % PRIME
        shares[place] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def join_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Join shares, place -> share, of which the first `threshold` by place are used.

    Raises:
        ValueError: they are too few, or are shares of no secret.

    >>> shares = split_secret(bytes(32), 2, [1, 2, 3])
    >>> join_shares({1: shares[1], 3: shares[3]}, 2) == bytes(32)
    True
    """
    if len(shares) < threshold:
        raise ValueError(f"{threshold} shares are needed, got {len(shares)}")
    places = tuple(sorted(shares)[:threshold])
    value = 0
    for place, coefficient in zip(places, _coefficients(places), strict=True):
        value += int.from_bytes(shares[place], "big") * coefficient
    value %= PRIME
    if value >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("these are shares of no secret")
    return value.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)
def _coefficients(places: tuple[int, ...]) -> tuple[int, ...]:
    """Compute Lagrange's coefficients for the value at 0."""
    found = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(found)
