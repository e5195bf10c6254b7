"""A node's key and the certificate request for it. The key never leaves the node."""

import asyncio
import sys
from dataclasses import dataclass, field

from hivemesh.model.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Request:
    """A private key and a PKCS #10 request, both PEM."""

    key: str = field(repr=False)
    csr: str


def make_request() -> Request:
    """A fresh ECDSA P-256 key and its request, made in this process."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return Request(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        csr.public_bytes(serialization.Encoding.PEM).decode(),
    )


async def new_request() -> Request:
    """As `make_request`, in a child process: see the package's docstring. Raises `Unavailable` when that fails."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path[:] = {sys.path!r}; from hivemesh.pki.request import main; main()",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await child.communicate()
    except BaseException:
        if child.returncode is None:
            child.kill()
            await child.wait()
        raise
    key, separator, csr = out.decode().partition("\n\n")
    if child.returncode or not separator:
        last = (err.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"cannot make a key for this node: {last}")
    return Request(key + "\n", csr)


def main() -> None:
    """Print a key, an empty line and a request: the child's side of `new_request`."""
    request = make_request()
    sys.stdout.write(f"{request.key.rstrip()}\n\n{request.csr}")
