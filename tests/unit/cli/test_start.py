"""The command starts fast: it is typed by people, and by scripts in loops."""

import pkgutil
import subprocess
import sys

import pytest

import hivemesh.cli

HEAVY = {"aiohttp", "cryptography", "pyroute2"}
"""Libraries of daemons, each of which takes longer to load than all the rest of a command."""


@pytest.mark.parametrize(
    "module", [m.name for m in pkgutil.iter_modules(hivemesh.cli.__path__) if not m.name.startswith("_")]
)
def test_command_loads_nothing_that_only_daemons_need(module: str) -> None:
    code = f"import sys, hivemesh.cli.{module}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
