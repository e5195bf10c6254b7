"""A store in somebody else's etcd: `hivemeshd --store etcd://192.0.2.1:2379,192.0.2.2:2379/team-a`.

`etcds://` speaks TLS; `?ca=` is what to trust, `&cert=` and `&key=` how to show who we are. Every manager of a swarm is
started with the same. What is confidential is sealed before it gets there, like in any store.
"""

import ssl
from urllib.parse import parse_qs, unquote, urlsplit

from hivemesh.model.errors import Conflict, Invalid
from hivemesh.pki.seal import Seal
from hivemesh.store.etcd import ROOT, EtcdStore, wipe
from hivemesh.store.etcdapi import EtcdClient
from hivemesh.store.sealed import SealedStore

DEFAULT_PORT = 2379
FORM = "expected etcd://HOST:PORT[,HOST:PORT...][/PREFIX], or etcds:// with ?ca=FILE&cert=FILE&key=FILE"


def connect(url: str) -> tuple[EtcdClient, str]:
    """A client, and what our keys begin with. Raises `Invalid`."""
    endpoints, root, files = parse(url)
    return EtcdClient(endpoints, tls=_context(files) if endpoints[0].startswith("https") else None), root


def parse(url: str) -> tuple[list[str], str, dict[str, str]]:
    """Endpoints, the beginning of our keys, and files of TLS. Raises `Invalid`."""
    parts = urlsplit(url)
    scheme = {"etcd": "http", "etcds": "https"}.get(parts.scheme)
    hosts = [host for host in parts.netloc.split(",") if host]
    files = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if scheme is None or not hosts or parts.fragment or "@" in parts.netloc:
        raise Invalid(f"invalid --store {url!r}: {FORM}")
    for name in files:
        if name not in ("ca", "cert", "key") or scheme == "http":
            raise Invalid(f"invalid --store {url!r}: there is no {name} here; {FORM}")
    if ("cert" in files) != ("key" in files):
        raise Invalid(f"invalid --store {url!r}: a certificate needs its key, and a key its certificate")
    endpoints = [f"{scheme}://{host if _has_port(host) else f'{host}:{DEFAULT_PORT}'}" for host in hosts]
    prefix = unquote(parts.path.strip("/"))
    return endpoints, f"{prefix}/" if prefix else ROOT, files


def same(one: str, other: str) -> bool:
    """Whether two `--store` lead to the same keys of the same servers; each machine has files of its own for TLS."""
    if not one or not other:
        return one == other
    (ours, root, _), (theirs, other_root, _) = parse(one), parse(other)
    return (set(ours), root) == (set(theirs), other_root)


async def create(url: str, seal: Seal, after: int = 0) -> SealedStore:
    """An empty store there, with revisions above `after`. Raises `Conflict` when there is one already."""
    client, root = connect(url)
    try:
        if await EtcdStore.open(client, root) is not None:
            raise Conflict(
                f"the etcd at {url} already holds a swarm under {root!r}: join that one, or choose another prefix"
            )
        store = await EtcdStore.create(client, root, history=None, after=after)
        await store.finish()
        return SealedStore(store, seal)
    except BaseException:
        await client.close()
        raise


async def erase(url: str) -> None:
    """The swarm there has ended. Raises `Unavailable`."""
    client, root = connect(url)
    try:
        await wipe(client, root)
    finally:
        await client.close()


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdecimal() and not host.endswith("]")


def _context(files: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if "ca" in files:
            context = ssl.create_default_context(cafile=files["ca"])
        if "cert" in files:
            context.load_cert_chain(files["cert"], files["key"])
    except (OSError, ssl.SSLError) as error:
        raise Invalid(f"cannot use the files of --store ({', '.join(files.values())}): {error}") from error
    return context
