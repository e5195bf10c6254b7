"""The swarm's root: signs node certificates whose subject says who the node is and what it may do."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hivemesh.model.addr import Address
from hivemesh.model.errors import Invalid
from hivemesh.model.node import Role

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

CA_NAME = "swarm-ca"
CA_LIFETIME = 20 * 365 * 24 * 3600
"""Seconds. Docker: 20 years."""
NODE_LIFETIME = 2160 * 3600
"""Seconds. Docker: 90 days."""
BACKDATED = 3600
"""Seconds before now at which a certificate begins: clocks of nodes differ. Docker: one hour."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A root certificate and its key, both PEM. The key never leaves the managers' store.

    `link` is the same name and key certified by the root before it, sent along with what this one signs while there
    are nodes that trust only that one.
    """

    certificate: str
    key: str = field(repr=False)
    link: str = ""

    @classmethod
    def create(cls, now: float) -> "Authority":
        """A fresh ECDSA P-256 root, valid 20 years from `now` (unix seconds)."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CA_NAME)])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now - BACKDATED))
            .not_valid_after(_time(now + CA_LIFETIME))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        )

    def sign(
        self,
        request: str,
        *,
        node_id: str,
        cluster_id: str,
        role: Role,
        now: float,
        addresses: Sequence[Address] = (),
        lifetime: float = NODE_LIFETIME,
    ) -> str:
        """A node certificate (PEM, followed by the link if there is one) for the key of a certificate request (PEM).

        Nothing but the key is taken from the request: the manager decides subject and names. `lifetime` is in
        seconds. Raises `Invalid` when the request is malformed or not signed with its own key.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        public = _public_key(request)
        root = x509.load_pem_x509_certificate(self.certificate.encode())
        root_key = signing_key(self.key)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"swarm-{role}"),
                x509.NameAttribute(NameOID.COMMON_NAME, node_id),
            ]
        )
        names: list[x509.GeneralName] = [x509.DNSName(node_id), x509.DNSName(f"swarm-{role}")]
        names += [x509.IPAddress(ipaddress.ip_address(str(address))) for address in addresses]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now - BACKDATED))
            .not_valid_after(_time(now + lifetime))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(
                issued_by(root),
                critical=False,
            )
            .sign(root_key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode() + self.link


def signing_key(text: str) -> "ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey":
    """Raises `ValueError` for anything but an ECDSA or RSA key in PEM form that needs no password."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    try:
        key = serialization.load_pem_private_key(text.encode(), None)
    except TypeError:
        raise ValueError("it is encrypted") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("it is neither an ECDSA nor an RSA key")
    return key


def issued_by(root: "x509.Certificate") -> "x509.AuthorityKeyIdentifier":
    """What a certificate says of its issuer: the identifier that the issuer's own certificate has."""
    from cryptography import x509

    own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _public_key(request: str) -> "ec.EllipticCurvePublicKey":
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        trusted = parsed.is_signature_valid
    except Exception as error:
        raise Invalid("the certificate request is malformed: expected PEM of a PKCS #10 request") from error
    public = parsed.public_key()
    if not trusted or not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise Invalid("the certificate request is not signed with its own ECDSA P-256 key")
    return public


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
