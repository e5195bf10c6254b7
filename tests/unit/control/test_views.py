"""Node views, derived at once and step by step."""

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemesh.control.packing import Packer, pieces
from hivemesh.control.views import Deriver, derive, difference
from hivemesh.model.addr import MAC, VNI
from hivemesh.model.cluster import Cluster, SwarmSpec
from hivemesh.model.ids import ClusterID, EndpointID, NetworkID, NodeID, PayloadID, ServiceID, TaskID
from hivemesh.model.network import MTU_OPTION, Network, NetworkSpec, Subnet
from hivemesh.model.node import Node, NodeDescription, NodeSpec
from hivemesh.model.secret import Config, Credential, PayloadSpec, Secret
from hivemesh.model.service import (
    VIP,
    Balance,
    ContainerSpec,
    EndpointSpec,
    FileTarget,
    NetworkAttachmentConfig,
    PortConfig,
    SecretReference,
    Service,
    ServiceSpec,
    TaskSpec,
)
from hivemesh.model.task import Attachment, Task, TaskState, TaskStatus
from hivemesh.store.tables import View as Store
from hivemesh.wire import codec
from hivemesh.wire.control import (
    Backend,
    Delta,
    EndpointItem,
    FromManager,
    NetworkItem,
    NodeItem,
    PayloadItem,
    PeerItem,
    PublishItem,
    SecretItem,
    ServiceItem,
    Snapshot,
    TaskItem,
    Welcome,
    key_of,
)

INGRESS, OTHER = NetworkID("ingress-id"), NetworkID("other-id")
RUNNING = TaskStatus(state=TaskState.RUNNING)


@dataclass
class FakeStore:
    """As much of a store's view as derivation reads."""

    objects: dict[type, dict[str, Any]] = field(
        default_factory=lambda: {
            kind: {} for kind in (Cluster, Network, Node, Service, Task, Secret, Config, Credential)
        }
    )
    revision: int = 1

    def all(self, kind: type) -> list[Any]:
        return list(self.objects[kind].values())

    @property
    def cluster(self) -> Cluster:
        found: Cluster = self.all(Cluster)[0]
        return found

    def put(self, *values: Any) -> "Store":
        for value in values:
            self.objects[type(value)][value.id] = value
        self.revision += 1
        return self.view

    def drop(self, kind: type, identifier: str) -> "Store":
        self.objects[kind].pop(identifier, None)
        self.revision += 1
        return self.view

    @property
    def view(self) -> Store:
        return self  # type: ignore[return-value]


def network(identifier: NetworkID, number: int, **options: str) -> Network:
    subnet = Subnet(prefix=ip_network(f"10.{number}.0.0/16"), gateway=ip_address(f"10.{number}.0.1"))
    spec = NetworkSpec(name=identifier, ingress=identifier == INGRESS, options=options)
    return Network(id=identifier, spec=spec, vni=VNI(4096 + number), subnets=(subnet,))


def attachment(net: NetworkID, number: int, owner: str) -> Attachment:
    first = 0 if net == INGRESS else 1
    addresses = (
        ip_interface(f"10.{first}.{number // 250}.{number % 250 + 2}/16"),
        ip_interface(f"fd00::{number + 2:x}/64"),
    )
    return Attachment(
        endpoint_id=EndpointID(f"{net}-{owner}"),
        network_id=net,
        addresses=addresses,
        mac=MAC(f"02:42:00:00:{number:04x}"),
    )


PORTS = tuple(PortConfig(target_port=80, published_port=port) for port in (8090, 8091))


def node(number: int, **fields: Any) -> Node:
    identifier = NodeID(f"n{number}")
    made = Node(
        id=identifier,
        spec=NodeSpec(),
        vtep=ip_address(f"198.51.100.{number}"),
        attachments=(attachment(INGRESS, 5000 + number, identifier),),
    )
    return msgspec.structs.replace(made, **fields)


def task(number: int, on: int | None, **fields: Any) -> Task:
    identifier = TaskID(f"t{number}")
    made = Task(
        id=identifier,
        service_id=ServiceID("web"),
        service_name="web",
        slot=number,
        spec=TaskSpec(),
        node_id=NodeID(f"n{on}") if on is not None else None,
        status=RUNNING,
        ports=PORTS,
        attachments=(attachment(INGRESS, number, identifier),),
    )
    return msgspec.structs.replace(made, **fields)


def service(*ports: int, name: str = "web", **labels: str) -> Service:
    configs = tuple(PortConfig(target_port=80, published_port=port) for port in ports)
    marked = {f"hivemesh.{key}": value for key, value in labels.items()}
    return Service(id=ServiceID(name), spec=ServiceSpec(name=name, labels=marked), ports=configs)


def named(name: str = "web", *, mode: str = "vip", aliases: tuple[str, ...] = (), **labels: str) -> Service:
    """A service on OTHER, which has a VIP unless its mode is dnsrr."""
    template = TaskSpec(networks=(NetworkAttachmentConfig(target=OTHER, aliases=aliases),))
    endpoint = EndpointSpec(mode="dnsrr" if mode == "dnsrr" else "vip")
    vip = VIP(network_id=OTHER, addresses=(ip_interface("10.1.9.9/16"), ip_interface("fd00::99/64")))
    spec = ServiceSpec(
        name=name,
        task_template=template,
        endpoint_spec=endpoint,
        labels={f"hivemesh.{key}": value for key, value in labels.items()},
    )
    return Service(id=ServiceID(name), spec=spec, vips=(vip,) if mode == "vip" else ())


def on_other(number: int, on: int, **fields: Any) -> Task:
    return task(number, on, **{"attachments": (attachment(OTHER, number, f"t{number}"),), **fields})


def container(number: int, on: int, name: str = "c1", *aliases: str) -> Task:
    """A plain container on OTHER."""
    return on_other(
        number,
        on,
        service_id=ServiceID(""),
        service_name="",
        container=name,
        spec=TaskSpec(networks=(NetworkAttachmentConfig(target=OTHER, aliases=aliases),)),
        status=TaskStatus(state=TaskState.RUNNING, container_id="0123456789abcdef" * 4),
    )


def weighted(number: int, weight: str) -> Node:
    return node(number, spec=NodeSpec(labels={"hivemesh.weight": weight}))


def the_service(made: FakeStore, node_id: str = "n1", name: str = "web") -> ServiceItem:
    item = derive(made.view, NodeID(node_id))[f"service/{OTHER}/{name}"]
    assert isinstance(item, ServiceItem)
    return item


def store(*values: Any) -> FakeStore:
    made = FakeStore()
    made.put(Cluster(id=ClusterID("c"), spec=SwarmSpec()), network(INGRESS, 0), network(OTHER, 1), *values)
    return made


def test_node_without_tasks_takes_part_in_ingress_only() -> None:
    view = derive(store(node(1), node(2)).view, NodeID("n1"))
    assert set(view) == {"node/n1", "node/n2", f"network/{INGRESS}", f"peer/{INGRESS}/{INGRESS}-n2"}
    own = view[f"network/{INGRESS}"]
    assert isinstance(own, NetworkItem)
    assert (own.port, own.vni, own.own) == (4789, 4096, attachment(INGRESS, 5001, "n1"))


def test_network_of_a_task_comes_and_goes_with_it() -> None:
    both = (attachment(INGRESS, 1, "t1"), attachment(OTHER, 1, "t1"))
    made = store(node(1), node(2), task(2, 2, attachments=(attachment(OTHER, 2, "t2"),)))
    made.put(network(OTHER, 1, **{MTU_OPTION: "1400"}))
    assert f"network/{OTHER}" not in derive(made.view, NodeID("n1"))
    view = derive(made.put(task(1, 1, attachments=both)), NodeID("n1"))
    joined, peer = view[f"network/{OTHER}"], view[f"peer/{OTHER}/{OTHER}-t2"]
    assert isinstance(joined, NetworkItem)
    assert isinstance(peer, PeerItem)
    assert joined.mtu == 1400
    assert (peer.vtep, peer.mac) == (ip_address("198.51.100.2"), "02:42:00:00:0002")
    assert f"peer/{OTHER}/{OTHER}-t1" not in view  # its own
    dead = task(1, 1, attachments=both, status=TaskStatus(state=TaskState.FAILED))
    view = derive(made.put(dead), NodeID("n1"))
    assert f"network/{OTHER}" not in view
    assert "task/t1" in view  # until the reaper takes it


def test_address_that_a_node_only_reserves_is_nobodys_peer() -> None:
    """A node has an interface of its own on ingress alone; on user networks its address leads nowhere."""
    second = node(2, attachments=(attachment(INGRESS, 5002, "n2"), attachment(OTHER, 5002, "n2")))
    made = store(node(1), second, task(1, 1, attachments=(attachment(OTHER, 1, "t1"),)))
    view = derive(made.view, NodeID("n1"))
    assert f"network/{OTHER}" in view
    assert {key for key in view if key.startswith("peer/")} == {f"peer/{INGRESS}/{INGRESS}-n2"}


def test_only_serving_tasks_are_backends_in_the_order_of_their_slots() -> None:
    made = store(
        node(1),
        service(8090, 8091),
        task(3, 1),
        task(1, 1),
        task(2, 1, desired=TaskState.SHUTDOWN),
        task(4, 1, status=TaskStatus(state=TaskState.STARTING)),
    )
    view = derive(made.view, NodeID("n1"))
    item = view["publish/tcp/8090"]
    assert isinstance(item, PublishItem)
    assert [backend.task for backend in item.backends] == ["t1", "t3"]
    assert item.backends[0].addresses == (ip_address("10.0.0.3"), ip_address("fd00::3"))
    assert "publish/tcp/8091" in view
    assert "publish/tcp/8090" not in derive(made.drop(Service, "web"), NodeID("n1"))


def test_port_published_after_a_task_was_made_does_not_lead_to_it() -> None:
    made = store(node(1), service(8090, 8091), task(1, 1, ports=PORTS[:1]), task(2, 1))
    view = derive(made.view, NodeID("n1"))
    assert {k: [b.task for b in i.backends] for k, i in view.items() if isinstance(i, PublishItem)} == {
        "publish/tcp/8090": ["t1", "t2"],
        "publish/tcp/8091": ["t2"],
    }


def test_restricted_port_is_told_to_each_node_as_far_as_it_is_open_there() -> None:
    edge = node(1, spec=NodeSpec(labels={"edge": "true"}))
    made = store(edge, node(2), node(3))
    made.put(service(8090, 8091, **{"publish.8090": "198.51.100.2,node.labels.edge==true"}), task(1, 1))
    deriver = Deriver()
    deriver.update(made.view)
    ports = {}
    for name in ("n1", "n2", "n3"):
        view = deriver.of(NodeID(name))
        assert view is not None
        ports[name] = view.publishes
    assert ports["n2"] is ports["n3"]
    found = {name: {i.port: i.addresses for i in group.values()} for name, group in ports.items()}  # type: ignore[union-attr]
    assert found == {
        "n1": {8090: None, 8091: None},
        "n2": (at := {8090: (ip_network("198.51.100.2/32"),), 8091: None}),
        "n3": at,
    }
    made.put(service(8090, 8091, **{"publish.8090": "node.labels.edge==true"}))
    assert "publish/tcp/8090" not in derive(made.view, NodeID("n2"))
    made.put(node(2, spec=NodeSpec(labels={"edge": "true"})))
    assert "publish/tcp/8090" in derive(made.view, NodeID("n2"))


def test_service_is_named_where_a_task_is_on_its_network() -> None:
    hostname = TaskSpec(container_spec=ContainerSpec(hostname="box-{{.Task.Slot}}-{{.Node.Hostname}}"))
    status = TaskStatus(state=TaskState.RUNNING, container_id="fedcba9876543210")
    two = node(2, description=NodeDescription(hostname="two"))
    made = store(node(1), two, node(3), named(aliases=("db",)), on_other(2, 2), on_other(3, 1, service_id="other"))
    made.put(on_other(1, 2, spec=hostname, status=status), on_other(4, 2, desired=TaskState.SHUTDOWN))
    assert the_service(made) == ServiceItem(
        network=OTHER,
        service=ServiceID("web"),
        name="web",
        aliases=("db",),
        vips=(ip_address("10.1.9.9"), ip_address("fd00::99")),
        backends=(
            Backend(
                task=TaskID("t1"),
                addresses=(ip_address("10.1.0.3"), ip_address("fd00::3")),
                names=("web.1.t1", "fedcba987654", "box-1-two"),
            ),
            Backend(task=TaskID("t2"), addresses=(ip_address("10.1.0.4"), ip_address("fd00::4")), names=("web.2.t2",)),
        ),
    )
    assert not [key for key in derive(made.view, NodeID("n3")) if key.startswith("service/")]


def test_dnsrr_service_has_backends_and_no_vip() -> None:
    switched = msgspec.structs.replace(named(mode="dnsrr"), vips=named().vips)  # which are not taken back yet
    item = the_service(store(node(1), switched, on_other(1, 1)))
    assert item.vips == ()
    assert [backend.task for backend in item.backends] == ["t1"]


def test_service_without_its_vip_yet_is_not_taken_for_dnsrr() -> None:
    waiting = msgspec.structs.replace(named(), vips=())
    view = derive(store(node(1), waiting, on_other(1, 1)).view, NodeID("n1"))
    assert f"service/{OTHER}/web" not in view


def test_task_that_is_not_on_the_network_yet_is_no_backend_there() -> None:
    made = store(node(1), named(), on_other(1, 1), task(2, 1))
    assert [backend.task for backend in the_service(made).backends] == ["t1"]


def test_labels_give_balance_and_weights_to_names_and_ports() -> None:
    both = (attachment(INGRESS, 1, "t1"), attachment(OTHER, 1, "t1"))
    web = named(lb="sh", balancer="ipvs")
    web = msgspec.structs.replace(web, ports=(PortConfig(target_port=80, published_port=8090),))
    made = store(weighted(1, "7"), weighted(2, "0"), web, task(1, 1, attachments=both), on_other(2, 2))
    item = the_service(made)
    assert item.balance == Balance(scheduler="source", engine="ipvs")
    assert [backend.weight for backend in item.backends] == [7, 0]
    port = derive(made.view, NodeID("n1"))["publish/tcp/8090"]
    assert isinstance(port, PublishItem)
    assert port.balance == item.balance
    assert [backend.weight for backend in port.backends] == [7]
    made.put(weighted(1, "never checked"))
    assert [backend.weight for backend in the_service(made).backends] == [1, 0]


def test_attached_container_is_an_endpoint_and_a_peer_and_nobodys_backend() -> None:
    spec = TaskSpec(
        networks=(NetworkAttachmentConfig(target=OTHER, aliases=("db", "c1")),),
        container_spec=ContainerSpec(hostname="box"),
    )
    made = store(node(1), node(2), named(), on_other(1, 1), msgspec.structs.replace(container(2, 2), spec=spec))
    view = derive(made.view, NodeID("n1"))
    assert view[f"endpoint/{OTHER}/{OTHER}-t2"] == EndpointItem(
        network=OTHER,
        endpoint=EndpointID(f"{OTHER}-t2"),
        names=("c1", "0123456789ab", "box", "db"),
        addresses=(ip_address("10.1.0.4"), ip_address("fd00::4")),
    )
    assert f"peer/{OTHER}/{OTHER}-t2" in view
    assert [backend.task for backend in the_service(made).backends] == ["t1"]
    made.drop(Task, "t1")
    assert f"endpoint/{OTHER}/{OTHER}-t2" not in derive(made.view, NodeID("n1"))
    assert f"service/{OTHER}/web" in derive(made.view, NodeID("n2"))  # the container asks, too


def test_nobody_is_led_to_what_runs_on_a_node_that_is_down() -> None:
    tasks = on_other(1, 1), on_other(2, 2), task(3, 1), task(4, 2), container(5, 2)
    made = store(node(1), node(2, state="down"), named(), service(8090), *tasks)
    published = derive(made.view, NodeID("n1"))["publish/tcp/8090"]
    assert isinstance(published, PublishItem)
    assert [backend.task for backend in published.backends] == ["t3"]
    made = store(node(1), node(2, state="down"), named(), *tasks)
    assert [backend.task for backend in the_service(made).backends] == ["t1"]
    assert f"endpoint/{OTHER}/{OTHER}-t5" not in derive(made.view, NodeID("n1"))
    assert f"peer/{OTHER}/{OTHER}-t2" in derive(made.view, NodeID("n1"))  # it may only be cut off from us
    made.put(node(2, state="ready"))
    assert [backend.task for backend in the_service(made).backends] == ["t1", "t2"]
    assert f"endpoint/{OTHER}/{OTHER}-t5" in derive(made.view, NodeID("n1"))


def test_names_of_a_network_that_did_not_change_are_the_same_objects_for_all() -> None:
    made, deriver = store(node(1), node(2), named(), on_other(1, 1), on_other(2, 2), container(3, 1)), Deriver()
    deriver.update(made.view)
    before = deriver.of(NodeID("n1"))
    deriver.update(made.put(task(4, 1, service_id="other"), node(3)))
    for view in (deriver.of(NodeID("n1")), deriver.of(NodeID("n2"))):
        assert before is not None
        assert view is not None
        assert view.services[OTHER] is before.services[OTHER]
        assert view.endpoints[OTHER] is before.endpoints[OTHER]


def test_released_marks_the_task_of_that_node() -> None:
    made = store(node(1), task(1, 1, desired=TaskState.SHUTDOWN), task(2, 1))
    view = derive(made.view, NodeID("n1"), {TaskID("t1")})
    assert [item.released for item in view.values() if isinstance(item, TaskItem)] == [True, False]


def test_moved_endpoint_is_changed_and_not_removed() -> None:
    made, deriver = store(node(1), node(2), node(3), task(1, 2)), Deriver()
    deriver.update(made.view)
    before = deriver.of(NodeID("n1"))
    deriver.update(made.put(task(1, 3)))
    after = deriver.of(NodeID("n1"))
    assert before is not None
    assert after is not None
    changed, removed = difference(before, after)
    assert [key_of(item) for item in changed] == [f"peer/{INGRESS}/{INGRESS}-t1"]
    assert removed == []


def test_unknown_node_has_no_view() -> None:
    deriver = Deriver()
    deriver.update(store(node(1)).view)
    assert deriver.of(NodeID("n9")) is None
    assert derive(store().view, NodeID("n9")) == {}


STATES = st.sampled_from([TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING, TaskState.FAILED])
DESIRED = st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN])
NETWORKS = st.sets(st.sampled_from([INGRESS, OTHER]))
PUT_TASK = st.tuples(st.just("task"), st.integers(1, 4), st.integers(1, 3), STATES, DESIRED, NETWORKS)
DROP = st.tuples(
    st.just("drop"), st.sampled_from([(Task, "t1"), (Task, "t5"), (Node, "n3"), (Service, "web"), (Network, OTHER)])
)
PUT = st.tuples(
    st.just("put"),
    st.sampled_from(
        [
            node(3),
            node(1, vtep=None),
            node(1),
            weighted(2, "5"),
            service(80),
            service(80, 81),
            named(),
            named(mode="dnsrr", lb="maglev"),
            named("db", aliases=("web",)),
            container(5, 1),
            container(5, 2, "c1", "db"),
            container(6, 1, "c2"),
            network(OTHER, 1),
            network(INGRESS, 0),
        ]
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(PUT_TASK, PUT_TASK, DROP, PUT), max_size=12),
    st.sets(st.sampled_from([TaskID("t1"), TaskID("t2")])),
)
def test_deltas_lead_where_a_snapshot_does(steps: list[Any], released: set[TaskID]) -> None:
    made, deriver = store(node(1), node(2)), Deriver()
    deriver.update(made.view)
    at = deriver.of(NodeID("n1"))
    assert at is not None
    kept = at.flat()
    for step in steps:
        match step:
            case ("task", number, on, state, desired, networks):
                ends = tuple(attachment(net, number, f"t{number}") for net in sorted(networks))
                made.put(task(number, on, status=TaskStatus(state=state), desired=desired, attachments=ends))
            case ("drop", (kind, identifier)):
                made.drop(kind, identifier)
            case ("put", value):
                made.put(value)
        deriver.update(made.view)
        after = deriver.of(NodeID("n1"), released)
        assert after is not None
        changed, removed = difference(at, after)
        kept.update((key_of(item), item) for item in changed)
        for key in removed:
            del kept[key]
        assert kept == after.flat() == derive(made.view, NodeID("n1"), released)
        at = after


def test_shared_items_are_packed_once_into_the_same_bytes() -> None:
    made, packer, deriver = store(node(1), node(2), service(8090), task(1, 1)), Packer(), Deriver()
    deriver.update(made.view)
    for name in ("n1", "n2", "n1"):
        view = deriver.of(NodeID(name))
        assert view is not None
        items = tuple(view.items())
        for frame in (
            Snapshot(revision=1, items=items),
            Delta(base=1, revision=2, changed=items, removed=("node/n9",)),
            Welcome(heartbeat=5.0, managers=()),
        ):
            assert packer.pack(frame) == codec.pack(frame)
            packed: object = codec.unpack(packer.pack(frame), FromManager)  # type: ignore[arg-type]
            assert packed == frame
    packer.forget()


def test_a_backend_that_leaves_is_one_delta_for_each_of_50_nodes() -> None:
    made = store(service(8090), *(node(n) for n in range(1, 51)), *(task(t, t % 50 + 1) for t in range(1000)))
    deriver = Deriver()
    deriver.update(made.view)
    nodes = [NodeID(f"n{n}") for n in range(1, 51)]
    views = {name: deriver.of(name) for name in nodes}
    for number in range(10):
        made.put(task(number, number % 50 + 1, desired=TaskState.SHUTDOWN))
        deriver.update(made.view)
        deltas = 0
        for name in nodes:
            before, after = views[name], deriver.of(name)
            assert before is not None
            assert after is not None
            deltas += bool(difference(before, after)[0])
            views[name] = after
        assert deltas == 50  # the backend left everywhere


def user_of(secret: str, identifier: str, node: str, state: TaskState = TaskState.RUNNING) -> Task:
    """A task that uses a secret."""
    reference = SecretReference(file=FileTarget(name="x"), secret_id=secret, secret_name="x")
    return Task(
        id=TaskID(identifier),
        service_id=ServiceID("s"),
        service_name="web",
        slot=1,
        spec=TaskSpec(container_spec=ContainerSpec(image="a", secrets=(reference,))),
        node_id=NodeID(node),
        status=TaskStatus(state=state),
    )


def test_secret_is_told_to_nodes_with_a_living_task_that_uses_it_and_to_no_other() -> None:
    store = FakeStore()
    secrets = [Secret(id=PayloadID(name), spec=PayloadSpec(name=name, data=b"word")) for name in ("used", "other")]
    cluster = Cluster(id=ClusterID("c"), spec=SwarmSpec())
    nodes = [Node(id=NodeID(name), spec=NodeSpec(), state="ready") for name in ("n1", "n2", "n3")]
    dead = user_of("used", "t2", "n2", TaskState.FAILED)
    store.put(cluster, *nodes, *secrets, user_of("used", "t1", "n1", TaskState.ASSIGNED), dead)
    deriver = Deriver()
    deriver.update(store.view)
    first = deriver.of(NodeID("n1"))
    assert first is not None
    assert list(first.payloads) == ["secret/used"]
    for node in ("n2", "n3"):
        view = deriver.of(NodeID(node))
        assert view is not None
        assert not view.payloads

    labels = msgspec.structs.replace(secrets[0].spec, labels={"a": "b"})
    store.put(msgspec.structs.replace(secrets[0], spec=labels))
    deriver.update(store.view)
    again = deriver.of(NodeID("n1"))
    assert again is not None
    assert difference(first, again) == ([], [])

    store.put(user_of("used", "t1", "n1", TaskState.COMPLETE))
    deriver.update(store.view)
    after = deriver.of(NodeID("n1"))
    assert after is not None
    assert difference(again, after)[1] == ["secret/used"]


def test_credential_of_a_registry_is_told_to_the_nodes_that_run_the_service_alone() -> None:
    store = FakeStore()
    task = user_of("used", "t1", "n1", TaskState.ASSIGNED)
    spec = PayloadSpec(name="web", data=b"first")
    known = Credential(id=PayloadID(task.service_id), spec=spec)
    nodes = [Node(id=NodeID(name), spec=NodeSpec(), state="ready") for name in ("n1", "n2")]
    store.put(Cluster(id=ClusterID("c"), spec=SwarmSpec()), *nodes, known, task)
    deriver = Deriver()
    for data in (b"first", b"second"):
        store.put(msgspec.structs.replace(known, spec=msgspec.structs.replace(spec, data=data)))
        deriver.update(store.view)
        here, elsewhere = deriver.of(NodeID("n1")), deriver.of(NodeID("n2"))
        assert here is not None
        assert elsewhere is not None
        assert [item.data for item in here.payloads.values() if isinstance(item, PayloadItem)] == [data]
        assert not elsewhere.payloads


def test_large_secrets_come_in_pieces_after_everything_else() -> None:
    items = tuple(SecretItem(id=PayloadID(str(n)), data=bytes(1000) * 1000) for n in range(9))
    node = NodeItem(id=NodeID("n1"), vtep=ip_address("198.51.100.11"))
    first, *further = pieces(Snapshot(revision=7, items=(*items, node)))
    assert first == Snapshot(revision=7, items=(node,))
    assert [frame.revision for frame in further if isinstance(frame, Delta) and frame.base == 7] == [7, 7, 7]
    assert [item for frame in further if isinstance(frame, Delta) for item in frame.changed] == list(items)
    assert pieces(Snapshot(revision=7, items=(*items[:4], node))) == [Snapshot(revision=7, items=(*items[:4], node))]


def test_payloads_do_not_show_their_data_in_logs() -> None:
    secret = Secret(id=PayloadID("i"), spec=PayloadSpec(name="n", data=b"hush"))
    assert "hush" not in repr((secret, SecretItem(id=PayloadID("i"), data=b"hush")))
