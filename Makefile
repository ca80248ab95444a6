# The commands of a working day; `make` alone lists them. Nothing but Python 3.11 or newer has to be installed.

PYTHON = .venv/bin/python

.PHONY: help setup test test-all lint format check demo hooks goldens wheel

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## make .venv with the package and everything that its tests need
	@. scripts/env.sh && prepare dev

test: ## run the tests, without those marked exhaustive
	scripts/test

test-all: ## run every test
	scripts/test -m ''

lint: setup ## ruff, mypy and the import contract
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: setup ## format the code and apply ruff's safe fixes
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

check: ## everything that the workflow checks: tests, ruff, mypy, import contract
	.ci/run

demo: ## chat with the bundled model
	scripts/demo

hooks: setup ## run ruff before each commit
	.venv/bin/pre-commit install

goldens: ## write the golden files anew (needs the extra "train")
	$(PYTHON) scripts/make_goldens.py

wheel: setup ## build the wheel into dist/
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
