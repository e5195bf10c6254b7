"""`hivemeshd`: builds the real objects, connects them, runs them."""

from hivemesh.daemon.node import Daemon

__all__ = ["Daemon"]
