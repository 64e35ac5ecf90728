# The commands of the README. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EVENTS ?= 10000
# Tests wait more than they compute: one process more than two cores have.
JOBS ?= 3

.PHONY: help setup demo up down status test fmt lint types check bench lock clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tidemark needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`. Say which: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing what requirements.lock names, hashes checked (once; about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

setup: $(VENV)/.runtime  ## make .venv with the locked dependencies

demo: $(VENV)/.runtime  ## the whole way of 10,000 SDK events, proved; leaves nothing running
	@$(BIN)/tidemark demo --events $(EVENTS) $(if $(KEEP),--keep)

up: $(VENV)/.runtime  ## start the local stack and leave it running
	@$(BIN)/tidemark up --detach

down: $(VENV)/.runtime  ## stop what `make up` started
	@$(BIN)/tidemark down

status: $(VENV)/.runtime  ## what runs, and how far loading has come
	@$(BIN)/tidemark status

test: $(VENV)/.dev  ## the whole test suite, on real Kafka, ClickHouse and Dagster
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 5 $(ARGS)

fmt: $(VENV)/.dev  ## format the code
	@$(BIN)/ruff check --fix --quiet . && $(BIN)/ruff format --quiet .

lint: $(VENV)/.dev  ## what ruff says
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev  ## what mypy says
	@$(BIN)/mypy

check: lint types test  ## all three

bench: $(VENV)/.dev  ## what it costs, beside other ways (docs/performance.md); minutes
	@$(BIN)/python -m bench.micro_batch
	@$(BIN)/python -m bench.latency
	@echo "the capture API beside a peer of yours: $(BIN)/python -m bench.capture --help (needs wrk)"

lock: $(VENV)/.dev  ## resolve the dependencies anew
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet --extra dev pyproject.toml -c requirements.lock -o requirements-dev.lock

clean:  ## remove .venv and caches, not the data
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
