# Each target does its own set-up: a machine with python3 (3.11 or later) and make needs nothing else first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# One more than there are cores: a test mostly waits for servers.
PROCESSES = $(shell $(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)')

.DEFAULT_GOAL := help
.PHONY: help demo test lint check servers format lock clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## the whole system on this machine, with sample prescriptions and curl lines to paste; Ctrl-C ends it
	@$(BIN)/rxstore demo $(ARGS)

test: $(STAMP)  ## every test that this machine can run (ARGS='-k name' chooses some)
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile $(ARGS)

lint: $(STAMP)  ## format, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## all that CI does

servers: $(STAMP)  ## a real Kafka and PostgreSQL to try things against; Ctrl-C ends them
	@$(BIN)/python -m tests.servers

format: $(STAMP)  ## put the code into the house's form
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

lock: $(STAMP)  ## choose the versions of constraints.txt anew, within the ranges of pyproject.toml
	$(BIN)/pip install --quiet pip-tools
	sed '/^$$/q' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip-compile --quiet --upgrade --all-extras --strip-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file - pyproject.toml \
		>> $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean:  ## remove what was installed, cached and built
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Two steps, so that the build backend too comes from the constraints and not from a build environment of pip's own.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: rxstore needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
			"Install one and run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "make: installing into $(VENV) (once; about a minute)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatchling
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --editable '.[demo,dev]'
	@touch $@
