"""The cryptography of secure aggregation, all of it from the `cryptography` package.

X25519 for key agreement, HKDF-SHA256 for what is derived from it, AES-GCM to seal shares, AES-CTR
as the generator of masks. Every key names the exchange that it is for: no mask occurs twice.
"""

import os
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Words = NDArray[Any]  # contiguous, uint32 or uint64

KEY_BYTES, NONCE_BYTES, BLOCK_BYTES = 32, 12, 16
PIECE_BYTES = 2**18  # of a mask that is made at once: it stays in the cache


class TamperedError(Exception):
    """What was received is not what its author made. Names and places only."""


@dataclass(frozen=True)
class PublicKeys:
    """What a client tells of its keys, 32 bytes each.

    Attributes:
        mask: agrees with others on masks.
        seal: agrees with others on keys that seal shares.
    """

    mask: bytes
    seal: bytes

    def to_bytes(self) -> bytes:
        """Put both side by side."""
        return self.mask + self.seal

    @classmethod
    def from_bytes(cls, content: bytes) -> "PublicKeys":
        """Read what `to_bytes` wrote.

        Raises:
            TamperedError: it is not that.
        """
        if len(content) != 2 * KEY_BYTES:
            raise TamperedError(f"keys have {2 * KEY_BYTES} bytes, got {len(content)}")
        return cls(content[:KEY_BYTES], content[KEY_BYTES:])


def make_key() -> bytes:
    """Make a private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """Get the public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree_on_key(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Derive the key that two parties have in common, of one's private and the other's public.

    Raises:
        TamperedError: the public key is none.
    """
    try:
        mine = X25519PrivateKey.from_private_bytes(private)
        secret = mine.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise TamperedError("a public key is none") from None
    return derive_key(secret, purpose)


def derive_key(secret: bytes, purpose: bytes) -> bytes:
    """Derive a key for one purpose (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(secret)


def seal(key: bytes, content: bytes, about: bytes) -> bytes:
    """Encrypt, and authenticate with what it is about."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, about)


def open_sealed(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        TamperedError: it was changed, or is about something else.
    """
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
    except (InvalidTag, ValueError):
        raise TamperedError("a sealed share was changed on its way") from None


def commit(content: bytes) -> bytes:
    """Commit to something that nobody can guess, such as a share."""
    return sha256(content).digest()


def add_mask(key: bytes, words: list[Words], *, subtract: bool = False) -> None:
    """Add a mask to each of some vectors, or take it off again, in place and modulo their words.

    Args:
        key: 32 bytes; its AES-CTR stream is cut into the vectors' words, one after another.
        words: contiguous vectors of unsigned integers.
        subtract: whether the mask is taken off.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(BLOCK_BYTES))).encryptor()
    zeros = bytes(PIECE_BYTES)
    buffer = bytearray(PIECE_BYTES + BLOCK_BYTES)
    made = np.frombuffer(buffer, np.uint8)
    for vector in words:
        step = PIECE_BYTES // vector.itemsize
        for start in range(0, len(vector), step):
            piece = vector[start : start + step]
            stream.update_into(memoryview(zeros)[: piece.nbytes], buffer)
            mask = made[: piece.nbytes].view(piece.dtype)
            if subtract:
                piece -= mask
            else:
                piece += mask
