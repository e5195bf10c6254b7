"""Secrets and configs: what users may make, change and remove, and what services may use."""

import msgspec
import pytest
from world import World, spec

from hivemesh.control import lookup, secrets, services
from hivemesh.model.errors import Conflict, Invalid, NotFound, OutOfSequence
from hivemesh.model.secret import Config, PayloadSpec, Secret, Templating
from hivemesh.model.service import ConfigReference, ContainerSpec, FileTarget, Mount, SecretReference, ServiceSpec


def made(world: World, name: str = "key", data: bytes = b"hush", **more: object) -> Secret:
    wanted = PayloadSpec(name=name, data=data, **more)  # type: ignore[arg-type]
    return world.change(lambda tx: secrets.create(tx, Secret, wanted, world.now, world.new_id()))


def reference(secret: Secret, target: str = "key", **file: object) -> SecretReference:
    place = FileTarget(name=target, **file)  # type: ignore[arg-type]
    return SecretReference(file=place, secret_id=secret.id, secret_name=secret.spec.name)


def using(*references: SecretReference, **container: object) -> ServiceSpec:
    wanted = spec("web")
    container_spec = ContainerSpec(image="a", secrets=references, **container)  # type: ignore[arg-type]
    return msgspec.structs.replace(
        wanted, task_template=msgspec.structs.replace(wanted.task_template, container_spec=container_spec)
    )


@pytest.mark.parametrize("name", ["", "-a", "a.", "a" * 65, "a b", "a/b", "ä"])
def test_name_outside_the_rule_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="only 64"):
        made(World(1), name)


def test_sizes_are_limited_below_and_above() -> None:
    world = World(1)
    for data in (b"", bytes(512000)):
        with pytest.raises(Invalid, match="secret data must be larger than 0 and less than 512000 bytes"):
            made(world, data=data)
    made(world, "a" * 64, bytes(511999))
    with pytest.raises(Invalid, match="config data must be larger than 0 and less than 1024000 bytes"):
        world.change(lambda tx: secrets.create(tx, Config, PayloadSpec(name="c", data=bytes(1024000)), 0, "i"))


def test_name_is_taken_once_per_kind() -> None:
    world = World(1)
    made(world)
    with pytest.raises(Conflict, match="secret key already exists"):
        made(world)
    world.change(lambda tx: secrets.create(tx, Config, PayloadSpec(name="key", data=b"x"), 0, "i"))


def test_only_labels_change_and_only_from_the_version_seen() -> None:
    world = World(1)
    version = lookup.payload(world.view, Secret, made(world).id).version
    for changed in (PayloadSpec(name="key", data=b"other"), PayloadSpec(name="new", data=b"hush")):
        with pytest.raises(Invalid, match="only updates to Labels are allowed"):
            world.change(lambda tx, changed=changed: secrets.update(tx, Secret, "key", version, changed, 0))  # type: ignore[misc]
    same = PayloadSpec(name="key", data=b"hush", labels={"a": "b"})
    with pytest.raises(OutOfSequence):
        world.change(lambda tx: secrets.update(tx, Secret, "key", version + 9, same, 0))
    world.change(lambda tx: secrets.update(tx, Secret, "key", version, same, 0))
    after = lookup.payload(world.view, Secret, "key")
    assert (after.spec.labels, after.spec.data) == ({"a": "b"}, b"hush")


def test_what_a_service_uses_stays_until_the_service_is_gone() -> None:
    world = World(1)
    world.create(using(reference(made(world))))
    with pytest.raises(Invalid, match="secret 'key' is in use by the following service: web"):
        world.change(lambda tx: secrets.remove(tx, Secret, "key"))
    world.remove("web")
    world.change(lambda tx: secrets.remove(tx, Secret, "key"))
    with pytest.raises(NotFound, match="secret key not found"):
        lookup.payload(world.view, Secret, "key")


def test_service_with_what_does_not_exist_is_refused() -> None:
    world = World(1)
    ghost = SecretReference(file=FileTarget(name="x"), secret_id="nosuch", secret_name="ghost")
    with pytest.raises(Invalid, match="secret not found: ghost"):
        world.create(using(ghost))
    renamed = msgspec.structs.replace(reference(made(world)), secret_name="other")
    with pytest.raises(Invalid, match="secret not found: other"):
        world.create(using(renamed))


def test_two_in_one_place_are_refused() -> None:
    world = World(1)
    one, two = made(world, "one"), made(world, "two")
    with pytest.raises(Invalid, match="secret references 'one' and 'two' have a conflicting target: '/run/secrets/a'"):
        world.create(using(reference(one, "a"), reference(two, "/run/secrets/a")))
    config = world.change(lambda tx: secrets.create(tx, Config, PayloadSpec(name="c", data=b"x"), 0, world.new_id()))
    place = ConfigReference(file=FileTarget(name="/run/secrets/a"), config_id=config.id, config_name="c")
    with pytest.raises(Invalid, match="config reference 'c' and secret reference 'one' have a conflicting target"):
        world.create(using(reference(one, "a"), configs=(place,)))
    with pytest.raises(Invalid, match="and mount /data/ have a conflicting target"):
        world.create(using(reference(one, "/data"), mounts=(Mount(type="tmpfs", target="/data/"),)))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"target": "../x"}, "invalid target file name"),
        ({"target": ""}, "invalid target file name"),
        ({"target": "/"}, "invalid target file name"),
        ({"uid": "root"}, "invalid UID 'root'"),
        ({"gid": "-1"}, "invalid GID '-1'"),
        ({"mode": 0o10000}, "invalid mode 4096"),
    ],
)
def test_file_that_cannot_be_is_refused(file: dict[str, object], words: str) -> None:
    world = World(1)
    with pytest.raises(Invalid, match=words):
        world.create(using(reference(made(world), **file)))  # type: ignore[arg-type]


def test_reference_without_a_file_is_refused() -> None:
    world = World(1)
    with pytest.raises(Invalid, match="no target provided"):
        world.create(using(msgspec.structs.replace(reference(made(world)), file=None)))


def test_template_is_read_before_anything_runs() -> None:
    world = World(1)
    golang = Templating(name="golang")
    made(world, data=b'{{secret "a"}} {{ env `B` }} {{.Task.Slot}} \xff', templating=golang)
    with pytest.raises(Invalid, match="unknown placeholder"):
        made(world, "bad", b"{{.Nobody}}", templating=golang)
    with pytest.raises(Invalid, match="unrecognized template type 'jinja'"):
        made(world, "worse", templating=Templating(name="jinja"))
    made(world, "plain", b"{{.Nobody}}")


def test_rollback_to_a_secret_that_is_gone_is_refused() -> None:
    world = World(1)
    world.create(using(reference(made(world))))
    world.update("web", using())
    world.change(lambda tx: secrets.remove(tx, Secret, "key"))
    service = world.service("web")
    with pytest.raises(Invalid, match="secret not found: key"):
        world.change(lambda tx: services.update(tx, "web", service.version, service.spec, 0, rollback=True))
