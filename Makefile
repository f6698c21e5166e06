# `make help` lists everything. Each target does its own set-up; nothing needs to be prepared but Python 3.11 or later.

SHELL := /bin/sh
VENV := .venv
PYTHON ?=
NODES ?=
MODE ?= kraft
MINUTES ?= 30
SEED ?=
ARGS ?=
JOBS ?= 3

STAMP := $(VENV)/.stamp
BIN := $(VENV)/bin

# The first Python that is recent enough; a command may be there and be old, or be a stub that cannot run.
FIND_PYTHON = python=; for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then echo "stockstream needs Python 3.11 or later, and python3 here is: $$(python3 --version 2>&1 | head -n 1)" >&2; exit 1; fi

NO_BROKER := tests/unit tests/test_architecture.py
WITH_BROKER := tests/faults tests/integration tests/browser
# Without a broker one for each core, at least three; those with brokers mostly wait (CONTRIBUTING.md, Tests)
PYTEST_NO_BROKER := $(BIN)/python -m pytest -n auto --dist worksteal $(NO_BROKER)
PYTEST_WITH_BROKER = $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(WITH_BROKER)
# pytest's status 5: none of these tests is among those that ARGS choose
IF_SOME = $(if $(ARGS),|| [ $$? -eq 5 ])

.DEFAULT_GOAL := help
.PHONY: help setup demo check test-quick test lint kafka kafka-stop soak bench bench-quick sources lambda schema lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything that running, tests and development need

$(STAMP): pyproject.toml constraints.txt
	@$(FIND_PYTHON); \
	echo "setting up $(CURDIR)/$(VENV) with $$($$python --version), once: about a minute" >&2; \
	echo "  1/3 a virtual environment" >&2; \
	$$python -m venv --clear $(VENV) || { echo "$$python cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2; exit 1; }; \
	echo "  2/3 uv, which installs faster than pip" >&2; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv || echo "no uv; going on with pip" >&2; \
	echo "  3/3 packages" >&2; \
	if ! { [ -x $(BIN)/uv ] && $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test,dev]'; }; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]' || exit 1; \
	fi; \
	touch $(STAMP); \
	echo "  done; to have stockstream and faust in this shell: . $(VENV)/bin/activate" >&2

demo: $(STAMP) ## Run everything on a simulated market; ARGS="--minutes 5 --port 7000", KAFKA=1 for real Kafka
ifeq ($(KAFKA),1)
	@exec $(BIN)/python deploy/kafka/cluster.py run $(if $(NODES),--nodes $(NODES)) --mode $(MODE) -- \
		sh -c 'exec "$$0" demo --broker "$$STOCKSTREAM_BROKER" "$$@"' $(BIN)/stockstream $(ARGS)
else
	@exec $(BIN)/stockstream demo $(ARGS)
endif

check: $(STAMP) ## Before every commit: lint beside the quick tests, which need no broker
	@$(MAKE) --no-print-directory -j2 lint test-quick

test-quick: $(STAMP) ## The quick tests alone; ARGS="-k windows" for some
	$(PYTEST_NO_BROKER) -m "not slow" $(ARGS)

test: lint ## Lint, then all tests; ARGS="-k windows" for some, JOBS=1 for those with brokers one after the other
	@failed=0; \
	$(PYTEST_NO_BROKER) $(ARGS) $(IF_SOME) || failed=1; \
	$(PYTEST_WITH_BROKER) $(ARGS) $(IF_SOME) || failed=1; \
	exit $$failed

lint: $(STAMP) ## ruff, mypy strict, and who may import whom
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

kafka: ## Start real Kafka on this machine and print its address; NODES=1..3, MODE=zookeeper
	@$(FIND_PYTHON); exec $$python deploy/kafka/cluster.py start $(if $(NODES),--nodes $(NODES)) --mode $(MODE)

kafka-stop: ## Stop it; its data stays in data/kafka
	@$(FIND_PYTHON); exec $$python deploy/kafka/cluster.py stop

soak: $(STAMP) ## Faults at random on three brokers; MINUTES=30 SEED=7, ARGS="--fuzz 10" for hostile input
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(STAMP) ## Side-by-side measurements
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(STAMP) ## The same in short
	$(BIN)/python -m benchmarks --quick $(ARGS)

sources: $(STAMP) ## Yahoo's stream at full size with every fault, 15 minutes; ARGS="--seconds 60 --symbols 100"
	$(BIN)/python -m benchmarks.sources $(ARGS)

lambda: $(STAMP) ## Make dist/lambda_alerts.zip, the function that publishes alerts to SNS
	@mkdir -p dist && rm -f dist/lambda_alerts.zip
	@$(BIN)/python -m zipfile -c dist/lambda_alerts.zip scripts/lambda_alerts.py && echo dist/lambda_alerts.zip, with the handler lambda_alerts.handler

schema: $(STAMP) ## Write docs/asyncapi.json anew from the code
	$(BIN)/python -m stockstream.schema > docs/asyncapi.tmp && mv docs/asyncapi.tmp docs/asyncapi.json

lock: $(STAMP) ## Renew constraints.txt within what pyproject.toml allows; one version of a package for all Pythons and systems
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --all-extras --upgrade --no-header --no-annotate pyproject.toml -o build.lock
	@{ sed 's/ ;.*//' build.lock; $(BIN)/uv --version | sed 's/uv \([^ ]*\).*/uv==\1/'; } | LC_ALL=C sort -u > constraints.txt; rm build.lock

clean: ## Delete .venv, caches and builds; ./data stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
