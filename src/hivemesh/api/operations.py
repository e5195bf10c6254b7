"""Everything the API answers, as a table: what `/openapi.json` describes, what the fuzz test sends, and what the page
of compatibility lists. A test holds it against the routes.
"""

from dataclasses import dataclass
from typing import Any, Literal

from hivemesh.api import events, networks, nodes, services, system, tasks
from hivemesh.api.containers import Limits
from hivemesh.model.cluster import SwarmSpec
from hivemesh.model.node import NodeSpec
from hivemesh.model.secret import PayloadSpec
from hivemesh.model.service import ServiceSpec
from hivemesh.wire.doctor import Asked
from hivemesh.wire.engine.requests import NetworkCreate, SwarmInit, SwarmJoin
from hivemesh.wire.registryauth import RegistryAuth
from hivemesh.wire.trace import Question

Shape = Literal["nothing", "object", "list", "string", "text", "stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A parameter of the query; with `choices` it takes one of them."""

    name: str
    kind: Literal["boolean", "integer", "number", "string"]
    about: str
    choices: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method on one path. `filters` are the names that the query's `filters` may have."""

    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE"]
    path: str
    about: str
    tag: str
    status: int = 200
    shape: Shape = "nothing"
    body: type[Any] | None = None
    body_optional: bool = False
    query: tuple[Query, ...] = ()
    filters: tuple[str, ...] = ()
    engine: bool = False  # answered by the engine beside us

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names in the path's braces."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


VERSION = Query(name="version", kind="integer", about="Version.Index of the object, as last seen", required=True)
FORCE = Query(name="force", kind="boolean", about="even when it is in use")
FEED = (
    Query(name="node", kind="string", about="of this node alone, by name or id"),
    Query(name="for", kind="number", about="seconds after which it ends"),
)
LOGS = (
    Query(name="stdout", kind="boolean", about="what was written to standard output"),
    Query(name="stderr", kind="boolean", about="what was written to standard error; one of the two has to be given"),
    Query(name="follow", kind="boolean", about="go on with what is written from now on"),
    Query(name="since", kind="number", about="unix seconds"),
    Query(name="tail", kind="string", about="a number of lines of each task, or all"),
    Query(name="timestamps", kind="boolean", about="begin each line with its time"),
    Query(name="details", kind="boolean", about="begin each line with node, service and task"),
)

SYSTEM = (
    Operation(method="GET", path="/_ping", about="Is anybody there", tag="system", shape="text"),
    Operation(method="HEAD", path="/_ping", about="The same, in headers", tag="system"),
    Operation(method="GET", path="/version", about="Versions of the server and its API", tag="system", shape="object"),
    Operation(method="GET", path="/info", about="This machine and its swarm", tag="system", shape="object"),
    Operation(method="GET", path="/events", about="What changes, as it happens", tag="system", shape="stream",
              query=(Query(name="since", kind="number", about="unix seconds"),
                     Query(name="until", kind="number", about="unix seconds; the stream ends then")),
              filters=events.FILTERS),
    Operation(method="GET", path="/openapi.json", about="This description", tag="system", shape="object"),
    Operation(method="GET", path="/distribution/{name}/json", about="The digest of an image, as its registry knows it",
              tag="system", shape="object"),
    Operation(method="POST", path="/auth", about="Check credentials for a registry", tag="system", body=RegistryAuth,
              shape="object"),
    Operation(method="GET", path="/plugins", about="Plugins, of which there are none", tag="system", shape="list",
              filters=system.PLUGIN_FILTERS),
    Operation(method="GET", path="/hivemesh/drift", about="What this node's kernel lacks against the plan",
              tag="system", shape="object"),
    Operation(method="POST", path="/hivemesh/trace", about="The way of a packet, as planned and as the kernels have it",
              tag="system", shape="object", body=Question),
    Operation(method="GET", path="/hivemesh/flows", about="New connections as they begin, with the services' names",
              tag="system", shape="stream", query=FEED),
    Operation(method="GET", path="/hivemesh/counts", about="What nodes have counted of their traffic, each second",
              tag="system", shape="stream", query=FEED),
    Operation(method="GET", path="/hivemesh/topology", about="The swarm as a picture: boxes, lines, places",
              tag="system", shape="object", query=(Query(name="detail", kind="string", about="full or compact"),)),
    Operation(method="POST", path="/hivemesh/doctor", about="What is wrong with this machine and its swarm",
              tag="system", shape="object", body=Asked),
)  # fmt: skip

SWARM = (
    Operation(method="POST", path="/swarm/init", about="Make a swarm", tag="swarm", shape="string", body=SwarmInit),
    Operation(method="POST", path="/swarm/join", about="Enter a swarm", tag="swarm", body=SwarmJoin),
    Operation(method="POST", path="/swarm/leave", about="Leave the swarm", tag="swarm", query=(FORCE,)),
    Operation(method="GET", path="/swarm", about="The swarm's settings and join tokens", tag="swarm", shape="object"),
    Operation(method="POST", path="/swarm/update", about="Change the swarm's settings", tag="swarm", body=SwarmSpec,
              query=(VERSION, Query(name="rotateWorkerToken", kind="boolean", about="a new token for workers"),
                     Query(name="rotateManagerToken", kind="boolean", about="a new token for managers"),
                     Query(name="rotateManagerUnlockKey", kind="boolean", about="a new key for locked managers"))),
    Operation(method="GET", path="/swarm/unlockkey", about="The key that unlocks managers", tag="swarm",
              shape="object"),
    Operation(method="GET", path="/hivemesh/swarm/snapshot", about="All of the swarm's state in one file", tag="swarm",
              shape="stream"),
    Operation(method="POST", path="/hivemesh/swarm/snapshot", about="Begin again from such a file, the body",
              tag="swarm", shape="string",
              query=(Query(name="ListenAddr", kind="string", about="as at /swarm/init"),
                     Query(name="AdvertiseAddr", kind="string", about="as at /swarm/init"),
                     Query(name="DataPathAddr", kind="string", about="as at /swarm/init"))),
    Operation(method="POST", path="/swarm/unlock", about="Unlock this manager", tag="swarm"),
)  # fmt: skip

NODES = (
    Operation(method="GET", path="/nodes", about="The swarm's machines", tag="node", shape="list",
              filters=nodes.FILTERS),
    Operation(method="GET", path="/nodes/{ref}", about="One machine", tag="node", shape="object"),
    Operation(method="DELETE", path="/nodes/{ref}", about="Forget a machine", tag="node", query=(FORCE,)),
    Operation(method="POST", path="/nodes/{ref}/update", about="Change role, availability, labels", tag="node",
              body=NodeSpec, query=(VERSION,)),
)  # fmt: skip

SERVICES = (
    Operation(method="GET", path="/services", about="All services", tag="service", shape="list",
              query=(Query(name="status", kind="boolean", about="with numbers of tasks"),), filters=services.FILTERS),
    Operation(method="POST", path="/services/create", about="Make a service", tag="service", status=201,
              shape="object", body=ServiceSpec),
    Operation(method="GET", path="/services/{ref}", about="One service", tag="service", shape="object",
              query=(Query(name="insertDefaults", kind="boolean", about="with what was left to defaults"),)),
    Operation(method="POST", path="/services/{ref}/update", about="Change a service, or take a change back",
              tag="service", shape="object", body=ServiceSpec,
              query=(VERSION, Query(name="rollback", kind="string", about="to the specification before",
                                    choices=("previous", "none")),
                     Query(name="registryAuthFrom", kind="string", about="whose credentials stay",
                           choices=("spec", "previous-spec")))),
    Operation(method="DELETE", path="/services/{ref}", about="Remove a service", tag="service"),
    Operation(method="GET", path="/services/{ref}/logs", about="What its tasks wrote", tag="service", shape="stream",
              query=LOGS),
    Operation(method="GET", path="/tasks", about="All attempts to run services", tag="task", shape="list",
              filters=tasks.FILTERS),
    Operation(method="GET", path="/tasks/{ref}", about="One attempt", tag="task", shape="object"),
    Operation(method="GET", path="/tasks/{ref}/logs", about="What it wrote", tag="task", shape="stream", query=LOGS),
)  # fmt: skip


def _payloads(path: str, word: str, filters: tuple[str, ...]) -> tuple[Operation, ...]:
    return (
        Operation(method="GET", path=path, about=f"All {word}s", tag=word, shape="list", filters=filters),
        Operation(method="POST", path=f"{path}/create", about=f"Make a {word}", tag=word, status=201, shape="object",
                  body=PayloadSpec),
        Operation(method="GET", path=path + "/{ref}", about=f"One {word}", tag=word, shape="object"),
        Operation(method="POST", path=path + "/{ref}/update", about=f"Change the labels of a {word}", tag=word,
                  body=PayloadSpec, query=(VERSION,)),
        Operation(method="DELETE", path=path + "/{ref}", about=f"Remove a {word}", tag=word, status=204),
    )  # fmt: skip


PAYLOADS = (
    *_payloads("/secrets", "secret", ("id", "label", "name", "names")),
    *_payloads("/configs", "config", ("id", "label", "name")),
)

NETWORKS = (
    Operation(method="GET", path="/networks", about="Networks of the swarm and of this node", tag="network",
              shape="list", filters=networks.FILTERS),
    Operation(method="GET", path="/networks/{ref}", about="One network, and who is on it", tag="network",
              shape="object", query=(Query(name="verbose", kind="boolean", about="with all services and tasks on it"),
                                     Query(name="scope", kind="string", about="where to look",
                                           choices=("swarm", "local", "global")))),
    Operation(method="POST", path="/networks/create", about="Make a network", tag="network", status=201,
              shape="object", body=NetworkCreate),
    Operation(method="DELETE", path="/networks/{ref}", about="Remove a network", tag="network", status=204),
    Operation(method="POST", path="/networks/{ref}/connect", about="Put a container on a network", tag="network",
              body=dict),
    Operation(method="POST", path="/networks/{ref}/disconnect", about="Take a container off a network", tag="network",
              body=dict),
    Operation(method="POST", path="/networks/prune", about="Remove networks that nothing uses", tag="network",
              shape="object", filters=networks.PRUNE_FILTERS),
)  # fmt: skip


CONTAINERS = (
    Operation(method="POST", path="/containers/{ref}/update", about="Other limits", tag="container", shape="object",
              body=Limits, engine=True),
)  # fmt: skip


def _engines(tag: str, *lines: str) -> tuple[Operation, ...]:
    """Lines of method, path and what it does."""
    made = []
    for line in lines:
        method, path, about = line.split(maxsplit=2)
        made.append(Operation(method=method, path=path, about=about, tag=tag, shape="object", engine=True))  # type: ignore[arg-type]
    return tuple(made)


ENGINE = (
    *_engines(
        "container",
        "GET /containers/json List containers",
        "POST /containers/create Make a container",
        "GET /containers/{ref}/json One container",
        "GET /containers/{ref}/top Processes of a container",
        "GET /containers/{ref}/logs What a container wrote",
        "GET /containers/{ref}/changes Files that differ from the image",
        "GET /containers/{ref}/export A container's files as an archive",
        "GET /containers/{ref}/stats What a container uses",
        "GET /containers/{ref}/archive Files out of a container",
        "HEAD /containers/{ref}/archive About a file in a container",
        "PUT /containers/{ref}/archive Files into a container",
        "POST /containers/{ref}/start Start",
        "POST /containers/{ref}/stop Stop",
        "POST /containers/{ref}/restart Stop and start",
        "POST /containers/{ref}/kill Send a signal",
        "POST /containers/{ref}/pause Freeze",
        "POST /containers/{ref}/unpause Thaw",
        "POST /containers/{ref}/wait Wait for the end",
        "POST /containers/{ref}/resize Change the terminal's size",
        "POST /containers/{ref}/attach Streams of a container",
        "POST /containers/{ref}/rename Another name",
        "POST /containers/{ref}/exec Prepare a command in a container",
        "DELETE /containers/{ref} Remove a container",
        "POST /containers/prune Remove containers that have ended",
        "POST /commit An image out of a container",
        "POST /exec/{ref}/start Start a prepared command",
        "POST /exec/{ref}/resize Change its terminal's size",
        "GET /exec/{ref}/json About a command",
    ),
    *_engines(
        "image",
        "GET /images/json List images",
        "GET /images/{ref}/json One image",
        "GET /images/{ref}/history Layers of an image",
        "GET /images/{ref}/get An image as an archive",
        "GET /images/get Several images as an archive",
        "GET /images/search Look for images in a registry",
        "POST /images/create Pull or import an image",
        "POST /images/load Images out of an archive",
        "POST /images/{ref}/tag Another name for an image",
        "POST /images/{ref}/push Send an image to a registry",
        "POST /images/prune Remove images that nothing uses",
        "DELETE /images/{ref} Remove an image",
        "POST /build Build an image",
    ),
    *_engines(
        "volume",
        "GET /volumes List volumes",
        "POST /volumes/create Make a volume",
        "GET /volumes/{ref} One volume",
        "DELETE /volumes/{ref} Remove a volume",
        "POST /volumes/prune Remove volumes that nothing uses",
    ),
    *_engines("system", "GET /system/df What takes how much room"),
)

OPERATIONS = (*SYSTEM, *SWARM, *NODES, *SERVICES, *PAYLOADS, *NETWORKS, *CONTAINERS, *ENGINE)
