"""Names of images, as Docker understands them: `nginx` is `docker.io/library/nginx:latest`."""

import re
from dataclasses import dataclass

from hivemesh.model.errors import Invalid

DEFAULT_DOMAIN = "docker.io"
OFFICIAL = "library"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_FORM = re.compile(
    r"(?:(?P<domain>(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]+)?)/)?"
    rf"(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-f]{32,}))?"
)
LONGEST = 255
_ID = re.compile(r"(sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry."""

    domain: str  # of the registry, with a port if it is not 443
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def wanted(self) -> str:
        """What the registry is asked for: the digest if there is one."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.domain}/{self.path}{tag}{f'@{self.digest}' if self.digest else ''}"


def familiar(text: str) -> str:
    """As Docker's clients write a name into a service: short where Docker's own registry is meant, and with a tag.

    What is no name stays as it is, for somebody else to refuse; so does the id of an image.
    """
    try:
        found = parse(text)
    except Invalid:
        return text
    if _ID.fullmatch(text):
        return text
    tag = found.tag or ("" if found.digest else "latest")
    prefix = "" if found.domain == DEFAULT_DOMAIN else f"{found.domain}/"
    path = found.path.removeprefix(f"{OFFICIAL}/") if not prefix else found.path
    return f"{prefix}{path}{f':{tag}' if tag else ''}{f'@{found.digest}' if found.digest else ''}"


def registry_of(address: str) -> str:
    """The registry that a client means by a server's address, which may be empty or a URL. Raises `Invalid`."""
    domain = address.strip().partition("://")[2] or address.strip()
    domain = domain.partition("/")[0]
    if domain in ("", "index.docker.io", "registry-1.docker.io"):
        return DEFAULT_DOMAIN
    if not _FORM.fullmatch(f"{domain}/x"):
        raise Invalid(f"invalid registry {address!r}: expected a host name, with a port if it is not 443")
    return domain


def parse(text: str) -> Reference:
    """Raises `Invalid`."""
    first, slash, rest = text.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        path = text if slash else f"{OFFICIAL}/{text}"
        text = f"{DEFAULT_DOMAIN}/{path}"
    elif first == "index.docker.io":
        text = f"{DEFAULT_DOMAIN}/{rest}"
    found = _FORM.fullmatch(text)
    if found is None or not found["domain"] or len(found["path"]) > LONGEST:
        raise Invalid(f"invalid reference format: {text!r} is no name of an image")
    path = found["path"]
    if found["domain"] == DEFAULT_DOMAIN and "/" not in path:
        path = f"{OFFICIAL}/{path}"
    return Reference(found["domain"], path, found["tag"] or "", found["digest"] or "")
