# Each target does its own set-up: a machine with python3 (3.11 or later) and make needs nothing else first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

TOOLS_BIN := build/tools/bin
TOOLS     := build/tools/.installed
QUIETLY   := --quiet --disable-pip-version-check
COMPILE    = $(TOOLS_BIN)/pip-compile --quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	--no-emit-trusted-host
# With their extras, without which pip takes a requirement of one for another that is not pinned.
HASHED     = $(COMPILE) --generate-hashes --allow-unsafe --no-strip-extras --constraint constraints.txt

define HAS_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: rxstore needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
			"Install one and run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
endef

# One more than there are cores: a test mostly waits for servers.
PROCESSES = $(shell $(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)')

.DEFAULT_GOAL := help
.PHONY: help demo test lint check servers format lock sbom audit clean

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

lock: $(TOOLS)  ## write the locks anew for what pyproject.toml asks for (ARGS=--upgrade chooses the versions anew too)
	sed '1,/^$$/d' constraints.txt > build/constraints.txt
	$(COMPILE) --strip-extras --all-extras $(ARGS) --output-file build/constraints.txt pyproject.toml
	{ sed '/^$$/q' constraints.txt; cat build/constraints.txt; } > build/chosen.txt
	mv build/chosen.txt constraints.txt
	$(HASHED) --output-file requirements/run.lock pyproject.toml
	$(HASHED) --all-extras --output-file requirements/dev.lock pyproject.toml
	$(HASHED) --build-deps-for wheel --only-build-deps --output-file requirements/build.lock pyproject.toml

# Of what is installed to run rxstore and nothing else, as in the image: with licences, and with who needs what.
sbom: $(TOOLS)  ## the software bill of materials, CycloneDX, in build/sbom.json
	rm -rf build/installed
	$(PYTHON) -m venv build/installed
	build/installed/bin/python -m pip install $(QUIETLY) --require-hashes --requirement requirements/run.lock
	build/installed/bin/python -m pip uninstall $(QUIETLY) --yes pip setuptools
	$(TOOLS_BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
		--output-file build/sbom.json build/installed
	@echo build/sbom.json

# Strict: what the service does not know must not look as if nothing were known against it.
audit: $(TOOLS)  ## ask for known vulnerabilities of what the locks hold (ARGS='-s osv' asks another service)
	$(TOOLS_BIN)/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
		--requirement requirements/dev.lock $(ARGS)

clean:  ## remove what was installed, cached and built
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Two steps: what comes from elsewhere by its hash, the build backend too, and then this directory, which has none.
$(STAMP): pyproject.toml requirements/dev.lock
	$(HAS_PYTHON)
	@echo "make: installing into $(VENV) (once; about a minute)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(QUIETLY) --require-hashes --requirement requirements/dev.lock
	@$(BIN)/python -m pip install $(QUIETLY) --no-deps --no-build-isolation --editable .
	@touch $@

# Apart from what is tested and shipped: what these need must not change what that is.
$(TOOLS): Makefile
	$(HAS_PYTHON)
	@$(PYTHON) -m venv --clear build/tools
	@$(TOOLS_BIN)/python -m pip install $(QUIETLY) pip-tools==7.6.2 cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@
