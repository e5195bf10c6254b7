"""Constant load: `wrk` on a machine or in a task's network, which counts every request that fails."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hivemesh.lab.machine import Machine, kill

CONNECTIONS = 4
PAUSE = "function delay() return 10 end\n"
"""Milliseconds between a connection's requests: constant load, no table of a kernel fills with ended connections."""
LEAST = 100
"""Requests that must have been made, or nothing was seen."""


@contextmanager
def load(machine: Machine, script: Path, url: str, *options: str, enter: tuple[str, ...] = ()) -> Iterator[None]:
    """Requests all the time, paused as `script` says; on leaving, not one of them may have failed."""
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", "-d3600", "--timeout", "15s", "-s", str(script), *options, url]
    with subprocess.Popen(machine.command([*enter, *words]), stdout=subprocess.PIPE, text=True) as asking:
        try:
            yield
        finally:
            time.sleep(0.3)
            kill([process for process in machine.processes() if process.arguments == tuple(words)], signal.SIGINT)
            out, _ = asking.communicate(timeout=20)
    done = re.search(r"(\d+) requests in", out)
    assert done, out
    print(f"{url} {' '.join(options)}: {done[1]} requests")
    assert int(done[1]) > LEAST, out
    assert "Socket errors" not in out, f"{' '.join(words)}: {out}"
    assert "Non-2xx" not in out, f"{url}: {out}"
