"""`python -m hivemesh.cli` is the `hivemesh` command."""

from hivemesh.cli import main

main()
