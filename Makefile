# `make` alone lists the targets. Each sets up what it needs and can be run twice.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo check test lint format mutation sanitize docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: .venv/.installed ## make .venv and install everything; again at once
	@:

.venv/.installed: pyproject.toml setup.py $(wildcard data_prep/codec/*.c data_prep/codec/*.h) $(wildcard requirements/*.txt) scripts/setup.sh
	@PYTHON='$(PYTHON)' scripts/setup.sh

demo: setup ## the whole path on generated textures, on the CPU: prepare, train, compare, search
	@$(BIN)/python scripts/demo.py

TEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint ## formatting, types, layers and the tests that take a moment, in at most three minutes
	@OMP_NUM_THREADS=1 $(TEST) -m "not slow" --ignore tests/faults --ignore tests/integration

test: setup ## all tests, in two processes: first clusters that fail, then the others
	@test -n "$$PHASECOLLAPSE_SHARED" || echo "PHASECOLLAPSE_SHARED is not set: tests on golden files and photographs are skipped"
	@$(TEST) tests/faults
	@$(TEST) --ignore tests/faults

lint: setup ## formatting, lint, types, import layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## format the code and apply ruff's fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

mutation: setup ## break the code on purpose, one line at a time, and see that a test fails each time
	@$(BIN)/python -m tests.mutation

sanitize: setup ## the compiled decoder under the address and undefined-behavior sanitizers: its tests, damaged files
	@$(BIN)/python -m tests.sanitize

docs: setup ## write the reference pages from the code, and build the site into build/site; fails at a broken link
	@$(BIN)/python scripts/reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site
	@echo "build/site/index.html"
