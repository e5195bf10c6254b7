"""A registry that wants a login: `docker login`, `pull`, and services with and without `--with-registry-auth`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from outside import Said, await_tasks, cli, eventually, run_cli

from debian_images import PORT, Unavailable, made
from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import Machine, kill
from hivemesh.lab.node import Node
from labs import SharedLab

pytestmark = pytest.mark.scenario

USER, PASSWORD = "me", "correct-horse"
HTPASSWD = f"{USER}:$2b$05$jEAf4bC0gx6W8LXS1ZLD9uc/61aiDi6Xy6eKZA3Gex2znkxaaQ12q\n"
"""Of that password, by bcrypt."""
CONFIG = f"""\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: /data}}, delete: {{enabled: false}}}}
http: {{addr: ":{PORT}", secret: none}}
auth: {{htpasswd: {{realm: private, path: /htpasswd}}}}
"""
AWAIT = f"for n in {{1..200}}; do curl -so /dev/null http://127.0.0.1:{PORT}/v2/ && break; sleep 0.05; done"


@contextmanager
def serve_to_members(machine: Machine, root: Path) -> Iterator[str]:
    """As `debian_images.serve`, to whoever logs in."""
    (root / "htpasswd").write_text(HTPASSWD)
    (root / "private.yml").write_text(CONFIG)
    words = ("chroot", str(root), "/usr/bin/docker-registry", "serve", "/private.yml")
    machine.spawn(words, machine.disk / "registry.log")
    try:
        machine.exec("bash", "-c", AWAIT)
        yield f"{machine.name}:{PORT}"
    finally:
        kill([process for process in machine.processes() if process.arguments[0] == words[2]], 9)


@pytest.fixture
def registry(shared_lab: SharedLab) -> Iterator[str]:
    try:
        root = made()
    except Unavailable as error:
        pytest.skip(f"no images of Debian's packages: {error}")
    with serve_to_members(shared_lab.get().client, root) as address:
        yield address


def docker(node: Node, *words: str) -> Said:
    """With a place of its own for logins, which `docker` keeps in files."""
    return run_cli(node, "env", f"DOCKER_CONFIG={node.disk / 'docker'}", "docker", *words)


def test_image_of_a_private_registry_is_given_to_who_logged_in(lab: Lab, registry: str) -> None:
    first = lab.nodes[0]
    image = f"{registry}/tools/agent:1"
    for node in lab.nodes:  # others may have left it there
        run_cli(node, "docker", "image", "rm", "--force", image)

    # Nobody in particular gets nothing, and is told why
    said = docker(first, "pull", image)
    assert said.code == 1
    assert re.search("unauthorized|authentication required", said.err), said
    create = ("service", "create", "--detach", "--name", "agent", "--mode", "global", "--restart-condition", "none")
    run = ("--stop-grace-period", "1s", image, "sleep", "600")
    said = docker(first, *create, *run)
    assert (said.code, "could not be accessed on a registry" in said.err) == (0, True), said
    eventually(lambda: _assert_rejected(lab), 20)
    cli(first, "docker", "service", "rm", "agent")

    # Who logged in pulls, and lets services do so on all nodes
    said = docker(first, "login", "--username", USER, "--password", "wrong", registry)
    assert said.code == 1
    assert re.search("unauthorized|invalid username/password|authentication required", said.err), said
    assert "Login Succeeded" in docker(first, "login", "--username", USER, "--password", PASSWORD, registry).out
    assert docker(first, "pull", "--quiet", image).code == 0
    said = docker(first, *create, "--with-registry-auth", *run)
    assert (said.code, said.err) == (0, "")
    assert {task.node for task in await_tasks(lab, "agent", 3)} == {"n1", "n2", "n3"}
    shown = first.api("GET", "/services/agent")
    assert re.fullmatch(
        f"{image}@sha256:[0-9a-f]{{64}}", shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    )  # by that very digest
    assert PASSWORD not in str(shown)


def _assert_rejected(lab: Lab) -> None:
    said = cli(
        lab.nodes[0], "docker", "service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "agent"
    )
    lines = [line for line in said.splitlines() if line.startswith("Rejected")]
    assert len(lines) >= 2, said
    assert all(re.search("unauthorized|authentication required", line) for line in lines), said
