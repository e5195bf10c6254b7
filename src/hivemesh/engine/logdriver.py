"""Where a container's output goes: the log drivers Podman has, and which of Docker's options they know. Pure."""

from typing import Any

from hivemesh.model.container import LogDriver
from hivemesh.model.errors import Invalid, Unsupported

FILE = "k8s-file"
"""A file beside the container, which Podman's log calls can read with and without a journal."""
FILES = ("", "json-file", FILE)
"""Names that mean such a file: the default, Docker's, Podman's own."""
JOURNAL, NONE = "journald", "none"
SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def configuration(driver: LogDriver) -> dict[str, Any]:
    """`log_configuration` for Podman. Raises `Unsupported` naming the driver or the option, or `Invalid`."""
    if driver.name not in (*FILES, JOURNAL, NONE):
        raise Unsupported(f"LogDriver {driver.name} is not supported: use json-file, journald or none")
    found: dict[str, Any] = {"driver": FILE if driver.name in FILES else driver.name}
    for name, value in driver.options.items():
        if name == "max-size" and driver.name in FILES:
            found["size"] = _size(value)
        elif name == "max-file" and driver.name in FILES and value == "1":
            pass  # more than one is never kept
        elif name == "tag" and driver.name == JOURNAL:
            found["options"] = {"tag": value}
        else:
            known = {JOURNAL: "use tag", NONE: "it has none"}.get(driver.name, "use max-size; one file is kept")
            raise Unsupported(f"LogDriver {driver.name or FILE}: the option {name}={value} is not supported: {known}")
    return found


def _size(text: str) -> int:
    """Bytes of `10m`."""
    number = text.strip().lower().removesuffix("b")
    unit = number[-1:] if number[-1:] in SIZES else ""
    number = number.removesuffix(unit)
    if not number.isascii() or not number.isdecimal():
        raise Invalid(f"LogDriver: invalid max-size {text!r}: write bytes, or a number with a unit, such as 10m")
    return int(number) * SIZES[unit]
