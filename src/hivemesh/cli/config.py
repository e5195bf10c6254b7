"""`hivemesh config`: files for tasks, kept apart from their images."""

from hivemesh.cli.payload import group

config = group("config")
