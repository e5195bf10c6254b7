"""Secrets and configs: named bytes that containers find as files. Docker's two kinds have one shape here; they differ
in who may read them back (nobody reads a secret), in how large they may be and in where they stand in a container.
"""

import posixpath

import msgspec

from hivemesh.model.ids import PayloadID
from hivemesh.model.service import ContainerSpec, FileTarget, Spec

SECRETS_DIRECTORY = "/run/secrets"
"""Where a secret stands whose target is relative (Docker)."""
GOLANG = "golang"
"""The one kind of templates there is (Docker)."""


class Templating(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """The data has placeholders, filled for each task."""

    name: str = ""
    options: dict[str, str] = {}


class PayloadSpec(Spec, frozen=True, kw_only=True):
    """What users give. Only labels may change afterwards."""

    name: str = ""
    labels: dict[str, str] = {}
    data: bytes = b""  # base64 in JSON
    templating: Templating | None = None

    def __repr__(self) -> str:
        """Without the data: this may end up in a log."""
        return f"PayloadSpec(name={self.name!r}, {len(self.data)} bytes)"


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """A secret or a config."""

    id: PayloadID
    spec: PayloadSpec
    version: int = 0
    created: float = 0.0
    updated: float = 0.0


class Secret(Payload, frozen=True, kw_only=True):
    """Its data is shown to nobody but the tasks that use it."""


class Config(Payload, frozen=True, kw_only=True):
    """Its data is shown to whoever may look at services."""


class Credential(Payload, frozen=True, kw_only=True):
    """What a registry wants to see before it gives a service's image (`id` is the service's): the client's
    `X-Registry-Auth`, as it came. Shown to nobody but the engines of the nodes that run the service.
    """

    previous: bytes = b""

    def __repr__(self) -> str:
        """Without either."""
        return f"Credential(id={self.id!r})"


def secret_path(target: FileTarget) -> str:
    """Where a secret stands in the container."""
    return posixpath.normpath(posixpath.join(SECRETS_DIRECTORY, target.name))


def config_path(target: FileTarget) -> str:
    """Where a config stands in the container."""
    return posixpath.normpath(posixpath.join("/", target.name))


def payloads_of(container: ContainerSpec) -> tuple[tuple[type[Payload], PayloadID], ...]:
    """Everything a container uses, each by its kind and id."""
    secrets = [(Secret, PayloadID(reference.secret_id)) for reference in container.secrets]
    configs = [(Config, PayloadID(reference.config_id)) for reference in container.configs]
    return tuple(dict.fromkeys([*secrets, *configs]))
