"""The cluster's own certificate authority: join tokens, node certificates, TLS settings.

`cryptography` costs 9 MiB of memory, and a worker needs it only for a moment when it joins or renews. So it is
imported inside the functions that sign and make keys, and `new_request` runs those in a short-lived child process.
"""

from hivemesh.pki.authority import BACKDATED, Authority
from hivemesh.pki.certificate import Peer, certificates_in, issuer_id, key_id, peer_of, validity
from hivemesh.pki.request import Request, make_request, new_request
from hivemesh.pki.roots import given_root, linked
from hivemesh.pki.tls import MANAGER_NAME, LiveContext, client_context, server_context, unverified_context
from hivemesh.pki.token import JoinToken, ca_digest, new_token, same_secret
from hivemesh.pki.unlock import new_unlock_key, reencrypted, unlock_bytes

__all__ = [
    "BACKDATED",
    "MANAGER_NAME",
    "Authority",
    "JoinToken",
    "LiveContext",
    "Peer",
    "Request",
    "ca_digest",
    "certificates_in",
    "client_context",
    "given_root",
    "issuer_id",
    "key_id",
    "linked",
    "make_request",
    "new_request",
    "new_token",
    "new_unlock_key",
    "peer_of",
    "reencrypted",
    "same_secret",
    "server_context",
    "unlock_bytes",
    "unverified_context",
    "validity",
]
