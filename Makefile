# The commands of this project. `make lab` and `make test` install what is missing first.
PYTHON := .venv/bin/python
PATHS := src tests bench

.PHONY: compat packet-paths help setup check test test-guest lab down bench bench-peers lock soak

help:
	@echo 'make lab          three nodes on this machine, a published service, a tour; leaves them running'
	@echo 'make down         stops that lab and removes all of it'
	@echo 'make test         every check and every test'
	@echo 'make test-guest   what needs a kernel with IPVS, in a guest (part of make test)'
	@echo 'make soak         the long forms of tests: scaling under load, hundreds of random operations (many minutes)'
	@echo 'make compat       write docs/compatibility.md anew, from what a lab answers'
	@echo 'make packet-paths  write docs/packet-paths/ anew, from what traces in a lab print'
	@echo 'make check        formatting, lint, types'
	@echo 'make setup        packages, virtual environment, commands (the above call it)'
	@echo 'make bench        mesh and virtual addresses against straight to the task; names, services, API; healing; memory, idle CPU'
	@echo 'make bench-peers  a real Docker Swarm and hivemesh in turn, the same work for both'
	@echo 'make lock         resolve the dependencies anew'

setup:
	@scripts/setup

check: setup
	@.venv/bin/ruff format --check --quiet $(PATHS) || { echo 'run: .venv/bin/ruff format $(PATHS)'; exit 1; }
	@.venv/bin/ruff check --quiet $(PATHS)
	@.venv/bin/mypy

test: check
	@scripts/test

test-guest: setup
	@scripts/test-guest

soak: setup
	@$(PYTHON) -m pytest -m soak

lab: setup
	@$(PYTHON) -m hivemesh.lab.tour

down:
	@.venv/bin/hivemesh lab down

lock: setup
	@scripts/lock

bench: setup
	@$(PYTHON) -m bench

bench-peers: setup
	@$(PYTHON) -m bench.peers

compat: setup
	@HIVEMESH_COMPAT=write $(PYTHON) -m pytest tests/conformance/test_compatibility_page.py

packet-paths: setup
	@HIVEMESH_PACKET_PATHS=write $(PYTHON) -m pytest -m soak tests/scenario/test_packet_paths.py
