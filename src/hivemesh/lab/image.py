"""The demo image `localhost/whoami`, built on the spot: static busybox and a small static server.

The server (`whoami/whoami.c`, which says why it is C) is compiled once per version of its source and of this module.
The image goes into one Podman store that all nodes of all labs read and none writes.
"""

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from hivemesh.lab.machine import LabError
from hivemesh.lab.topology import Places

IMAGE = "localhost/whoami:latest"
PROGRAM = "whoami"


@contextmanager
def store_lock(places: Places) -> Iterator[None]:
    """Labs that start or stop at once take turns at what they share.

    The lock is on the folder above, which stays: a file of our own would have to be removed, and then locks nothing.
    """
    places.disk.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(places.disk.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def build_program(places: Places) -> Path:
    """The compiled server's path. The caller holds `store_lock`."""
    return _compiled(places, "whoami/whoami.c", PROGRAM, "-static", "-s")


def build_clock(places: Places) -> Path:
    """The compiled wrong clock, for LD_PRELOAD. The caller holds `store_lock`."""
    return _compiled(places, "clock.c", "clock.so", "-shared", "-fPIC")


def _compiled(places: Places, name: str, result: str, *options: str) -> Path:
    source = files("hivemesh.lab") / name
    version = hashlib.sha256(source.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    program = places.images / version / result
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(".new")
        with as_file(source) as path:
            _run(["gcc", "-std=gnu11", "-O2", *options, "-o", str(fresh), str(path)])
        fresh.rename(program)
    return program


def build_image(places: Places) -> Path:
    """The read-only store's graph root, with the image in it. The caller holds `store_lock`."""
    program = build_program(places)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise LabError("busybox is not installed; run `make setup`")
    store = program.parent / "store"
    done = program.parent / "store.done"
    if done.exists():
        return store
    shutil.rmtree(store, ignore_errors=True)
    storage = program.parent / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{store}"\nrunroot = "{program.parent / "runroot"}"\n'
    )
    archive = program.parent / "root.tar"
    archive.write_bytes(root_archive(program, Path(busybox)))
    # In a mount namespace of its own: Podman leaves its store mounted onto itself, which would outlive the lab.
    _run(
        ["unshare", "--mount", "podman", "import", "--change", f'CMD ["/bin/{PROGRAM}"]',
         "--change", "EXPOSE 80/tcp", "--change", "EXPOSE 80/udp", str(archive), IMAGE],
        {"CONTAINERS_STORAGE_CONF": str(storage)},
    )  # fmt: skip
    archive.unlink()
    done.touch()
    return store


def root_archive(program: Path, busybox: Path) -> bytes:
    """The image's files as a tar: busybox under the name of every applet it has, the server, the usual folders."""
    applets = _run([str(busybox), "--list"]).split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for name, path in (("busybox", busybox), (PROGRAM, program)):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.mode, entry.size = 0o755, path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(entry, content)
        for applet in applets:
            if applet not in ("busybox", PROGRAM):
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
        for name, text in (("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")):
            entry = tarfile.TarInfo(f"etc/{name}")
            entry.mode, entry.size = 0o644, len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _run(arguments: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise LabError(f"{arguments[0]} is not installed; run `make setup`") from error
    if done.returncode:
        raise LabError(f"`{' '.join(arguments[:3])} …` failed: {done.stderr.strip()}")
    return done.stdout
