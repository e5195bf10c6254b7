"""Images of real programs, made on the spot from Debian's packages, and the registry that serves them.

`made()` unpacks packages into root file systems, imports those with Podman and pushes them to Debian's docker-registry,
all in a network namespace of its own. What it leaves is the registry's root, images included: `serve` runs it on a
machine of a lab. That is kept in `.images/` until something it is made from changes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hivemesh.engine.host import containers_conf, host_needs
from hivemesh.lab.machine import Machine, kill

REPOSITORY = Path(__file__).parent.parent
KEPT = REPOSITORY / ".images"
SCRIPTS = Path(__file__).parent / "stacks" / "images"
BUSYBOX = "/bin/busybox"
REGISTRY, PORT = "docker-registry", 5000
AWAIT = f"for n in {{1..200}}; do curl -sf http://127.0.0.1:{PORT}/v2/ && break; sleep 0.05; done"
STOP = frozenset(
    [
        "adduser",
        "ca-certificates",
        "debconf",
        "init-system-helpers",
        "libllvm14",
        "locales",
        "locales-all",
        "lsb-base",
        "perl",
        "postgresql-client-common",
        "postgresql-common",
        "readline-common",
        "sensible-utils",
        "ssl-cert",
        "sysvinit-utils",
        "usr-is-merged",
        "usrmerge",
    ]
)
"""Packages that install or manage others; nothing of theirs runs in a container."""
DROPPED = (
    *("usr/share/" + name for name in ["bug", "doc", "info", "lintian", "locale", "man", "postgresql/15/man"]),
    "usr/lib/postgresql/15/lib/bitcode",
)
TOOLS = (
    "sh",
    "cat",
    "echo",
    "env",
    "grep",
    "httpd",
    "id",
    "kill",
    "mkdir",
    "sleep",
    "sort",
    "test",
    "true",
    "wc",
    "wget",
)


class Unavailable(Exception):
    """The packages cannot be had; the message has apt's own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An image: its tags, the packages in it, scripts of ours by their place, folders by their owner, and settings."""

    tags: tuple[str, ...]
    packages: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


USER = 999
RECIPES = (
    Recipe(
        tags=("shop/db:15",),
        packages=("postgresql-15",),
        scripts=("db",),
        owned=("var/lib/postgresql",),
        settings=(
            'ENTRYPOINT ["/bin/db"]',
            f"USER {USER}",
            "EXPOSE 5432/tcp",
            "ENV PGDATA=/var/lib/postgresql/data",
            "VOLUME /var/lib/postgresql",
            "STOPSIGNAL SIGINT",
        ),
    ),
    Recipe(
        tags=("shop/cache:7",),
        packages=("redis-server", "redis-tools"),
        settings=('ENTRYPOINT ["/usr/bin/redis-server"]', "EXPOSE 6379/tcp"),
    ),
    Recipe(
        tags=("shop/web:1", "shop/web:2"),
        packages=("postgresql-client-15", "redis-tools"),
        scripts=("web", "www/cgi-bin/visit"),
        settings=('CMD ["/bin/web"]', "EXPOSE 8080/tcp"),
    ),
    Recipe(tags=("tools/agent:1",), settings=('CMD ["/bin/sh", "/etc/agent.sh"]', "EXPOSE 9100/tcp")),
)


@contextmanager
def serve(machine: Machine, root: Path) -> Iterator[str]:
    """The registry's address while it runs on a machine of a lab, by its name there."""
    words = ("chroot", str(root), "/usr/bin/docker-registry", "serve", "/config.yml")
    machine.spawn(words, machine.disk / "registry.log")
    try:
        machine.exec("bash", "-c", AWAIT)
        yield f"{machine.name}:{PORT}"
    finally:
        kill([process for process in machine.processes() if process.arguments[0] == words[2]], 9)


def made() -> Path:
    """The registry's root. Raises `Unavailable`."""
    version = hashlib.sha256(b"".join(path.read_bytes() for path in (Path(__file__), *_scripts()))).hexdigest()[:12]
    KEPT.mkdir(exist_ok=True)
    done = KEPT / version
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for old in KEPT.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            fresh = KEPT / f"{version}.new"
            _make(fresh)
            fresh.rename(done)
    return done


def _scripts() -> list[Path]:
    return sorted(path for path in SCRIPTS.rglob("*") if path.is_file())


def _make(registry: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hm-images-") as folder:
        work = Path(folder)
        packages = Packages(work / "packages", {REGISTRY, *(name for recipe in RECIPES for name in recipe.packages)})
        packages.unpack(registry, {REGISTRY})
        (registry / "data").mkdir()
        (registry / "config.yml").write_text(
            textwrap.dedent(f"""\
                version: 0.1
                log: {{level: warn, accesslog: {{disabled: true}}}}
                storage: {{filesystem: {{rootdirectory: /data}}, delete: {{enabled: false}}}}
                http: {{addr: ":{PORT}", secret: none}}
            """)
        )
        script = [
            "set -e",
            "ip link set lo up",
            f"chroot {registry} /usr/bin/docker-registry serve /config.yml & registry=$!",
            "trap 'kill $registry' EXIT",
            AWAIT,
        ]
        for number, recipe in enumerate(RECIPES):
            root = work / f"root{number}"
            packages.unpack(root, set(recipe.packages))
            _finish(root, recipe)
            for place in recipe.owned:
                os.chown(root / place, USER, USER)
            archive = work / f"{number}.tar"
            _run(["tar", "--create", "--numeric-owner", "--file", str(archive), "--directory", str(root), "."])
            for tag in recipe.tags:
                changes = " ".join(f"--change '{line}'" for line in (*recipe.settings, f"ENV VERSION={tag[-1]}"))
                script.append(f"podman import --quiet {changes} {archive} localhost/{tag}")
                script.append(f"podman push --quiet --tls-verify=false localhost/{tag} 127.0.0.1:{PORT}/{tag}")
        (work / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{work}/graph"\nrunroot = "{work}/run"\n'
        )
        conf = containers_conf(host_needs(), work)
        environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(work / "storage.conf")}
        if conf:
            environment["CONTAINERS_CONF"] = str(conf)
        _run(["unshare", "--net", "--mount", "bash", "-c", "\n".join(script)], environment=environment)


class Packages:
    """Files of these packages and of all they depend on."""

    def __init__(self, folder: Path, wanted: set[str]) -> None:
        self._depends = _dependencies(sorted(wanted))
        folder.mkdir()
        _run(["apt-get", "--quiet", "download", *sorted(self._closure(wanted))], folder=folder)
        self._files = {path.name.partition("_")[0]: path for path in folder.glob("*.deb")}

    def unpack(self, root: Path, names: set[str]) -> None:
        root.mkdir()
        for name in sorted(self._closure(names)):
            _run(["dpkg-deb", "--extract", str(self._files[name]), str(root)])
        for folder in DROPPED:
            shutil.rmtree(root / folder, ignore_errors=True)

    def _closure(self, names: set[str]) -> set[str]:
        found, due = set[str](), sorted(names)
        while due:
            name = due.pop()
            if name not in found | STOP:
                found.add(name)
                due += self._depends.get(name, [])
        return found


def _dependencies(names: Sequence[str]) -> dict[str, list[str]]:
    """Of each package they lead to, the packages it depends on."""
    options = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    found: dict[str, list[str]] = {}
    name = ""
    for line in _run(["apt-cache", "depends", "--recurse", *options, *names]).splitlines():
        if not line.startswith(" "):
            name = line.strip()
            found[name] = []
        elif "Depends:" in line and "<" not in line:  # a name in angle brackets is nobody's package
            found[name].append(line.rpartition(": ")[2].strip())
    return found


def _finish(root: Path, recipe: Recipe) -> None:
    """Busybox under the names we call, our scripts, and who is who."""
    for folder in ("bin", "etc", "tmp", "var", *recipe.owned):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for tool in TOOLS:
        if not (root / "bin" / tool).exists():
            (root / "bin" / tool).symlink_to("busybox")
    (root / "etc/passwd").write_text(f"root:x:0:0:root:/:/bin/sh\napp:x:{USER}:{USER}:app:/tmp:/bin/sh\n")
    (root / "etc/group").write_text(f"root:x:0:\napp:x:{USER}:\n")
    for script in recipe.scripts:
        place = root / (script if "/" in script else f"bin/{script}")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCRIPTS / Path(script).name, place)
        place.chmod(0o755)


def _run(words: list[str], *, folder: Path | None = None, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise Unavailable(f"`{' '.join(words[:3])} …` failed: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout
