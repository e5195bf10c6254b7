"""Specifications of services: what comes in goes out the same, and what cannot be honoured is refused by its name."""

import json
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemesh.model.container import Privileges, Seccomp
from hivemesh.model.errors import Invalid, Unsupported
from hivemesh.model.service import ContainerSpec, Replicated, ServiceMode, ServiceSpec, TaskSpec
from hivemesh.wire import codec
from hivemesh.wire.engine import objects, requests

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)


def some(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that specifications are made of."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(some, arguments))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(some(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.name: some(field.type) for field in msgspec.structs.fields(kind)}
        return st.builds(kind, **fields)
    simple = {
        str: st.text(max_size=3), int: NUMBERS, bool: st.booleans(), bytes: st.binary(max_size=4),
        float: st.floats(0, 1), type(None): st.none(),
    }  # fmt: skip
    return simple[kind]


@settings(max_examples=60, deadline=None)
@given(some(ContainerSpec), some(TaskSpec))
def test_what_is_shown_is_read_back_the_same(container: ContainerSpec, template: TaskSpec) -> None:
    container = msgspec.structs.replace(container, isolation="default")
    template = msgspec.structs.replace(template, container_spec=container, runtime="container")
    spec = ServiceSpec(name="web", task_template=template, mode=ServiceMode(replicated=Replicated(replicas=2)))
    shown = json.loads(codec.to_json(objects.service_spec(spec)))
    assert requests.service_spec(shown) == spec
    assert codec.unpack(codec.pack(spec), ServiceSpec) == spec  # as it is stored


def template(**fields: Any) -> dict[str, Any]:
    return {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "x"} | fields}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"TaskTemplate": {"PluginSpec": {"Name": "p"}}}, "TaskTemplate.PluginSpec is not supported: engine plugins"),
        (
            {"TaskTemplate": {"NetworkAttachmentSpec": {"ContainerID": "c"}}},
            "TaskTemplate.NetworkAttachmentSpec is not",
        ),
        ({"TaskTemplate": {"Runtime": "plugin"}}, "TaskTemplate.Runtime 'plugin' is not supported: use container"),
        (template(Privileges={"CredentialSpec": {"File": "f"}}), "Privileges.CredentialSpec is not supported"),
        (template(Isolation="hyperv"), "ContainerSpec.Isolation 'hyperv' is not supported: use default"),
        (template(Mounts=[{"Type": "npipe", "Target": "/p"}]), r"Mounts \(/p\): type npipe is not supported"),
        (template(mounts=[{"type": "cluster", "target": "/p"}]), "type cluster is not supported: use a volume"),
        (template(Configs=[{"ConfigName": "c", "Runtime": {}}]), r"Configs \(c\): Runtime is not supported"),
        (template(Colour="red"), "TaskTemplate.ContainerSpec.Colour is not supported"),
    ],
)
def test_what_no_node_can_do_is_refused_by_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        requests.service_spec(body)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"Mounts": [{"Type": "floppy"}]}, "Invalid enum value 'floppy'"),
        ({"Ulimits": [{"Name": "core", "Hard": 1 << 63}]}, "9223372036854775808 is out of range"),
        ({"Privileges": {"Seccomp": {"Mode": "custom", "Profile": "?"}}}, "Profile"),
    ],
)
def test_values_that_are_none_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        requests.service_spec(template(**fields))


def test_profile_travels_as_base64() -> None:
    spec = requests.service_spec(template(Privileges={"Seccomp": {"Mode": "custom", "Profile": "e30="}}))
    wanted = Privileges(seccomp=Seccomp(mode="custom", profile=b"{}"))
    assert spec.task_template.container_spec.privileges == wanted
