"""What `--fix` does: what cannot harm whatever else runs here, can be undone, and outlasts a reboot.

Nothing is opened, stopped, or taken from anybody: firewalls, other programs' ports and routes are left to people.
"""

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from hivemesh.doctor import limits
from hivemesh.doctor.machine import leftovers
from hivemesh.kernel import netns
from hivemesh.wire.doctor import Finding, Machine

SETTINGS_FILE = Path("etc/sysctl.d/80-hivemesh.conf")
MODULES_FILE = Path("etc/modules-load.d/hivemesh.conf")
_TIMEOUT = 20.0


def apply(machine: Machine, findings: Iterable[Finding], root: Path = Path("/")) -> list[str]:
    """Put right what findings say can be. Returns what was done, or why not, a line each."""
    wanted = {finding.fix for finding in findings if finding.fix}
    done: list[str] = []
    for name, fix in FIXES.items():
        if name in wanted:
            try:
                done += fix(machine, root)
            except OSError as error:
                done.append(f"{name}: cannot be put right: {error}")
    return done


def _settings(machine: Machine, root: Path) -> list[str]:
    """Raise those that are too low; what is high enough stays as it is."""
    done, lines = [], []
    for key, least in limits.LEAST.items():
        value = machine.settings.get(key)
        if value is None or not value.isdecimal() or int(value) >= least:
            continue
        dotted = key.replace("/", ".")
        try:
            (root / "proc/sys" / key).write_text(f"{least}\n")
        except OSError as error:  # a container's: some settings are the host's
            done.append(f"{dotted} stays {value}: {error.strerror}")
            continue
        done.append(f"{dotted} is {least} now; it was {value}")
        lines.append(f"{dotted} = {least}")
    _remember(root / SETTINGS_FILE, lines)
    return done


def _modules(machine: Machine, root: Path) -> list[str]:
    done, loaded = [], []
    for name in machine.modules:
        made = subprocess.run(["modprobe", name], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if made.returncode == 0:
            loaded.append(name)
            done.append(f"loaded the kernel's module {name}")
        else:
            done.append(f"the module {name} cannot be loaded: {made.stderr.strip()}")
    _remember(root / MODULES_FILE, loaded)
    return done


def _leftovers(machine: Machine, root: Path) -> list[str]:
    done = []
    for name in leftovers():
        netns.delete(name)
        done.append(f"removed the namespace {name}")
    return done


def _remember(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file of ours that is read at boot; those of the same setting are replaced."""
    new = list(lines)
    if not new:
        return
    before = path.read_text().splitlines() if path.exists() else ["# Written by hivemesh doctor --fix"]
    names = {line.split("=")[0].strip() for line in new}
    kept = [line for line in before if line.split("=")[0].strip() not in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join([*kept, *new]) + "\n")
    os.replace(fresh, path)


FIXES: dict[str, Callable[[Machine, Path], list[str]]] = {
    "modules": _modules,
    "settings": _settings,
    "leftovers": _leftovers,
}
