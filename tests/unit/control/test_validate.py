"""Bad input: refused with words that say what to do, and nothing changed."""

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest
from world import World, job, publish, spec

from hivemesh.control import networks, nodes, services
from hivemesh.model.container import (
    BindOptions,
    ImageOptions,
    LogDriver,
    Privileges,
    Seccomp,
    SELinuxContext,
    TmpfsOptions,
    Ulimit,
    VolumeOptions,
)
from hivemesh.model.errors import Conflict, Forbidden, HivemeshError, Invalid, NotFound, Unsupported
from hivemesh.model.network import MTU_OPTION, VNI_OPTION, IPAMConfig, NetworkSpec
from hivemesh.model.node import NodeSpec
from hivemesh.model.service import (
    DNSConfig,
    HealthConfig,
    Mount,
    NetworkAttachmentConfig,
    ResourceLimits,
    Resources,
    RestartPolicy,
    ServiceSpec,
    UpdateConfig,
)


def container(**fields: object) -> ServiceSpec:
    wanted = spec()
    template = wanted.task_template
    template = msgspec.structs.replace(
        template, container_spec=msgspec.structs.replace(template.container_spec, **fields)
    )
    return msgspec.structs.replace(wanted, task_template=template)


def joined(**fields: object) -> ServiceSpec:
    """A service on network front."""
    wanted = spec()
    attachment = msgspec.structs.replace(NetworkAttachmentConfig(target="front"), **fields)
    template = msgspec.structs.replace(wanted.task_template, networks=(attachment,))
    return msgspec.structs.replace(wanted, task_template=template)


def labelled(**labels: str) -> ServiceSpec:
    return msgspec.structs.replace(spec(), labels={f"hivemesh.{name}": value for name, value in labels.items()})


def dns(**fields: tuple[str, ...]) -> ServiceSpec:
    return container(dns_config=DNSConfig(**fields))


def healthy(**fields: object) -> ServiceSpec:
    return container(healthcheck=msgspec.structs.replace(HealthConfig(), **fields))


def mounted(**fields: Any) -> ServiceSpec:
    return container(mounts=(Mount(**({"target": "/x"} | fields)),))


def ulimited(name: str, soft: int, hard: int) -> ServiceSpec:
    return container(ulimits=(Ulimit(name=name, soft=soft, hard=hard),))


def confined(**fields: Any) -> ServiceSpec:
    return container(privileges=Privileges(**fields))


def of_tasks(**fields: Any) -> ServiceSpec:
    wanted = spec()
    return msgspec.structs.replace(wanted, task_template=msgspec.structs.replace(wanted.task_template, **fields))


def swapping(memory: int, **fields: Any) -> ServiceSpec:
    return of_tasks(resources=Resources(limits=ResourceLimits(memory_bytes=memory), **fields))


def logged(name: str, **options: str) -> ServiceSpec:
    given = {key.replace("_", "-"): value for key, value in options.items()}
    return of_tasks(log_driver=LogDriver(name=name, options=given))


def limited(**fields: int) -> ServiceSpec:
    wanted = spec()
    template = msgspec.structs.replace(wanted.task_template, resources=Resources(limits=ResourceLimits(**fields)))
    return msgspec.structs.replace(wanted, task_template=template)


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        (spec("-web"), Invalid, "invalid service name '-web': use letters"),
        (spec("a" * 64), Invalid, "at most 63"),
        (spec("web_"), Invalid, "invalid service name"),
        (spec("we b"), Invalid, "invalid service name"),
        (spec("web\n"), Invalid, "invalid service name"),
        (spec(replicas=-1), Invalid, "Replicas: -1 is out of range"),
        (spec(replicas=10_001), Invalid, "use 0 to 10000"),
        (spec(image=""), Invalid, "image reference must be provided"),
        (spec(image="who am i"), Invalid, "not a valid repository/tag"),
        (spec(ports=[publish(8090, 0)]), Invalid, "target port 0 is out of range"),
        (spec(ports=[publish(8090, 65536)]), Invalid, "target port 65536"),
        (spec(ports=[publish(-1)]), Invalid, "published port -1"),
        (spec(ports=[publish(70000)]), Invalid, "published port 70000"),
        (spec(ports=[publish(80), publish(80, 81)]), Invalid, "EndpointSpec: duplicate published ports provided"),
        (spec(ports=[publish(80), publish(80, mode="host")]), Invalid, "duplicate published ports"),
        (spec(ports=[publish(80)], mode="dnsrr"), Invalid, "port published with ingress mode can't be used with dnsrr"),
        (spec(networks=["nowhere"]), NotFound, "network nowhere not found"),
        (spec(networks=["host"]), Unsupported, "network host is not supported for services"),
        (spec(networks=["ingress"]), Invalid, "cannot be explicitly attached to the ingress network"),
        (spec(networks=["front", "front"]), Invalid, "network front is given twice"),
        (spec(constraints=["node.role"]), Invalid, "expected one operator from ==, !="),
        (spec(constraints=["no de==x"]), Invalid, "key 'no de' is invalid"),
        (spec(constraints=["node.id=="]), Invalid, "value '' is invalid"),
        (spec(max_replicas=-1), Invalid, "MaxReplicas cannot be negative"),
        (spec(restart=RestartPolicy(delay=-1)), Invalid, "restart-delay cannot be negative"),
        (spec(restart=RestartPolicy(max_attempts=-1)), Invalid, "restart-maxattempts cannot be negative"),
        (spec(update=UpdateConfig(parallelism=-1)), Invalid, "UpdateConfig: parallelism cannot be negative"),
        (spec(update=UpdateConfig(max_failure_ratio=2)), Invalid, "bigger than 1"),
        (job(update_config=UpdateConfig()), Invalid, "Jobs may not have an update config"),
        (job(3, -1), Invalid, "TotalCompletions: -1 is out of range"),
        (
            msgspec.structs.replace(spec(), rollback_config=UpdateConfig(failure_action="rollback")),
            Invalid,
            "a rollback that fails is not rolled back",
        ),
        (container(env=("=x",)), Invalid, "invalid environment variable '=x'"),
        (container(mounts=(Mount(target=""),)), Invalid, "mount target must be provided"),
        (container(mounts=(Mount(target="/a"), Mount(target="/a"))), Invalid, "duplicate mount point: /a"),
        (container(mounts=(Mount(type="bind", source="rel", target="/a"),)), Invalid, "absolute path"),
        (mounted(target="a"), Invalid, "'a' mount path must be absolute"),
        (mounted(target="//"), Invalid, "destination can't be '/'"),
        (container(mounts=(Mount(target="/a"), Mount(target="/b/../a/"))), Invalid, "duplicate mount point: /b/../a/"),
        (mounted(type="bind"), Invalid, 'mount config for type "bind": field Source must not be empty'),
        (mounted(type="tmpfs", source="x"), Invalid, "field Source must not be specified"),
        (mounted(type="tmpfs", bind_options=BindOptions(propagation="slave")), Invalid, "field BindOptions must not"),
        (mounted(type="tmpfs", tmpfs_options=TmpfsOptions(options=(("uid", "5"),))), Unsupported, "option uid=5 is"),
        (mounted(type="tmpfs", tmpfs_options=TmpfsOptions(size_bytes=-1)), Invalid, "size must not be negative"),
        (mounted(read_only=True), Invalid, "must not set ReadOnly mode when using anonymous volumes"),
        (mounted(source="a/b"), Invalid, "'a/b' is no name of a volume"),
        (mounted(source="{{.Task.Colour}}"), Invalid, "unknown placeholder"),
        (mounted(source="a", volume_options=VolumeOptions(subpath="../b")), Invalid, "must be a relative path within"),
        (mounted(volume_options=VolumeOptions(labels={"a": ""})), Unsupported, "without a name are not supported"),
        (
            mounted(type="bind", source="/a", bind_options=BindOptions(read_only_force_recursive=True)),
            Unsupported,
            "Mounts (/x): BindOptions.ReadOnlyForceRecursive is not supported",
        ),
        (mounted(type="image", source="a", image_options=ImageOptions(subpath="b")), Unsupported, "ImageOptions.Sub"),
        (container(dir="srv"), Invalid, "the working directory 'srv' is invalid"),
        (container(labels={"": "x"}), Invalid, "a label needs a name"),
        (container(stop_signal="SIGNONE"), Invalid, "unknown signal 'SIGNONE'"),
        (container(capability_add=("CAP_FLY",)), Invalid, "CapabilityAdd: unknown capability 'CAP_FLY'"),
        (container(groups=("a b",)), Invalid, "invalid group 'a b'"),
        (container(oom_score_adj=1001), Invalid, "range for oom score adj is [-1000, 1000]"),
        (ulimited("files", 1, 1), Invalid, "invalid ulimit type: files"),
        (ulimited("nofile", 2, 1), Invalid, "ulimit soft limit must be less than or equal to hard limit: 2 > 1"),
        (ulimited("nofile", -1, 1), Invalid, "ulimit soft limit must be less"),
        (ulimited("nofile", -2, -1), Invalid, "a limit is -1 (none) or more"),
        (container(ulimits=(Ulimit(name="core"), Ulimit(name="core"))), Invalid, "core is given twice"),
        (container(sysctls={"vm.swappiness": "1"}), Invalid, "vm.swappiness is no container's own"),
        (container(sysctls={"net.core.somaxconn": " "}), Invalid, "invalid setting net.core.somaxconn= "),
        (container(sysctls={"net/../kernel/panic": "1"}), Invalid, "invalid setting net/../kernel/panic=1"),
        (container(sysctls={"net.ipv4.vs.conntrack": "1"}), Unsupported, "the networks of tasks depend on it"),
        (container(sysctls={"net/ipv6/conf/all/disable_ipv6": "1"}), Unsupported, "disable_ipv6 is not supported"),
        (confined(seccomp=Seccomp(mode="custom")), Invalid, "a profile goes with mode custom"),
        (confined(seccomp=Seccomp(mode="unconfined", profile=b"{}")), Invalid, "and with no other"),
        (confined(seccomp=Seccomp(mode="custom", profile=b"[]")), Invalid, "the profile is no JSON object"),
        (confined(selinux_context=SELinuxContext(disable=True, user="u")), Invalid, "Disable excludes User"),
        (swapping(0, swap_bytes=1), Invalid, "SwapBytes needs a limit of memory"),
        (swapping(1 << 30, swap_bytes=-2), Invalid, "invalid SwapBytes -2"),
        (swapping(1 << 30, memory_swappiness=101), Invalid, "valid range is 0-100"),
        (logged("syslog"), Unsupported, "LogDriver syslog is not supported: use json-file, journald or none"),
        (logged("json-file", max_file="3"), Unsupported, "the option max-file=3 is not supported: use max-size"),
        (logged("", max_size="10q"), Invalid, "invalid max-size '10q'"),
        (logged("journald", labels="a"), Unsupported, "the option labels=a is not supported: use tag"),
        (container(hostname="a b"), Invalid, "invalid hostname 'a b'"),
        (container(hostname="-a"), Invalid, "invalid hostname"),
        (container(hostname="a" * 65), Invalid, "at most 64 characters"),
        (container(hostname="{{.Task.Nonsense}}"), Invalid, "unknown placeholder {{.Task.Nonsense}}"),
        (container(hosts=("web",)), Invalid, "invalid address in extra host 'web'"),
        (container(hosts=("10.0.0.1",)), Invalid, "expected an address and a name"),
        (container(hosts=("10.0.0.1 a\n10.0.0.2",)), Invalid, "invalid extra host"),
        (dns(nameservers=("one.one",)), Invalid, "invalid DNS server 'one.one': expected an IPv4 or IPv6 address"),
        (dns(search=("a b",)), Invalid, "invalid DNS search domain 'a b'"),
        (dns(search=("a\n",)), Invalid, "invalid DNS search domain"),
        (dns(options=("ndots:1 rotate",)), Invalid, "invalid DNS option 'ndots:1 rotate': expected one word"),
        (dns(options=("",)), Invalid, "invalid DNS option ''"),
        (healthy(test=("EXEC", "true")), Invalid, "Unknown healthcheck type 'EXEC': use NONE, CMD, CMD-SHELL"),
        (healthy(test=("CMD",)), Invalid, "a healthcheck of type CMD needs a command"),
        (healthy(interval=999_999), Invalid, "Interval in HealthConfig cannot be less than 1ms"),
        (healthy(timeout=-1), Invalid, "Timeout in HealthConfig cannot be less than 1ms"),
        (healthy(start_period=1), Invalid, "StartPeriod in HealthConfig cannot be less than 1ms"),
        (healthy(start_interval=1), Invalid, "StartInterval in HealthConfig cannot be less than 1ms"),
        (healthy(retries=-1), Invalid, "Retries in HealthConfig cannot be negative"),
        (joined(aliases=("d b",)), Invalid, "invalid alias of network front 'd b': not a host name"),
        (joined(aliases=("",)), Invalid, "invalid alias of network front ''"),
        (joined(aliases=("db-",)), Invalid, "not a host name"),
        (joined(aliases=("a..b",)), Invalid, "not a host name"),
        (joined(aliases=("a" * 64,)), Invalid, "at most 63 characters"),
        (joined(aliases=(".".join(["a" * 60] * 5),)), Invalid, "not a host name"),
        (joined(driver_opts={"x": "y"}), Unsupported, "driver option 'x' of a service is not supported"),
        (labelled(lb="fastest"), Invalid, "invalid label hivemesh.lb=fastest"),
        (labelled(balancer="haproxy"), Invalid, "use nftables or ipvs"),
        (labelled(weight="2"), Invalid, "invalid label hivemesh.weight: of the labels hivemesh.* only hivemesh.lb"),
        (limited(nano_cpus=1000), Invalid, "invalid cpu value 1e-06: Must be at least 0.001"),
        (limited(memory_bytes=1024), Invalid, "Must be at least 4MiB"),
    ],
)
def test_a_bad_service_is_refused_and_nothing_changes(
    wanted: ServiceSpec, error: type[HivemeshError], words: str
) -> None:
    world = World(1)
    world.create_network("front")
    revision = world.view.revision
    with pytest.raises(error) as caught:
        world.create(wanted)
    assert words in str(caught.value)
    assert world.view.revision == revision
    assert not world.tasks()


def test_what_containers_may_be_told_of_names_and_health_is_accepted() -> None:
    world = World(1)
    world.create_network("front")
    accepted = container(
        hostname="{{.Service.Name}}-{{.Task.Slot}}",
        hosts=("fd00::1 gate gate.example",),
        dns_config=DNSConfig(nameservers=("10.0.0.1", "fd00::53"), search=("example.com.", "."), options=("ndots:2",)),
        healthcheck=HealthConfig(test=("CMD-SHELL", "curl -f http://localhost"), interval=1_000_000, retries=3),
    )
    world.create(accepted)
    service = world.create(msgspec.structs.replace(joined(aliases=("db", "_x.y-1", "db")), name="named"))
    assert service.spec.task_template.networks[0].aliases == ("db", "_x.y-1")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"hivemesh.weight": "many"}, "invalid label hivemesh.weight=many: use a number from 0 to 100"),
        ({"hivemesh.lb": "rr"}, "invalid label hivemesh.lb: of the labels hivemesh"),
    ],
)
def test_bad_label_of_a_node_is_refused(labels: dict[str, str], words: str) -> None:
    world = World(1)
    node = world.node("n1")
    wanted = msgspec.structs.replace(node.spec, labels=labels)
    with pytest.raises(Invalid, match=words):
        world.change(lambda tx: nodes.update(tx, "n1", node.version, wanted, world.now))
    world.change(lambda tx: nodes.update(tx, "n1", node.version, msgspec.structs.replace(wanted, labels={}), world.now))


def test_a_name_taken_is_a_conflict() -> None:
    world = World(1)
    world.create(spec())
    with pytest.raises(Conflict, match="name conflicts with an existing object: service web already exists"):
        world.create(spec())


def test_a_service_without_a_name_gets_one() -> None:
    world = World(1)
    names = {world.create(spec("")).spec.name for _ in range(20)}
    assert len(names) == 20


def test_renaming_is_refused() -> None:
    world = World(1)
    world.create(spec())
    with pytest.raises(Unsupported, match="renaming services is not supported"):
        world.update("web", spec("other"))


def test_a_port_of_another_service_is_refused_with_its_name() -> None:
    world = World(2)
    first = world.create(spec("first", ports=[publish(8090), publish(0, 81)]))
    hosted = world.create(spec("hosted", ports=[publish(9000, mode="host")]))
    for port, words in (
        (publish(8090), f"port '8090' is already in use by service 'first' ({first.id}) as an ingress port"),
        (publish(30000), f"port '30000' is already in use by service 'first' ({first.id}) as an ingress port"),
        (publish(8090, mode="host"), "as an ingress port"),
        (publish(9000), f"'9000' is already in use by service 'hosted' ({hosted.id}) as a host-published port"),
    ):
        with pytest.raises(Invalid) as caught:
            world.create(spec("second", ports=[port]))
        assert words in str(caught.value)
    world.create(spec("udp", ports=[publish(8090, protocol="udp")]))
    world.create(spec("also-hosted", ports=[publish(9000, mode="host")]))
    world.update("first", spec("first", 2, ports=[publish(8090), publish(0, 81)]))
    with pytest.raises(Invalid, match="9000"):
        world.update("first", spec("first", ports=[publish(9000)]))


def test_publishing_without_an_ingress_network_says_how_to_make_one() -> None:
    world = World(1)
    world.change(lambda tx: networks.remove(tx, "ingress"))
    with pytest.raises(Invalid, match=r"no ingress network is present.*network create"):
        world.create(spec(ports=[publish(8090)]))


def aside(address: str, gateway: str = "") -> IPAMConfig:
    return IPAMConfig(subnet="10.9.0.0/24", gateway=gateway, auxiliary_addresses={"router": address})


def network(name: str = "net", *ipam: IPAMConfig, **fields: object) -> NetworkSpec:
    return msgspec.structs.replace(NetworkSpec(name=name, ipam=ipam), **fields)


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        (network(""), Invalid, "network name must be provided"),
        (network("-"), Invalid, "invalid network name '-'"),
        (network("host"), Forbidden, "host is a pre-defined network and cannot be created"),
        (network("front"), Conflict, "network with name front already exists"),
        (network(driver="ipvlan"), Unsupported, "network driver 'ipvlan' is not supported"),
        (network("net", IPAMConfig(subnet="10.0.0.0")), Invalid, "10.0.0.0/32: too small"),
        (network("net", IPAMConfig(subnet="10.9.0.1/24")), Invalid, "expected a prefix"),
        (network("net", IPAMConfig(subnet="what")), Invalid, "invalid subnet 'what'"),
        (network("net", IPAMConfig(subnet="10.9.0.0/30")), Invalid, "too small, use /29 or larger"),
        (network("net", IPAMConfig(subnet="127.0.0.0/16")), Invalid, "not a range for hosts, because of 127.0.0.0/8"),
        (network("net", IPAMConfig(subnet="0.0.0.0/0")), Invalid, "not a range for hosts"),
        (network("net", IPAMConfig(subnet="240.1.0.0/16")), Invalid, "not a range for hosts"),
        (network("net", IPAMConfig(subnet="ff02::/64")), Invalid, "not a range for hosts"),
        (network("net", IPAMConfig(subnet="::/64")), Invalid, "not a range for hosts"),
        (network("net", IPAMConfig(subnet="fd00::/121")), Invalid, "too small, use /120 or larger"),
        (network("net", IPAMConfig(subnet="fd00::1/64")), Invalid, "expected a prefix"),
        (network("net", IPAMConfig(subnet="fd00:1::/64", gateway="fd00:2::1")), Invalid, "invalid gateway fd00:2::1"),
        (network("net", IPAMConfig(subnet="fd00:1::/64", gateway="10.0.0.1")), Invalid, "invalid gateway 10.0.0.1"),
        (network("net", IPAMConfig(subnet="10.0.0.0/16")), Invalid, "overlaps with other one on this address space"),
        (
            network("net", IPAMConfig(subnet="198.51.100.0/24")),
            Invalid,
            "it contains 198.51.100.11, the address of a node",
        ),
        (network("net", IPAMConfig(subnet="10.9.0.0/24", gateway="10.8.0.1")), Invalid, "invalid gateway 10.8.0.1"),
        (network("net", IPAMConfig(subnet="10.9.0.0/24", gateway="10.9.0.255")), Invalid, "invalid gateway"),
        (network("net", IPAMConfig(subnet="10.9.0.0/24", gateway="x")), Invalid, "invalid gateway 'x'"),
        (network("net", IPAMConfig(subnet="10.9.0.0/24", ip_range="10.8.0.0/25")), Invalid, "invalid IP range"),
        (network("net", IPAMConfig(auxiliary_addresses={"a": "10.9.0.5"})), Invalid, "needs its subnet"),
        (network("net", aside("10.8.0.5")), Invalid, "invalid auxiliary address 10.8.0.5: it is not a host address"),
        (network("net", aside("10.9.0.9", gateway="10.9.0.9")), Invalid, "it is the gateway"),
        (network("net", IPAMConfig(subnet="10.9.0.0/24", ip_range="10.8.0.0/15")), Invalid, "invalid IP range"),
        (network("net", IPAMConfig(gateway="10.9.0.1")), Invalid, "needs its subnet"),
        (
            network("net", IPAMConfig(subnet="10.9.0.0/24"), IPAMConfig(subnet="10.8.0.0/24")),
            Unsupported,
            "several subnets of one family",
        ),
        (network(ingress=True), Conflict, "is already present"),
        (network(ingress=True, attachable=True), Invalid, "ingress network cannot be attachable"),
        (network(options={MTU_OPTION: "99999"}), Invalid, "use 1280 to 65535"),
        (
            network(options={"encrypted": ""}),
            Unsupported,
            "network option 'encrypted' is not supported: hivemesh sets up no IPsec",
        ),
        (network(options={VNI_OPTION: "5000,5001"}), Invalid, "use a number from 1 to 16777215"),
        (network(options={VNI_OPTION: "0"}), Invalid, "use a number from 1 to 16777215"),
        (network(options={VNI_OPTION: "4096"}), Invalid, "VNI 4096 is already in use by network ingress"),
    ],
)
def test_a_bad_network_is_refused_and_nothing_changes(
    wanted: NetworkSpec, error: type[HivemeshError], words: str
) -> None:
    world = World(1)
    world.create_network("front")
    revision = world.view.revision
    with pytest.raises(error) as caught:
        world.change(lambda tx: networks.create(tx, wanted, world.now, world.new_id()))
    assert words in str(caught.value)
    assert world.view.revision == revision


def test_a_network_in_use_stays() -> None:
    world = World(1)
    made = world.create_network("front")
    service = world.create(spec(networks=["front"]))
    world.create(spec("pub", ports=[publish(80)]))
    with pytest.raises(Invalid, match=f"network {made.id} is in use by service {service.id}"):
        world.change(lambda tx: networks.remove(tx, "front"))
    with pytest.raises(Invalid, match="ingress network cannot be removed because service"):
        world.change(lambda tx: networks.remove(tx, "ingress"))
    world.remove("web")
    world.change(lambda tx: networks.remove(tx, "front"))
    world.remove("pub")
    world.change(lambda tx: networks.remove(tx, "ingress"))
    assert world.view.all(type(made)) == [] or not list(world.view.all(type(made)))


def test_network_a_plain_container_is_on_stays() -> None:
    world = World(1)
    made = world.create_network("front")
    place = world.attach("c1", "front", "n1")
    with pytest.raises(Invalid, match=rf"network {made.id} is in use by task {place.id} \(container c1\)"):
        world.change(lambda tx: networks.remove(tx, "front"))
    world.change(lambda tx: tx.delete(place))
    world.change(lambda tx: networks.remove(tx, "front"))


def test_subnet_of_a_nodes_way_out_is_refused_and_never_chosen() -> None:
    world = World(1, pools=("172.18.0.0/15",), subnet_size=24)
    about = msgspec.structs.replace(world.node("n1").description, gateway=(ip_network("172.18.0.0/16"),))
    world.set_node("n1", description=about)
    wanted = network("net", IPAMConfig(subnet="172.18.7.0/24"))
    words = r"invalid subnet 172\.18\.7\.0/24: it overlaps with 172\.18\.0\.0/16, which node n1 uses for the way out"
    with pytest.raises(Invalid, match=words):
        world.change(lambda tx: networks.create(tx, wanted, world.now, world.new_id()))
    assert str(world.create_network("net").subnets[0].prefix) == "172.19.0.0/24"


def test_subnet_of_the_other_family_makes_a_network_of_both() -> None:
    world = World(1)
    made = world.create_network("front", "fd12:1::/64")
    assert made.spec.ipv6
    assert [subnet.prefix.version for subnet in made.subnets] == [4, 6]


def remove_manager(world: World) -> None:
    world.change(lambda tx: nodes.remove(tx, "n1", force=True))


def remove_living(world: World) -> None:
    world.change(lambda tx: nodes.remove(tx, "n2", force=False))


def demote(world: World) -> None:
    node = world.node("n1")
    world.change(lambda tx: nodes.update(tx, node.id, node.version, NodeSpec(role="worker"), world.now))


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (remove_manager, Invalid, "It must be demoted to worker before removal"),
        (remove_living, Invalid, "is not down and can't be removed"),
        (demote, Invalid, "attempting to demote the last manager of the swarm"),
    ],
)
def test_what_a_node_cannot_is_refused(act: Callable[[World], None], error: type[HivemeshError], words: str) -> None:
    world = World(2)
    with pytest.raises(error, match=words):
        act(world)


def test_a_node_that_is_down_can_be_removed() -> None:
    world = World(2)
    world.set_node("n2", state="down")
    remove_living(world)
    assert len(world.view.all(type(world.node("n1")))) == 1


def test_references_are_id_name_or_beginning_of_the_id() -> None:
    world = World(1)
    first, second = world.create(spec("first")), world.create(spec("second"))
    assert world.service(first.id) == world.service("first") == world.service(first.id[:25])
    assert first.id[:20] == second.id[:20]
    with pytest.raises(Invalid, match=r"is ambiguous \(2 matches found\)"):
        world.service(first.id[:20])
    with pytest.raises(NotFound, match="service third not found"):
        world.change(lambda tx: services.remove(tx, "third"))
    with pytest.raises(Invalid, match="give its name or id"):
        world.service("")
