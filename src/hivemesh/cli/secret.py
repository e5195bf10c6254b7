"""`hivemesh secret`: files in memory for the tasks that may know them."""

from hivemesh.cli.payload import group

secret = group("secret")
