SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PRODUCT := {{cookiecutter.project_slug}}
VENV ?= .venv
VENV_BIN := $(abspath $(VENV))/bin
INTO ?= build

# A cache in the product's folder would be baked.
export RUFF_NO_CACHE := true
export PATH := $(VENV_BIN):$(PATH)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: environment
environment: ## prepare .venv from requirements.txt; every target below does it first
	@"$(PRODUCT)/scripts/venv" requirements.txt "$(VENV)"

.PHONY: demo
demo: environment ## the main job from start to end on this machine (KEEP=dir keeps the project)
	@python scripts/demo.py

.PHONY: bake
bake: environment ## make a project in INTO=build (ARGS="--no-input license=MIT")
	@mkdir -p "$(INTO)"
	@cookiecutter . --output-dir "$(INTO)" $(ARGS)

.PHONY: test
test: environment ## run every test (ARGS="-k hostile")
	@pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: test-fast
test-fast: environment ## run the tests that need no generated environment: under a minute
	@pytest -m "not slow" -n 2 $(ARGS)

.PHONY: lint
lint: environment ## check format and style of both layers
	@ruff format --quiet --check . || { echo "not in format: run make format" >&2; exit 1; }
	@ruff check --quiet .

.PHONY: format
format: environment ## put the code of both layers in its one format
	@ruff check --quiet --fix-only .
	@ruff format .

.PHONY: lock
lock: environment ## refresh requirements.txt and the product's requirements/ (UPGRADE=1 takes the newest versions)
	@scripts/lock

.PHONY: bench
bench: environment ## measure, and write docs/benchmarks.md (ARGS="--only cli")
	@python -m benchmarks $(ARGS)

.PHONY: bench-serving
bench-serving: environment ## measure the service, and write docs/benchmarks-serving.md (ARGS="--only first")
	@python -m benchmarks.serving $(ARGS)

.PHONY: soak
soak: environment ## load a service for 10 minutes and send it 5,000 generated requests (ARGS="--minutes 2")
	@python -m soak $(ARGS)
