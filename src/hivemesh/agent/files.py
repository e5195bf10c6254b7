"""The files of a container that say how names become addresses: `/etc/resolv.conf` and `/etc/hosts`, one pair each.

They lie in a directory per sandbox and are mounted into the container. Text is written in place, never by renaming: a
mount shows the file it was made with.
"""

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from hivemesh.agent.private import refused
from hivemesh.dns.hostconf import HostConf, container_hosts, container_resolv_conf
from hivemesh.model.ids import NetworkID, TaskID
from hivemesh.model.local import LocalNetwork
from hivemesh.model.task import Task
from hivemesh.wire.control import NetworkItem

HOSTS, RESOLV_CONF = "/etc/hosts", "/etc/resolv.conf"


class SandboxFiles:
    """Everything under `root` is ours, a directory per task."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def directory(self, task: TaskID) -> Path:
        """Where the files of `task` lie."""
        return self._root / task

    def write(
        self, task: Task, networks: Mapping[NetworkID, NetworkItem | LocalNetwork], host: HostConf, hostname: str
    ) -> dict[str, str]:
        """The files of `task`, by the path where each belongs in the container.

        `hostname` is the container's; while it is not known, no name stands for the container's own addresses. Raises
        `Unavailable` when the disk refuses.
        """
        spec = task.spec.container_spec
        addresses = [
            interface.ip
            for attachment in task.attachments
            if attachment.network_id in networks and not networks[attachment.network_id].ingress
            for interface in attachment.addresses
        ]
        texts = {
            HOSTS: container_hosts(hostname, addresses, spec.hosts),
            RESOLV_CONF: container_resolv_conf(host, spec.dns_config),
        }
        directory = self.directory(task.id)
        try:
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            return {target: _write(directory / os.path.basename(target), text) for target, text in texts.items()}
        except OSError as error:
            raise refused(directory, error) from error

    def remove(self, task: TaskID) -> None:
        """The task's container is gone; so may be the files."""
        shutil.rmtree(self.directory(task), ignore_errors=True)

    def keep(self, tasks: Collection[TaskID]) -> None:
        """Remove the files of all others."""
        if self._root.is_dir():
            for directory in self._root.iterdir():
                if directory.name not in tasks:
                    shutil.rmtree(directory, ignore_errors=True)


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o644)  # whoever the container runs as
    return str(path)
