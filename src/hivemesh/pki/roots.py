"""One root after another: what another one must be like, and how those who know the old one come to trust it."""

from hivemesh.model.errors import Invalid
from hivemesh.pki.authority import Authority, issued_by, signing_key
from hivemesh.pki.certificate import certificates_in


def given_root(certificate: str, key: str, now: float) -> Authority:
    """A root that an administrator made (both PEM). Raises `Invalid` in words that say what it lacks."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    texts = certificates_in(certificate)
    if len(texts) != 1:
        raise Invalid(f"invalid root certificate: expected one certificate in PEM form, found {len(texts)}")
    try:
        root = x509.load_pem_x509_certificate(texts[0].encode())
        extensions = root.extensions
    except ValueError as error:
        raise Invalid(f"invalid root certificate: {error}") from None
    try:
        own = signing_key(key)
    except ValueError as error:
        raise Invalid(f"invalid key of the root certificate: {error}") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if own.public_key().public_bytes(*form) != root.public_key().public_bytes(*form):
        raise Invalid("invalid root certificate: the key is another one's")
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound as error:
        raise Invalid(f"invalid root certificate: it lacks the extension {error.oid._name}") from None
    if not constraints.ca:
        raise Invalid("invalid root certificate: it is no certificate authority's (CA:TRUE)")
    if constraints.path_length == 0:
        raise Invalid("invalid root certificate: with pathlen 0 it could never be replaced by another root")
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and not usage.key_cert_sign:
        raise Invalid("invalid root certificate: its key usage does not allow it to sign certificates")
    if root.subject != root.issuer:
        raise Invalid("invalid root certificate: it is an intermediate one; a root is signed by itself")
    try:
        root.verify_directly_issued_by(root)
    except Exception:  # the library's own kind, which it keeps in its inner modules, among others
        raise Invalid("invalid root certificate: it is not signed with its own key") from None
    ends = root.not_valid_after_utc.timestamp()
    if not root.not_valid_before_utc.timestamp() <= now < ends:
        raise Invalid("invalid root certificate: it is not valid now")
    return Authority(texts[0], key)


def linked(new: Authority, old: Authority) -> Authority:
    """`new`, with its name and key certified by `old` too: who trusts only `old` trusts what `new` signs."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    root, issuer = (x509.load_pem_x509_certificate(each.certificate.encode()) for each in (new, old))
    builder = (
        x509.CertificateBuilder()
        .subject_name(root.subject)
        .issuer_name(issuer.subject)
        .public_key(root.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc)
    )
    for extension in root.extensions:
        if extension.oid != x509.AuthorityKeyIdentifier.oid:
            builder = builder.add_extension(extension.value, extension.critical)
    builder = builder.add_extension(issued_by(issuer), critical=False)
    link = builder.sign(signing_key(old.key), hashes.SHA256())
    return Authority(new.certificate, new.key, link.public_bytes(Encoding.PEM).decode())
