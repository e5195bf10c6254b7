"""`make bench-peers`: a real Docker Swarm and hivemesh in turn on this machine, the same work for both.

The Docker side is a rig of scripts (HIVEMESH_PEERS, by default beside the checkout) that needs Debian's docker.io,
dnsmasq-base, gcc and busybox-static. Its output is printed as it is; ours is measured alike: from the call until the
manager says that all tasks run, and from the removal until no container is left.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench import converge, footprint, rig
from bench.report import facts, spread
from hivemesh.lab.lab import Lab

RIG = Path(os.environ.get("HIVEMESH_PEERS") or Path(__file__).parents[2] / "shared" / "peers")
DOCKERD = Path("/usr/sbin/dockerd")
SIZES = ((2, 5), (20, 3), (60, 2))  # tasks, runs
NETWORK = "mynet"
TARGETS = {2: 0.99, 20: 4.7, 60: 12.5}


def docker() -> None:
    """The rig's measurements of creation, convergence and memory, as it prints them."""
    env = {**os.environ, "PEER": "/tmp/hivemesh-peer"}
    script = ["bash", str(RIG / "swarm.sh")]
    try:
        subprocess.run([*script, "up"], env=env, check=True)
        for name, arguments in (("a5_mem.py", ["10"]), ("a2_create.py", ["1"]), ("a3_converge.py", ["6"])):
            print(f"--- Docker Swarm: {name}", flush=True)
            subprocess.run([sys.executable, str(RIG / name), *arguments], env=env, check=True)
    finally:
        subprocess.run([*script, "down"], env=env, check=False)
        shutil.rmtree(env["PEER"], ignore_errors=True)


def ours() -> None:
    """The same for hivemesh."""
    with rig.lab() as bed:
        time.sleep(footprint.QUIET)
        footprint.main(bed, "no task")
        bed.nodes[0].api("POST", "/networks/create", {"Name": NETWORK, "Driver": "overlay"})
        facts(
            "hivemesh: create N tasks on an overlay network, until all run; remove, until no container is left",
            ("tasks", "running s", "removed s", "Docker Swarm, running s"),
            [_create(bed, count, runs) for count, runs in SIZES],
            "seconds: median (lowest-highest)",
        )
        converge.main(bed)


def _create(bed: Lab, count: int, runs: int) -> tuple[str, str, str, str]:
    up: list[float] = []
    down: list[float] = []
    for number in range(runs):
        spec = rig.service(f"c{count}x{number}", count, [])
        spec["TaskTemplate"]["Networks"] = [{"Target": NETWORK}]
        began = time.monotonic()
        rig.create(bed, spec)
        rig.await_running(bed, spec["Name"], count)
        up.append(time.monotonic() - began)
        began = time.monotonic()
        rig.remove(bed, spec["Name"])
        down.append(time.monotonic() - began)
        time.sleep(1)
    print(f"hivemesh, {count} tasks: {statistics.median(up):.2f} s", flush=True)
    return str(count), spread(up), spread(down), str(TARGETS[count])


def main() -> None:
    if not DOCKERD.exists() or not (RIG / "swarm.sh").exists():
        sys.exit(f"this needs Debian's docker.io and the rig in {RIG} (HIVEMESH_PEERS names another place)")
    docker()
    ours()


if __name__ == "__main__":
    main()
