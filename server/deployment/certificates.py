"""A certificate authority of the deployment's own, and its server's certificate.

EC P-384 throughout. The extensions are those that OpenSSL's strict checks ask for (RFC 5280):
critical basic constraints and key usage, subject and authority key identifiers.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.deployment.plan import Plan

CA_DAYS = 3650
BACKDATED = timedelta(days=1)  # for hosts whose clocks are behind
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class Authority:
    """A CA: its certificate and the key that signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(days: int) -> Authority:
    """Make a CA, valid for ten years, or for as long as its server's certificates if longer."""
    key = ec.generate_private_key(ec.SECP384R1())
    serial = x509.random_serial_number()
    # Two CAs of a deployment may be trusted side by side while one follows the other.
    name = _name(f"fedmtl CA {datetime.now(UTC):%Y-%m-%d} {serial % 16**6:06x}")
    public = key.public_key()
    builder = _builder(name, name, public, serial, max(CA_DAYS, days))
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA384())
    )
    return Authority(certificate, key)


def make_server_certificate(
    authority: Authority, plan: Plan
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a certificate for all names and addresses of the server, and its key."""
    key = ec.generate_private_key(ec.SECP384R1())
    public, issuer = key.public_key(), authority.certificate
    names = [x509.DNSName(name) for name in plan.names]
    addresses = [x509.IPAddress(ipaddress.ip_address(ip)) for ip in plan.all_ips]
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(
        _name("fedmtl SuperLink"), issuer.subject, public, x509.random_serial_number(), plan.days
    )
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id),
            critical=False,
        )
        .sign(authority.key, hashes.SHA384())
    )
    return certificate, key


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a private key as PEM, without a passphrase: services start unattended."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def names_of(certificate: x509.Certificate) -> list[str]:
    """List the DNS names and IP addresses that a certificate is for."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    dns = extension.value.get_values_for_type(x509.DNSName)
    return dns + [str(ip) for ip in extension.value.get_values_for_type(x509.IPAddress)]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    serial: int,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "fedmtl"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in wanted for usage in USAGES})
