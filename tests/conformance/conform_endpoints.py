"""Every endpoint of the API's description, asked once; and requests that a client library passes on unchecked."""

import io
import tarfile
from typing import Any

from conform_rig import GONE, IMAGE, LEFT, Row

from hivemesh.api.operations import OPERATIONS

JSON_SERVICE = {"Name": "t-1", "TaskTemplate": {"ContainerSpec": {"Image": IMAGE}},
                "Mode": {"Replicated": {"Replicas": 0}}}  # fmt: skip
MADE = ("docker service create -d --name t-1 --replicas 0 IMAGE",)
BOX = ("docker run -d --name t-1 --network front IMAGE",)
PAUSED = (*BOX, "docker pause t-1")
VOLUME = ("docker volume create t-1",)
NO_VOLUME = ("DELETE /volumes/t-1",)


def archive(name: str = "file", data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _of(template: str) -> str:
    method, path = template.split()
    found = [operation for operation in OPERATIONS if (operation.method, operation.path) == (method, path)]
    return found[0].tag if found else "beyond"


def ask(template: str, target: str = "", body: Any = None, **options: Any) -> Row:
    """An endpoint by its path in the description, and the path and body of one request to it."""
    method, path = template.split()
    return Row(group=_of(template), line=f"{method} {target or path}", body=body, template=template, **options)


ENDPOINTS = (
    ask("GET /_ping", says=("OK",)),
    ask("HEAD /_ping"),
    ask("GET /version", says=('"ApiVersion":"1.51"',)),
    ask("GET /info", says=('"LocalNodeState":"active"',)),
    ask("GET /events", "/events?until=1"),
    ask("GET /openapi.json", says=('"openapi":"3.1.0"',)),
    ask("GET /distribution/{name}/json", "/distribution/localhost/whoami/json",
        refused=("cannot ask the registry localhost",), status=503),
    ask("GET /hivemesh/drift", says=("Differences",)),
    ask("GET /hivemesh/flows", "/hivemesh/flows?for=0.5"),
    ask("GET /hivemesh/counts", "/hivemesh/counts?for=2", says=('"services"',)),
    ask("POST /hivemesh/trace", body={"target": ":1"}, refused=("no service publishes port 1/tcp",), status=404),
    ask("POST /hivemesh/doctor", body={}, says=("findings", "matrix")),
    ask("GET /hivemesh/topology", "/hivemesh/topology?detail=full", says=('"items"', '"vxlan0"')),
    ask("GET /system/df", says=("Volumes",)),
    ask("GET /plugins"),
    ask("POST /swarm/init", body={"AdvertiseAddr": "eth0", "ListenAddr": "0.0.0.0:2377"}, node="n3",
        effects={"/info Swarm.ControlAvailable": True}, after=LEFT),
    ask("POST /swarm/join", body={"RemoteAddrs": ["MANAGER"], "JoinToken": "TOKEN"}, node="n3",
        effects={"/info Swarm.LocalNodeState": "active"}, after=(*LEFT, "n1: DELETE /nodes/n3?force=1")),
    ask("POST /swarm/leave", "/swarm/leave?force=1", node="n3",
        before=("docker swarm init --advertise-addr eth0",), effects={"/info Swarm.LocalNodeState": "inactive"}),
    ask("GET /swarm", says=("JoinTokens",)),
    ask("POST /swarm/update", "/swarm/update?version=@/swarm", body={"Name": "default", "Labels": {"a": "b"}},
        effects={"/swarm Spec.Labels": {"a": "b"}}),
    ask("GET /swarm/unlockkey", says=("UnlockKey",)),
    ask("POST /swarm/unlock", body={"UnlockKey": "x"}, refused=("swarm is not locked",), status=409),
    ask("GET /hivemesh/swarm/snapshot"),
    ask("POST /hivemesh/swarm/snapshot", body=b"nothing", refused=("already part of a swarm",), status=503),
    ask("GET /nodes", says=("n1", "n2")),
    ask("GET /nodes/{ref}", "/nodes/n2", says=('"Role":"worker"',)),
    ask("DELETE /nodes/{ref}", "/nodes/n3?force=1", effects={"/nodes/n3": GONE},
        before=("n3: docker swarm join --token TOKEN MANAGER", "n3: POST /swarm/leave?force=1")),
    ask("POST /nodes/{ref}/update", "/nodes/NODE/update?version=@/nodes/n2",
        body={"Role": "worker", "Availability": "active", "Labels": {"a": "b"}},
        effects={"/nodes/n2 Spec.Labels": {"a": "b"}}),
    ask("GET /services", says=('"web"',)),
    ask("POST /services/create", body=JSON_SERVICE, effects={"/services/t-1 Spec.Mode.Replicated.Replicas": 0}),
    ask("GET /services/{ref}", "/services/web?insertDefaults=1", says=('"Order":"stop-first"',)),
    ask("POST /services/{ref}/update", "/services/t-1/update?version=@/services/t-1",
        body={**JSON_SERVICE, "Labels": {"a": "b"}}, before=MADE, effects={"/services/t-1 Spec.Labels": {"a": "b"}}),
    ask("DELETE /services/{ref}", "/services/t-1", before=MADE),
    ask("GET /services/{ref}/logs", "/services/web/logs?stdout=1&stderr=1"),
    ask("GET /tasks", says=('"Slot":1',)),
    ask("GET /tasks/{ref}", "/tasks/TASK", says=('"State":"running"',)),
    ask("GET /tasks/{ref}/logs", "/tasks/TASK/logs?stdout=1&stderr=1"),
    *(
        row
        for kind, kept in (("secret", "key"), ("config", "conf"))
        for row in (
            ask(f"GET /{kind}s", says=(kept,)),
            ask(f"POST /{kind}s/create", body={"Name": "t-1", "Data": "eA=="},
                effects={f"/{kind}s/t-1 Spec.Name": "t-1"}),
            ask(f"GET /{kind}s/{{ref}}", f"/{kind}s/{kept}", says=(kept,)),
            ask(f"POST /{kind}s/{{ref}}/update", f"/{kind}s/t-1/update?version=@/{kind}s/t-1",
                body={"Name": "t-1", "Labels": {"a": "b"}}, before=(f"docker {kind} create t-1 data.txt",),
                effects={f"/{kind}s/t-1 Spec.Labels": {"a": "b"}}),
            ask(f"DELETE /{kind}s/{{ref}}", f"/{kind}s/t-1", before=(f"docker {kind} create t-1 data.txt",)),
        )
    ),
    ask("GET /networks", says=("front", "ingress")),
    ask("GET /networks/{ref}", "/networks/front?verbose=1", says=('"Services"',)),
    ask("POST /networks/create", body={"Name": "t-1", "Driver": "overlay"}, says=('"Id"',),
        effects={"/networks/t-1 Scope": "swarm"}),
    ask("DELETE /networks/{ref}", "/networks/t-1", before=("docker network create -d overlay t-1",)),
    ask("POST /networks/{ref}/connect", "/networks/t-1/connect", body={"Container": "box"},
        before=("docker network create -d overlay --attachable t-1",), after=("docker network disconnect t-1 box",)),
    ask("POST /networks/{ref}/disconnect", "/networks/t-1/disconnect", body={"Container": "box"},
        before=("docker network create -d overlay --attachable t-1", "docker network connect t-1 box")),
    ask("POST /networks/prune", says=("NetworksDeleted",)),
    ask("GET /containers/json", says=("box",)),
    ask("POST /containers/create", "/containers/create?name=t-1",
        body={"Image": IMAGE, "HostConfig": {"NetworkMode": "front"}}, says=('"Id"',)),
    ask("GET /containers/{ref}/json", "/containers/box/json", says=('"front"',)),
    ask("GET /containers/{ref}/top", "/containers/box/top", says=("Processes",)),
    ask("GET /containers/{ref}/logs", "/containers/box/logs?stdout=1"),
    ask("GET /containers/{ref}/changes", "/containers/box/changes"),
    ask("GET /containers/{ref}/export", "/containers/box/export"),
    ask("GET /containers/{ref}/stats", "/containers/box/stats?stream=0", says=("memory_stats",)),
    ask("GET /containers/{ref}/archive", "/containers/box/archive?path=/etc/hosts", says=("hosts",)),
    ask("HEAD /containers/{ref}/archive", "/containers/box/archive?path=/etc/hosts"),
    ask("PUT /containers/{ref}/archive", "/containers/box/archive?path=/tmp", body=archive()),
    ask("POST /containers/{ref}/start", "/containers/t-1/start",
        before=("docker create --name t-1 --network front IMAGE",)),
    ask("POST /containers/{ref}/stop", "/containers/t-1/stop?t=1", before=BOX),
    ask("POST /containers/{ref}/restart", "/containers/t-1/restart?t=1", before=BOX),
    ask("POST /containers/{ref}/kill", "/containers/t-1/kill", before=BOX),
    ask("POST /containers/{ref}/pause", "/containers/t-1/pause", before=BOX, after=("docker unpause t-1",)),
    ask("POST /containers/{ref}/unpause", "/containers/t-1/unpause", before=PAUSED),
    ask("POST /containers/{ref}/wait", "/containers/t-1/wait", before=(*BOX, "docker kill t-1"), says=("StatusCode",)),
    ask("POST /containers/{ref}/resize", "/containers/t-1/resize?h=20&w=80",
        before=("docker run -dt --name t-1 --network front IMAGE",)),
    ask("POST /containers/{ref}/attach", "/containers/nosuch/attach", refused=("nosuch",), status=404),
    ask("POST /containers/{ref}/rename", "/containers/t-1/rename?name=u-1", before=BOX,
        after=("DELETE /containers/u-1?force=1",)),
    ask("POST /containers/{ref}/update", "/containers/t-1/update", body={"Memory": 1 << 27, "MemorySwap": 1 << 27},
        before=BOX),
    ask("POST /containers/{ref}/exec", "/containers/box/exec", body={"Cmd": ["true"]}, says=('"Id"',)),
    ask("DELETE /containers/{ref}", "/containers/t-1?force=1", before=BOX),
    ask("POST /containers/prune", says=("SpaceReclaimed",)),
    ask("POST /commit", "/commit?container=box&repo=localhost/t-1", body={}, says=("Id",),
        after=("docker rmi localhost/t-1",)),
    ask("POST /exec/{ref}/start", "/exec/nosuch/start", body={}, refused=("",), status=404),
    ask("POST /exec/{ref}/resize", "/exec/nosuch/resize?h=20&w=80", refused=("",), status=404),
    ask("GET /exec/{ref}/json", "/exec/nosuch/json", refused=("nosuch",), status=404),
    ask("GET /images/json", says=("whoami",)),
    ask("GET /images/{ref}/json", "/images/localhost/whoami/json", says=("whoami",)),
    ask("GET /images/{ref}/history", "/images/localhost/whoami/history"),
    ask("GET /images/{ref}/get", "/images/localhost/whoami/get"),
    ask("GET /images/get", "/images/get?names=localhost/whoami"),
    ask("GET /images/search", "/images/search?term=localhost:1/x", refused=("",)),
    ask("POST /images/create", "/images/create?fromSrc=-&repo=localhost/t-1", body=archive(),
        after=("docker rmi localhost/t-1",)),
    ask("POST /images/load", body=b"nothing", refused=("",)),
    ask("POST /images/{ref}/tag", "/images/localhost/whoami/tag?repo=localhost/t-1",
        after=("docker rmi localhost/t-1",)),
    ask("POST /images/{ref}/push", "/images/localhost:1/nosuch/push", refused=("",)),
    ask("POST /images/prune", "/images/prune?filters=%7B%22label%22:%5B%22nosuch%22%5D%7D"),
    ask("DELETE /images/{ref}", "/images/localhost/t-1", before=("docker tag IMAGE localhost/t-1",)),
    ask("POST /build", "/build?t=localhost/t-1", body=archive("Dockerfile", b"FROM localhost/whoami\nLABEL a=b\n"),
        says=("Successfully built",), after=("docker rmi localhost/t-1",)),
    ask("POST /auth", body={"username": "a", "password": "b", "serveraddress": "localhost:1"},
        refused=("cannot ask the registry localhost:1 who 'a' is",), status=503),
    ask("GET /volumes", says=("Volumes",)),
    ask("POST /volumes/create", body={"Name": "t-1"}, says=("t-1",), after=NO_VOLUME),
    ask("GET /volumes/{ref}", "/volumes/t-1", before=VOLUME, says=("t-1",), after=NO_VOLUME),
    ask("DELETE /volumes/{ref}", "/volumes/t-1", before=VOLUME),
    ask("POST /volumes/prune", says=("VolumesDeleted",)),
    ask("GET /containers/{ref}/attach/ws", "/containers/box/attach/ws", refused=("",), status=404),
    ask("GET /containers/{ref}/checkpoints", "/containers/box/checkpoints", refused=("",), status=404),
    ask("PUT /volumes/{ref}", "/volumes/nosuch", body={}, refused=("",)),
    ask("POST /session", refused=("",), status=404),
    ask("POST /build/prune", refused=("",), status=404),
    ask("GET /nosuch", refused=("page not found",), status=404),
)  # fmt: skip


def bad(what: str, template: str, body: Any, status: int, *words: str, target: str = "", node: str = "n1") -> Row:
    """A request that the command line would not have sent."""
    row = ask(template, target, body, refused=words or ("",), status=status, node=node)
    return Row(group=what, line=row.line, body=body, refused=row.refused, status=status, node=node, template=template)


def service(what: str, status: int, *words: str, **changes: Any) -> Row:
    """A service's specification with something wrong in it: changes to the container, or by `Template`, `Spec`."""
    container = {"Image": IMAGE, **changes.pop("Container", {})}
    template = {"ContainerSpec": container, **changes.pop("Template", {})}
    body = {"Name": "t-1", "TaskTemplate": template, **changes}
    return bad(what, "POST /services/create", body, status, *words)


HOST = {"TargetPort": 80, "PublishedPort": 8130, "PublishMode": "host"}
INGRESS = {"TargetPort": 80, "PublishedPort": 8130}
FILE = {"Name": "x", "UID": "0", "GID": "0", "Mode": 292}
REFUSALS = (
    bad("second swarm", "POST /swarm/init", {"ListenAddr": "0.0.0.0:2377"}, 503, "already part of a swarm"),
    bad("second swarm to join", "POST /swarm/join", {"RemoteAddrs": ["x"]}, 503, "already part of a swarm"),
    bad("the only manager leaves", "POST /swarm/leave", None, 503, "force"),
    bad("a node that is up is removed", "DELETE /nodes/{ref}", None, 400, "is not down", target="/nodes/n2"),
    service("service name with a space", 400, "a b", Name="a b"),
    service("service name of 64 characters", 400, "63", Name="w" * 64),
    service("service without image", 400, "image", Container={"Image": ""}),
    service("image that is no reference", 400, "UPPER CASE", Container={"Image": "UPPER CASE"}),
    service("two modes", 400, "only one service mode", Mode={"Global": {}, "Replicated": {"Replicas": 1}}),
    service("negative replicas", 400, "Replicas", Mode={"Replicated": {"Replicas": -1}}),
    service("too many replicas", 400, "10000", Mode={"Replicated": {"Replicas": 10001}}),
    service("MaxReplicas of a global service", 400, "MaxReplicas", Mode={"Global": {}},
            Template={"Placement": {"MaxReplicas": 1}}),
    service("job with an update config", 400, "Jobs may not have an update config", Mode={"ReplicatedJob": {}},
            UpdateConfig={"Parallelism": 2}),
    service("dnsrr with an ingress port", 400, "dnsrr", EndpointSpec={"Mode": "dnsrr", "Ports": [INGRESS]}),
    service("a published port twice", 400, "duplicate published ports", EndpointSpec={"Ports": [INGRESS, HOST]}),
    service("a published port of another service", 400, "8100", "web",
            EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 8100}]}),
    service("target port 0", 400, "target port 0", EndpointSpec={"Ports": [{"PublishedPort": 8130}]}),
    service("published port 70000", 400, "70000", EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 70000}]}),
    service("unknown protocol", 400, "Protocol", EndpointSpec={"Ports": [{**INGRESS, "Protocol": "icmp"}]}),
    service("unknown publish mode", 400, "PublishMode", EndpointSpec={"Ports": [{**INGRESS, "PublishMode": "both"}]}),
    service("unknown endpoint mode", 400, "Mode", EndpointSpec={"Mode": "anycast"}),
    service("constraint without operator", 400, "node.role", Template={"Placement": {"Constraints": ["node.role"]}}),
    service("constraint with an unknown operator", 400, "node.role~worker",
            Template={"Placement": {"Constraints": ["node.role~worker"]}}),
    service("spread over nothing known", 400, "color",
            Template={"Placement": {"Preferences": [{"Spread": {"SpreadDescriptor": "color"}}]}}),
    service("limit below 0.001 CPU", 400, "0.001", Template={"Resources": {"Limits": {"NanoCPUs": 10}}}),
    service("limit below 4 MiB", 400, "4MiB", Template={"Resources": {"Limits": {"MemoryBytes": 4096}}}),
    service("negative restart delay", 400, "delay", Template={"RestartPolicy": {"Delay": -1}}),
    service("unknown restart condition", 400, "Condition", Template={"RestartPolicy": {"Condition": "sometimes"}}),
    service("unknown failure action", 400, "FailureAction", UpdateConfig={"FailureAction": "cry"}),
    service("failure ratio above 1", 400, "ratio", UpdateConfig={"MaxFailureRatio": 1.5}),
    service("negative update delay", 400, "delay", UpdateConfig={"Delay": -1}),
    service("rollback of a rollback", 400, "RollbackConfig", RollbackConfig={"FailureAction": "rollback"}),
    service("mount without target", 400, "target", Container={"Mounts": [{"Type": "tmpfs"}]}),
    service("two mounts on one target", 400, "/a", Container={"Mounts": [{"Type": "tmpfs", "Target": "/a"}] * 2}),
    service("bind mount of a relative path", 400, "absolute",
            Container={"Mounts": [{"Type": "bind", "Source": "x", "Target": "/a"}]}),
    service("mount of an unknown type", 400, "Type", Container={"Mounts": [{"Type": "floppy", "Target": "/a"}]}),
    service("negative health retries", 400, "Retries", Container={"Healthcheck": {"Test": ["CMD", "x"],
        "Retries": -1}}),
    service("health interval of a microsecond", 400, "Interval",
            Container={"Healthcheck": {"Test": ["CMD", "x"], "Interval": 1000}}),
    service("secret that is not there", 400, "nosuch",
            Container={"Secrets": [{"SecretID": "nosuch", "SecretName": "nosuch", "File": FILE}]}),
    service("network that is not there", 404, "nosuch", Template={"Networks": [{"Target": "nosuch"}]}),
    service("the ingress network", 400, "ingress", Template={"Networks": [{"Target": "ingress"}]}),
    service("plugin runtime", 501, "plugin", Template={"Runtime": "plugin"}),
    service("capability that is none", 400, "CAP_FLY", Container={"CapabilityAdd": ["CAP_FLY"]}),
    service("environment without a name", 400, "=x", Container={"Env": ["=x"]}),
    service("nameserver that is no address", 400, "example", Container={"DNSConfig": {"Nameservers": ["example"]}}),
    service("field of the wrong type", 400, "Name", Name=7),
    bad("service name that is taken", "POST /services/create", {**JSON_SERVICE, "Name": "web"}, 409, "web",
        "already exists"),
    bad("service that is not there", "GET /services/{ref}", None, 404, "service nosuch not found",
        target="/services/nosuch"),
    bad("update without version", "POST /services/{ref}/update", JSON_SERVICE, 400, "version",
        target="/services/web/update"),
    bad("update of an old version", "POST /services/{ref}/update", {**JSON_SERVICE, "Name": "web"}, 500,
        "update out of sequence", target="/services/web/update?version=1"),
    bad("unknown rollback", "POST /services/{ref}/update", JSON_SERVICE, 400, "rollback",
        target="/services/web/update?version=1&rollback=twice"),
    bad("network name with a slash", "POST /networks/create", {"Name": "a/b", "Driver": "overlay"}, 400, "a/b"),
    bad("network without name", "POST /networks/create", {"Driver": "overlay"}, 400, "name"),
    bad("network with a bad subnet", "POST /networks/create",
        {"Name": "t-1", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.0.0.0/33"}]}}, 400, "10.0.0.0/33"),
    bad("gateway outside the subnet", "POST /networks/create",
        {"Name": "t-1", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.78.0.0/24", "Gateway": "10.79.0.1"}]}},
        400, "10.79.0.1"),
    bad("subnet of another network", "POST /networks/create",
        {"Name": "t-1", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.0.1.0/24"}]}}, 400, "10.0.1.0/24"),
    bad("attachable ingress network", "POST /networks/create",
        {"Name": "t-1", "Driver": "overlay", "Ingress": True, "Attachable": True}, 400, "ingress"),
    bad("predefined network name", "POST /networks/create", {"Name": "host", "Driver": "overlay"}, 403, "host"),
    bad("network in use", "DELETE /networks/{ref}", None, 400, "is in use", target="/networks/front"),
    bad("secret without data", "POST /secrets/create", {"Name": "t-1"}, 400, "data"),
    bad("secret above 500 KiB", "POST /secrets/create", {"Name": "t-1", "Data": "QUJD" * 171_000}, 400, "512000"),
    bad("secret data that is no base64", "POST /secrets/create", {"Name": "t-1", "Data": "*"}, 400, "base64"),
    bad("secret name with a slash", "POST /secrets/create", {"Name": "a/b", "Data": "eA=="}, 400, "invalid name"),
    bad("secret of another name at an update", "POST /secrets/{ref}/update", {"Name": "other"}, 400,
        "only updates to Labels are allowed", target="/secrets/KEY/update?version=@/secrets/key"),
    bad("secret in use", "DELETE /secrets/{ref}", None, 400, "is in use by the following service: web",
        target="/secrets/key"),
    bad("config above 1000 KiB", "POST /configs/create", {"Name": "t-1", "Data": "QUJD" * 342_000}, 400, "1024000"),
    bad("role that is none", "POST /nodes/{ref}/update", {"Role": "boss", "Availability": "active"}, 400, "Role",
        target="/nodes/NODE/update?version=1"),
    bad("availability that is none", "POST /nodes/{ref}/update", {"Role": "worker", "Availability": "asleep"}, 400,
        "Availability", target="/nodes/NODE/update?version=1"),
    bad("another name of the swarm", "POST /swarm/update", {"Name": "other"}, 400, "name",
        target="/swarm/update?version=@/swarm"),
    bad("unknown filter", "GET /services", None, 400, "invalid filter 'color'",
        target='/services?filters={"color":["x"]}'),
    bad("filters that are no JSON", "GET /tasks", None, 400, "invalid", target="/tasks?filters={"),
    bad("unknown desired state", "GET /tasks", None, 400, "Invalid desired-state filter",
        target='/tasks?filters={"desired-state":["x"]}'),
    bad("tasks of a service that is not there", "GET /tasks", None, 404, "nosuch",
        target='/tasks?filters={"service":["nosuch"]}'),
    bad("logs of neither stream", "GET /services/{ref}/logs", None, 400, "at least one of",
        target="/services/web/logs"),
    bad("no body", "POST /services/create", None, 400, "body"),
    bad("body that is no object", "POST /services/create", [], 400, "object"),
    bad("too old a version of the API", "GET /info", None, 400, "too old", target="/v1.23/info"),
    bad("too new a version of the API", "GET /info", None, 400, "too new", target="/v1.99/info"),
    bad("method that is none of the path's", "PUT /services", {}, 405, "method not allowed"),
    bad("services of a worker", "GET /services", None, 503, "Worker nodes can't be used", node="n2"),
    bad("services of a machine in no swarm", "GET /services", None, 503, 'Use "docker swarm init"', node="n3"),
)  # fmt: skip
