# Unmoor. `make help` lists the targets. Each target does its own set-up, which is quick when nothing has changed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

SCENARIO ?= all
PYTHON := /usr/bin/python3
BIN := .venv/bin
# Tools that call each other, as molecule calls ansible-playbook, find each other in PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE := 1
LAB_INVENTORY := inventories/lab

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

.PHONY: pop
pop: setup ## Build the lab's PoP, roll out to it and prove that every address answers
	unmoor lab up
	ansible-playbook -i $(LAB_INVENTORY) playbooks/site.yml
	ansible-playbook -i $(LAB_INVENTORY) playbooks/verify.yml
	@cat tools/pop-hints.txt

.PHONY: pop-down
pop-down: setup ## Remove the lab's PoP
	unmoor lab down

.PHONY: test
test: lint unit netns molecule ## Run all tests

.PHONY: fresh
fresh: ## Run make pop and make test of HEAD on a fresh Debian in a private root; CACHE=0 downloads everything
	tools/fresh $(if $(filter 0,$(CACHE)),--no-cache) -- make pop test

.PHONY: lint
lint: setup ## Check formatting, style, types, playbooks, shell and C
	pytest -q tests/lint

.PHONY: unit
unit: setup peers ## Run tests that need no private network namespace
	pytest -q -n 2 tests/unit tests/fuzz

.PHONY: netns
netns: setup peers ## Run tests on the real kernel, each in a fresh network namespace
	pytest -q tests/netns

# Not part of `test`: virtual machines are slow without KVM.
.PHONY: kernels
kernels: setup ## Run tests of the sockets half on the kernels of Debian 12 and 13, in virtual machines
	@tools/install requirements/debian-kernels.txt
	pytest -v tests/kernels

.PHONY: molecule
molecule: setup ## Run scenarios over the lab: SCENARIO=default, or all of them
	tests/run-scenarios $(SCENARIO)

# Changes of the pure modules that tests let through: MODULES="dns/policy model/change.py" SAMPLE=200 SEED=1 JOBS=2.
MODULES ?=
SAMPLE ?= 0
SEED ?= 1
JOBS ?= 2

.PHONY: mutants
mutants: setup peers .venv/.mutants ## Change pure modules and list what tests let through: MODULES=..., SAMPLE=200, SEED=1, JOBS=2
	python tools/mutants.py --sample $(SAMPLE) --seed $(SEED) --jobs $(JOBS) $(MODULES)

.PHONY: bench bench-sockets bench-dns
bench: bench-sockets bench-dns ## Measure speed relative to a baseline

bench-sockets: setup ## Measure look-ups, floods, replacement and memory of the sockets half
	python bench/sockets/run.py
	python bench/sockets/slots.py
	python bench/sockets/observe.py

bench-dns: setup peers ## Measure evenness, reloads, 20 million names, and compare with other servers; half an hour
	@tools/install requirements/debian-bench.txt
	-python bench/dns/uniformity.py
	-python bench/dns/reloads.py
	-python bench/dns/registry.py
	-python bench/dns/costs.py
	python bench/dns/compare.py

.PHONY: readmes
readmes: setup ## Generate the READMEs of the roles and docs/terminal.svg
	python tools/role_readmes.py
	python tools/terminal_svg.py

.PHONY: lock
lock: setup ## Regenerate the lock files
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    pyproject.toml -o requirements/edge.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    pyproject.toml --group dev -o requirements/dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --group mutants --constraint requirements/dev.txt -o requirements/mutants.txt

.PHONY: setup
setup: debian .venv/.installed collection ## Install Debian packages and the virtual environment

.PHONY: debian
debian:
	@tools/install requirements/debian.txt

.PHONY: peers
peers: debian ## Unpack other servers for tests and comparison into .cache
	@tools/peers fetch

.venv/.installed: requirements/dev.txt pyproject.toml | debian
	@echo "making the virtual environment .venv"
	@$(PYTHON) -m venv .venv || $(call fail,$(PYTHON) cannot make .venv,rm -r .venv; apt-get install python3-venv)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	    --requirement requirements/dev.txt \
	    || $(call fail,pip cannot install requirements/dev.txt,see above; 'pip config list' shows which index it asks)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	    --no-index --editable . || $(call fail,pip cannot install this checkout,see its message above)
	@touch $@

# Ansible finds collections beside its own package: so this one is found from any directory, without a configuration.
.PHONY: collection
collection: .venv/.installed
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	    link=$$site/ansible_collections/unmoor/unmoor && if ! [ "$$link" -ef . ]; then \
	    mkdir -p "$${link%/*}" && ln -sfnr . "$$link"; fi || $(call fail,cannot link this checkout into .venv,rm -r .venv)

.venv/.mutants: requirements/mutants.txt .venv/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	    --requirement requirements/mutants.txt \
	    || $(call fail,pip cannot install requirements/mutants.txt,see above; 'pip config list' shows which index it asks)
	@touch $@

# Ends a recipe when a step of set-up failed: $(call fail,WHAT FAILED,FIX).
fail = { printf 'make setup: %s\nfix: %s\n' "$(1)" "$(2)" >&2; exit 1; }
