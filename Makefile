# SPDX-License-Identifier: GPL-2.0-only
# `make help` lists the targets. `make demo` and `make test` need nothing but Debian 12 and root.

PYTHON := .venv/bin/python
GUEST := build/guest
FAULT ?= host-kill
TESTS ?= tests
MUTANTS ?=
ROUNDS ?= 100
SEEDS ?= 20000
KILLS ?= 50
SEED ?= 53

.PHONY: help setup guest guest-apps demo test lint bench bench-quick mutants matrix writer soak clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 15

setup: ## install Debian packages and the virtual environment
	@scripts/setup.sh

guest: setup ## build the default guest and the TCG helper library
	@guest/build.sh $(GUEST)

guest-apps: guest ## build the guest with real servers (docs/benchmarks.md), install its clients
	@scripts/setup.sh bench
	@guest/apps/build.sh $(GUEST)

demo: guest ## protect a VM, break something (FAULT=vm-kill|host-kill|host-hang|link-cut|secondary-kill)
	@$(PYTHON) -m colo_ebpf.cli.main lab demo --fault $(FAULT) --yes

lint: setup ## ruff and mypy --strict
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

test: guest-apps ## all tests
	@$(PYTHON) -m pytest $(TESTS)

bench: guest-apps ## measure against no protection and QEMU's COLO: bench/report.html, an hour
	@$(PYTHON) -m colo_ebpf.cli.main bench --out bench

bench-quick: guest-apps ## the same with fewer readings, about 10 minutes
	@$(PYTHON) -m colo_ebpf.cli.main bench --quick --out bench

mutants: guest ## plant faults in the C sources, one at a time; each must be found
	@$(PYTHON) -m tests.mutants $(MUTANTS)

matrix: guest ## every line of docs/failure-scenarios.md with real VMs, about 8 minutes
	@COLO_MATRIX=1 timeout 3600 $(PYTHON) -m pytest -v --timeout 300 tests/matrix

writer: guest ## fifty kills while the guest writes to an ext4 file system (KILLS=n SEED=n)
	@COLO_KILLS=$(KILLS) COLO_SEED=$(SEED) $(PYTHON) -m pytest -v -s tests/lab/test_writer.py

soak: guest ## ten million steps of the models, millions of histories (ROUNDS=n SEEDS=n)
	@for round in $$(seq $(ROUNDS)); do \
		echo "soak: round $$round of $(ROUNDS)"; \
		COLO_SIM_SEEDS=$(SEEDS) COLO_SIM_FIRST=$$((round * $(SEEDS))) \
			$(PYTHON) -m pytest -q --timeout 0 tests/sim || exit; \
		COLO_MODEL_EXAMPLES=2000 COLO_PAIR_EXAMPLES=100 \
			$(PYTHON) -m pytest -q --timeout 0 tests/model || exit; \
	done

clean: ## remove everything that was built
	@rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
