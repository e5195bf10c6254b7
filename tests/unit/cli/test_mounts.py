"""What `--mount` says."""

from typing import Any

import pytest

from hivemesh.cli.mounts import mount
from hivemesh.model.errors import Invalid


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type=bind,src=/a,dst=/b,ro", {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}),
        ("target=/b,readonly=false", {"Type": "volume", "Target": "/b"}),
        (
            'source=v,target=/b,"volume-opt=o=addr=192.0.2.1,rw",volume-opt=type=nfs,volume-label=a=b,volume-nocopy',
            {
                "Type": "volume", "Source": "v", "Target": "/b",
                "VolumeOptions": {
                    "DriverConfig": {"Options": {"o": "addr=192.0.2.1,rw", "type": "nfs"}},
                    "Labels": {"a": "b"}, "NoCopy": True,
                },
            },
        ),
        (
            "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770",
            {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1770}},
        ),
        (
            "type=bind,source=/a,target=/b,bind-propagation=slave,bind-recursive=disabled",
            {
                "Type": "bind", "Source": "/a", "Target": "/b",
                "BindOptions": {"Propagation": "slave", "NonRecursive": True},
            },
        ),
    ],
)  # fmt: skip
def test_mount_is_read(text: str, said: dict[str, Any]) -> None:
    assert mount(text) == said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type=bind,source=/a", "target is missing"),
        ("type=npipe,target=/a", "'npipe' is none of bind, volume, tmpfs, image"),
        ("target=/a,colour=red", "unknown key 'colour'; use bind-create-src, bind-nonrecursive"),
        ("target=/a,readonly=maybe", "readonly: 'maybe' is neither true nor false"),
        ("target=/a,bind-recursive=often", "none of enabled, disabled, writable, readonly"),
        ("target=/a,tmpfs-mode=rwx", "tmpfs-mode"),
        ("target=", "target: a value is missing"),
    ],
)
def test_bad_mount_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        mount(text)
