"""The arrows between packages point downwards."""

import ast
from collections.abc import Iterator
from pathlib import Path

import hivemesh

ROOT = Path(hivemesh.__file__).parent
LAYER = {
    "model": 0, "clock": 0, "log": 0, "meters": 0,
    "wire": 1, "ipam": 1, "config": 1, "pki": 1,
    "kernel": 2, "store": 2, "reconcile": 2, "client": 2, "registry": 2,
    "dataplane": 3, "dns": 3,
    "cnm": 4, "engine": 4,
    "control": 5, "agent": 5, "trace": 5, "metrics": 5, "doctor": 5,
    "web": 6, "api": 6,
    "daemon": 7,
    "lab": 8,
    "cli": 9,
}  # fmt: skip


def imports_between_packages() -> Iterator[tuple[str, str]]:
    for path in ROOT.rglob("*.py"):
        importer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "hivemesh" and len(parts) > 1 and parts[1] in LAYER and importer != parts[1]:
                    yield importer, parts[1]


def test_imports_point_downwards() -> None:
    seen = list(imports_between_packages())
    assert seen
    for importer, imported in seen:
        if importer != "__init__":
            assert LAYER[imported] < LAYER[importer], f"{importer} reaches up to {imported}"


def test_every_package_has_a_layer() -> None:
    for path in ROOT.iterdir():
        name = path.name.removesuffix(".py")
        if path.suffix == ".py" or path.is_dir():
            assert name in LAYER or name.startswith("__"), f"{name} has no layer"
