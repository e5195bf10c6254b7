"""dockerode, the SDK of Node, against the same lab: one process does all checks, each is a test here."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conform_rig import Board

pytestmark = pytest.mark.scenario

HERE = Path(__file__).with_name("dockerode")
CHECKS = re.findall(r"^  async (\w+)\(", (HERE / "checks.js").read_text(), re.MULTILINE)


@pytest.fixture(scope="session")
def outcomes(board: Board) -> dict[str, str]:
    """What each check complained of."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node here: install nodejs and npm to test with dockerode")
    if not (HERE / "node_modules" / "dockerode").exists():
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=HERE, capture_output=True, text=True,
            check=False, timeout=180,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"dockerode cannot be had from npm: {done.stderr.strip().splitlines()[-1:]}")
    first, second, _ = board.lab.nodes
    done = subprocess.run(
        ["node", "checks.js", str(first.socket), str(second.socket)], cwd=HERE, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line["error"] for line in lines}


@pytest.mark.parametrize("name", CHECKS)
def test_dockerode_finds_what_it_expects(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == ""
