"""Podman with a storage of its own and one image of static busybox, for tests that meet the real engine."""

import contextlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hivemesh.engine.host import containers_conf, host_needs

BUSYBOX = "/bin/busybox"


@contextlib.contextmanager
def private_podman(image: str, tools: Sequence[str], changes: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The environment that leads `podman` there. Not under pytest's own folder: a storage is a mount while it lives."""
    root = Path(tempfile.mkdtemp(prefix="hm-podman-"))
    (root / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{root}/graph"\nrunroot = "{root}/run"\n'
    )
    variables = {"CONTAINERS_STORAGE_CONF": str(root / "storage.conf")}
    conf = containers_conf(host_needs(), root)
    if conf:
        variables["CONTAINERS_CONF"] = str(conf)
    environment = {**os.environ, **variables}
    try:
        with tarfile.open(root / "image.tar", "w") as archive:
            archive.add(BUSYBOX, "bin/busybox")
            for tool in tools:
                link = tarfile.TarInfo(f"bin/{tool}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        options = [f"--change={change}" for change in changes]
        command = ["podman", "import", "--quiet", *options, str(root / "image.tar"), image]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        yield variables
    finally:
        subprocess.run(["podman", "rm", "--all", "--force", "--time", "0"], env=environment, capture_output=True)
        _kill_monitors(root)
        subprocess.run(["umount", str(root / "graph" / "overlay")], capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


def _kill_monitors(root: Path) -> None:
    """The conmon of an exec waits five minutes for somebody to ask for its exit code."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and f"{root}/".encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
