"""Which registries may be spoken to without TLS: those Podman was told of and, as in Docker, those on this machine."""

import ipaddress
import logging
import os
import tomllib
from pathlib import Path

log = logging.getLogger("hivemesh.registry")

FILES = (Path("/etc/containers/registries.conf"), Path("/usr/share/containers/registries.conf"))
"""containers-registries.conf(5): the first that is there counts, then what lies in the directory beside it."""
DIRECTORY = Path("/etc/containers/registries.conf.d")


def is_insecure(domain: str) -> bool:
    """Whether plain HTTP, or a certificate nobody vouches for, is good enough for this registry (host[:port])."""
    return _is_local(domain) or domain in _configured()


def _is_local(domain: str) -> bool:
    host = domain.rpartition(":")[0] if ":" in domain and not domain.endswith("]") else domain
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _configured() -> set[str]:
    """Read anew each time, as Podman does."""
    chosen = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    main = Path(chosen) if chosen else next((path for path in FILES if path.exists()), FILES[0])
    found: set[str] = set()
    for path in (main, *(() if chosen else sorted(DIRECTORY.glob("*.conf")))):
        try:
            said = tomllib.loads(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.warning("cannot read %s: %s", path, error)
            continue
        for entry in said.get("registry", ()):
            if entry.get("insecure"):
                found.add(str(entry.get("location") or entry.get("prefix", "")).partition("/")[0])
    return found
