"""What the demo image holds."""

import io
import shutil
import tarfile
from pathlib import Path

from hivemesh.lab.image import root_archive


def test_image_has_the_server_and_busybox_under_every_name(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox, "make setup installs it"
    server = tmp_path / "whoami"
    server.write_bytes(b"\x7fELF")
    with tarfile.open(fileobj=io.BytesIO(root_archive(server, Path(busybox)))) as tar:
        members = {member.name: member for member in tar}
    assert members["bin/whoami"].mode == members["bin/busybox"].mode == 0o755
    assert members["bin/whoami"].size == 4
    for applet in ("sh", "ip", "sleep", "wget"):
        assert members[f"bin/{applet}"].linkname == "busybox"
