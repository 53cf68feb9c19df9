# Every target sets up what it needs in a private .venv; `make` alone prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-with-constraints
PYTEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-stripe lint-stripe-fixtures stripe-replay lint format up migrate dev-down bench prove prove-long clean

help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (first time: a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(STAMP) ## bill a week of sample usage end to end through Dagster, and account for every unit
	@$(BIN)/billing-pipeline demo

test: $(STAMP) ## run every test
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS)

test-fast: $(STAMP) ## run the tests that need no database, in under a minute
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) -m 'not slow'

test-stripe: $(STAMP) ## run the tests of the webhooks and their live feed alone; below 95 % coverage of their code it fails
	@$(BIN)/python -m coverage run -m pytest -n 0 billing_pipeline_tests/webhooks billing_pipeline_tests/feed billing_pipeline_tests/domain/projections
	@$(BIN)/python -m coverage report --fail-under=95

lint-stripe-fixtures: $(STAMP) ## look at every webhook fixture: its JSON, unique id, API version, type and file name
	@$(BIN)/python -m billing_pipeline_tests.fixtures

stripe-replay: $(STAMP) ## billing-pipeline events with ARGS="list --status failed", "replay --event-id evt_...", ...
	@$(BIN)/billing-pipeline events $(ARGS)

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

up: $(STAMP) ## Dagster UI on 3000 with its daemon, webhook intake on 8000, Stripe simulator on 12111; Ctrl-C stops all
	@exec $(BIN)/billing-pipeline up

migrate: $(STAMP) ## bring the database schema to this version
	@$(BIN)/billing-pipeline migrate

dev-down: $(STAMP) ## stop `make up`, what a killed one left, and the embedded PostgreSQL
	@$(BIN)/billing-pipeline down

bench: $(STAMP) ## measure; ONLY=name runs one
	@$(BIN)/python -m billing_pipeline_tests.bench $(if $(ONLY),--only $(ONLY))

prove: $(STAMP) ## prove that nothing is lost or doubled: 10,000 simulated hours and more; JOB="..." runs one job again
	@$(BIN)/python -m billing_pipeline_tests.prove $(if $(JOB),--job "$(JOB)")

prove-long: $(STAMP) ## the same for a million hours, kept in .billing/proof and gone on with; MINUTES=n stops sooner
	@$(BIN)/python -m billing_pipeline_tests.prove --long --folder .billing/proof $(if $(MINUTES),--minutes $(MINUTES))

clean: ## remove the virtual environment and the local state
	@rm -rf $(VENV) .billing
