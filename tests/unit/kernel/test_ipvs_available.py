"""Whether a kernel has IPVS, told by its files."""

import os
from pathlib import Path

import pytest

from hivemesh.kernel import ipvs

MODULES = Path("lib/modules") / os.uname().release


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("proc/net/ip_vs", ""),
        (MODULES / "modules.dep", "kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/net/netfilter/nf_conntrack.ko.xz\n"),
        (MODULES / "modules.builtin", "kernel/net/netfilter/ipvs/ip_vs.ko\n"),
    ],
    ids=["loaded", "module", "built-in"],
)
def test_kernel_with_ipvs_is_known_without_loading_it(tmp_path: Path, name: str | Path, text: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    assert ipvs.available(tmp_path)


def test_kernel_without_ipvs_is_known(tmp_path: Path) -> None:
    assert not ipvs.available(tmp_path)
    (tmp_path / MODULES).mkdir(parents=True)
    (tmp_path / MODULES / "modules.dep").write_text("kernel/drivers/net/vxlan/vxlan.ko:\n")
    assert not ipvs.available(tmp_path)
