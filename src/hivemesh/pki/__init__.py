"""The cluster's own certificate authority: join tokens, node certificates, TLS settings.

`cryptography` costs 9 MiB of memory, and a worker needs it only for a moment when it joins or renews. So it is
imported inside the functions that sign and make keys, and `new_request` runs those in a short-lived child process.
"""

from hivemesh.pki.authority import BACKDATED, Authority
from hivemesh.pki.certificate import Peer, peer_of, validity
from hivemesh.pki.request import Request, make_request, new_request
from hivemesh.pki.tls import MANAGER_NAME, client_context, server_context, unverified_context
from hivemesh.pki.token import JoinToken, ca_digest, new_token, same_secret

__all__ = [
    "BACKDATED",
    "MANAGER_NAME",
    "Authority",
    "JoinToken",
    "Peer",
    "Request",
    "ca_digest",
    "client_context",
    "make_request",
    "new_request",
    "new_token",
    "peer_of",
    "same_secret",
    "server_context",
    "unverified_context",
    "validity",
]
