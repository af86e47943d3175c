"""A node's key pair, as `ssh-keygen -t ecdsa -b 384` makes one."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_node_key(name: str) -> tuple[bytes, bytes]:
    """Make a key pair for a node.

    Returns:
        The private key, which the node keeps, and the public one with the node's name for a
        comment, which the operator registers; both in OpenSSH's form.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public + f" {name}\n".encode()
