"""What goes wrong between the machines of a lab: cuts, lost frames, late frames.

All of it happens in the switch (the underlay's bridge), so no machine can see it coming or put it right:

    cut, loss   a table of the bridge family for each fault, hooked where the switch forwards
    delay       a relay (relay.py) between a machine's cable and the switch, since few kernels are built with netem

A machine's port keeps its name under a delay, so that cuts and losses go on meaning that machine. And a wrong clock,
which one daemon believes in (clock.c).
"""

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.resources import as_file, files
from pathlib import Path

from hivemesh.lab.image import build_clock, store_lock
from hivemesh.lab.lab import Lab, ip_batch
from hivemesh.lab.machine import LabError, Machine, Process, kill
from hivemesh.lab.node import INSTALLED
from hivemesh.model.errors import Invalid

CONTROL_PORTS = (2377, 12377)
"""Agents to managers; managers among themselves."""
PREFIX = "fault-"
FAR = "-far"
"""A delayed machine's own cable, which the relay takes out of the switch; its near end takes the port's name."""
RELAY = "relay.py"
NANOSECONDS = struct.Struct("=q")
"""What clock.c reads."""


def cut(lab: Lab, machines: Iterable[str], *, ports: Sequence[int] = ()) -> str:
    """Nothing passes between these machines and all others; with `ports`, only TCP to and from those is lost.

    Returns what `mend` takes. Raises `NotFound` for a machine the lab does not have.
    """
    inner = sorted(machines)
    outer = sorted({each.name for each in lab.machines} - set(inner))
    for name in inner:
        _machine(lab, name)
    if not inner or not outer:
        raise Invalid(f"a cut has machines on both sides; the lab has {', '.join(each.name for each in lab.machines)}")
    matches = [f"tcp {side} {{ {', '.join(map(str, ports))} }}" for side in ("dport", "sport")] if ports else [""]
    return _add(
        lab,
        [f"iifname {_set(a)} oifname {_set(b)} {match} drop" for a, b in ((inner, outer), (outer, inner))
         for match in matches],
    )  # fmt: skip


def lose(lab: Lab, machine: str, percent: int) -> str:
    """So many of the frames to and from the machine are lost, at random. Returns what `mend` takes."""
    _machine(lab, machine)
    if not 1 <= percent <= 100:
        raise Invalid(f"1 to 100 percent of the frames can be lost, not {percent}")
    return _add(lab, [f'{way} "{machine}" numgen random mod 100 < {percent} drop' for way in ("iifname", "oifname")])


def delay(lab: Lab, machine: str, milliseconds: int, jitter: int = 0) -> str:
    """Frames to and from the machine take so much longer, more or less `jitter`, in order. Returns what `mend` takes.

    Raises `Invalid` when it is delayed already.
    """
    slow = _machine(lab, machine)
    if not 0 <= jitter <= milliseconds or milliseconds < 1:
        raise Invalid(f"a delay is at least 1 ms, with no more jitter than that, not {milliseconds} and {jitter} ms")
    if _relays(slow):
        raise Invalid(f"{machine} is delayed already: mend that first")
    far = machine + FAR
    ip_batch(
        [
            f"link set {machine} nomaster name {far}",
            f"link add {machine} type veth peer name {machine}-near",
            f"link set {machine} master br0 up",
            f"link set {machine}-near up",
        ],
        lab.topology.underlay,
    )
    with as_file(files("hivemesh.lab") / RELAY) as script:
        subprocess.run(
            ["nsenter", f"--net=/run/netns/{lab.topology.underlay}", "nsenter", "--target", str(slow.init_pid()),
             "--mount", "--uts", "--pid", "--", "setsid", "--fork", sys.executable, str(script), far,
             f"{machine}-near", str(milliseconds), str(jitter)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    return f"delay-{machine}"


def mend(lab: Lab, fault: str = "") -> None:
    """Undo one fault, or all. Nothing happens when it is undone already."""
    for name in _faults(lab):
        if fault in ("", name):
            _nft(lab, "delete", "table", "bridge", name)
    for machine in lab.machines:
        if fault in ("", f"delay-{machine.name}"):
            _hurry(lab, machine)


def wrong_clock(lab: Lab, node: str) -> tuple[str, ...]:
    """The command that starts the node's daemon with a wall clock of its own, which `step_clock` moves."""
    with store_lock(lab.places):
        library = build_clock(lab.places)
    file = _clock(lab, node)
    if not file.exists():
        file.write_bytes(NANOSECONDS.pack(0))
    return ("env", f"LD_PRELOAD={library}", f"CLOCK_STEP={file}", INSTALLED)


def step_clock(lab: Lab, node: str, seconds: float) -> None:
    """From now on that clock is wrong by so much; 0 makes it right."""
    with _clock(lab, node).open("r+b") as file:
        file.write(NANOSECONDS.pack(round(seconds * 1e9)))


def _clock(lab: Lab, node: str) -> Path:
    return lab.node(node).disk / "clock"


def _hurry(lab: Lab, machine: Machine) -> None:
    """No delay any more."""
    relays = _relays(machine)
    kill(relays, signal.SIGKILL)
    if relays:
        ip_batch(
            [f"link del {machine.name}", f"link set {machine.name}{FAR} name {machine.name} master br0 up"],
            lab.topology.underlay,
        )


def _relays(machine: Machine) -> list[Process]:
    return [process for process in machine.processes() if process.runs(RELAY)]


def _add(lab: Lab, rules: Sequence[str]) -> str:
    """One table with these rules, all at once."""
    taken = _faults(lab)
    name = next(name for number in range(len(taken) + 1) if (name := f"{PREFIX}{number}") not in taken)
    lines = [f"add table bridge {name}", f"add chain bridge {name} f {{ type filter hook forward priority 0; }}"]
    _nft(lab, "-f", "-", commands="\n".join([*lines, *(f"add rule bridge {name} f {rule}" for rule in rules)]) + "\n")
    return name


def _faults(lab: Lab) -> list[str]:
    listed = json.loads(_nft(lab, "-j", "list", "tables", "bridge"))["nftables"]
    names = [each["table"]["name"] for each in listed if "table" in each]
    return [name for name in names if name.startswith(PREFIX)]


def _nft(lab: Lab, *words: str, commands: str = "") -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", lab.topology.underlay, "nft", *words],
        input=commands, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"nft failed in {lab.topology.underlay}: {done.stderr.strip()}")
    return done.stdout


def _set(names: Sequence[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"


def _machine(lab: Lab, name: str) -> Machine:
    return lab.client if name == lab.client.name else lab.node(name)
