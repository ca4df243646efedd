# SPDX-License-Identifier: GPL-2.0-only
# `make help` lists the targets. `make demo` and `make test` need nothing but Debian 12 or 13 and root.

PYTHON := .venv/bin/python
GUEST := build/guest
GUEST_KERNEL ?= linux-image-cloud-amd64
FAULT ?= host-kill
SHARED ?=
TESTS ?= tests
QEMU ?=
COVERED ?= tests/unit tests/sim tests/storage tests/etcd
JOBS ?= 2
MUTANTS ?=
ROUNDS ?= 100
INPUTS ?= 1000000
SEEDS ?= 20000
KILLS ?= 50
VMS ?= 8
SEED ?= 53
DEB ?= build/deb

.PHONY: help setup guest guest-apps guest-boot guest-link demo test lint coverage bench bench-quick \
	mutants matrix writer many hostile soak deb deb-test machines clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 15

setup: ## install Debian packages and the virtual environment
	@scripts/setup.sh

guest: setup ## build the default guest (GUEST_KERNEL=package) and the TCG helper library
	@guest/build.sh $(GUEST) $(GUEST_KERNEL)

guest-apps: guest ## build the guest with real servers (docs/develop/benchmarks.md), install its clients
	@scripts/setup.sh bench
	@guest/apps/build.sh $(GUEST)

guest-boot: guest ## build a disk that boots by itself, from the default guest
	@guest/boot/build.sh $(GUEST)

guest-link: setup ## pack this project's Python with Debian's kernel, for tests of the sealed link
	@guest/link/build.sh $(GUEST)/link

demo: guest ## protect a VM, break something (FAULT=vm-kill|host-kill|host-hang|link-cut|secondary-kill; SHARED=1: both hosts have one disk)
	@$(PYTHON) -m colo_ebpf.cli.main lab demo --fault $(FAULT) $(if $(SHARED),--shared-disk) --yes

lint: setup ## ruff, mypy --strict, who may import whom
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@PYTHONPATH=. .venv/bin/lint-imports

test: guest-apps guest-boot guest-link ## all tests (QEMU=/path: with that qemu-system-x86_64)
	@COLO_TEST_QEMU=$(QEMU) $(PYTHON) -m pytest --numprocesses $(JOBS) $(TESTS)

coverage: setup ## branch coverage of Python, in build/coverage (COVERED=tests/...)
	@$(PYTHON) -m pytest --numprocesses $(JOBS) --cov --cov-report term:skip-covered \
		--cov-report html:build/coverage $(COVERED)

bench: guest-apps ## measure against no protection and QEMU's COLO: bench/report.html, an hour
	@$(PYTHON) -m colo_ebpf.cli.main bench --out bench

bench-quick: guest-apps ## the same with fewer readings, about 10 minutes
	@$(PYTHON) -m colo_ebpf.cli.main bench --quick --out bench

mutants: guest ## plant faults in the C sources, one at a time; each must be found
	@$(PYTHON) -m tests.mutants $(MUTANTS)

matrix: guest ## every line of docs/reference/failure-scenarios.md with real VMs, about 8 minutes
	@COLO_MATRIX=1 timeout 3600 $(PYTHON) -m pytest -v --timeout 300 tests/matrix

writer: guest ## fifty kills while the guest writes to an ext4 file system (KILLS=n SEED=n)
	@COLO_KILLS=$(KILLS) COLO_SEED=$(SEED) $(PYTHON) -m pytest -v -s tests/lab/test_writer.py

many: guest ## eight VMs on two hosts, each killed in turn, then a host (VMS=n)
	@COLO_VMS=$(VMS) $(PYTHON) -m pytest -v tests/lab/test_many.py

hostile: setup ## a million changed inputs to what reads what others write, about 15 minutes (INPUTS=n SEED=n)
	@COLO_CHANGED=$(INPUTS) COLO_SEED=$(SEED) $(PYTHON) -m pytest -q -s --timeout 0 \
		tests/unit/test_changed_inputs.py

soak: guest ## millions of steps of the models, of histories and of bad inputs (ROUNDS=n SEEDS=n)
	@for round in $$(seq $(ROUNDS)); do \
		echo "soak: round $$round of $(ROUNDS)"; \
		COLO_WAITS=12 COLO_SIM_SEEDS=$(SEEDS) COLO_SIM_FIRST=$$(((round - 1) * $(SEEDS))) \
			$(PYTHON) -m pytest -q --timeout 0 tests/sim || exit; \
		COLO_MODEL_EXAMPLES=2000 COLO_PAIR_EXAMPLES=100 \
			$(PYTHON) -m pytest -q --timeout 0 tests/model || exit; \
		COLO_HOSTILE=10000 COLO_CHANGED=100000 COLO_SEED=$$round $(PYTHON) -m pytest -q -s \
			--timeout 0 tests/unit/test_hostile.py tests/unit/test_changed_inputs.py || exit; \
	done

deb: setup ## build the Debian packages of this release in build/deb
	@packaging/deb/build.sh $(DEB)

deb-test: deb guest ## install them in a fresh root (from Debian's mirror), use, remove, purge them
	@scripts/setup.sh deb-test
	@COLO_DEB=$(DEB) $(PYTHON) -m pytest -v --timeout 1800 tests/packages

machines: deb guest ## the packages on two emulated Debian machines with systemd; an hour, alone
	@scripts/setup.sh deb-test
	@COLO_MACHINES=$(DEB) $(PYTHON) -m pytest -v --timeout 7200 tests/packages/test_machines.py

clean: ## remove everything that was built
	@rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
