"""Swarm mode for any Linux machine: services, overlay networks, names and a routing mesh, on Podman."""

__version__ = "0.1.0"
