# Each target is all that one types on a fresh machine with Python 3.11 and make: it
# creates .venv, installs what it needs there, and runs. A second call installs nothing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

# What `make quick` runs on.
BACKEND ?= torch

.PHONY: help demo test quick check bench lint types size wheel docs docs-serve docs-check
ifndef INSTALLED
.NOTPARALLEL: # two installations into one .venv would trip over each other
endif

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: .venv/.has-demo ## train on real data, compare with Keras, write demo-output/
	$(BIN)/python demo/run.py

test: .venv/.has-test ## the tests, on TensorFlow, JAX, torch and tf-keras
	$(BIN)/python tools/run_tests.py

quick: .venv/.has-test ## the tests to run after each change, on one backend: BACKEND=jax
	$(BIN)/python tools/run_tests.py --quick $(BACKEND) -q

# The tests keep two cores busy by themselves, each of the others but one.
INSTALLATIONS := $(addprefix .venv/.has-,lint test build docs)
check: $(INSTALLATIONS) ## lint, types, wheel, docs-check, test: what a change must pass
	$(MAKE) INSTALLED=1 --jobs=2 --output-sync=target lint types wheel docs-check
	$(MAKE) test

bench: .venv/.has-bench ## time the losses against their peers, write benchmarks/results/
	$(BIN)/python benchmarks/cross_entropy.py
	$(BIN)/python benchmarks/linear_cross_entropy.py

lint: .venv/.has-lint ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.has-lint ## static types
	$(BIN)/mypy
	$(BIN)/python tools/check_types.py

wheel: .venv/.has-build ## build sdist and wheel, import the wheel in a clean environment
	$(BIN)/python tools/check_wheel.py

docs: .venv/.has-docs ## build the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: .venv/.has-docs ## show it on this machine, and build anew what changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

docs-check: docs ## build it, and look at every page in a browser (needs chromium)
	$(BIN)/python -m pytest tests/site

size: ## a report on the shape of our own code
	@$(PYTHON) tools/size.py

$(BIN)/python:
	$(PYTHON) -m venv .venv

# The stamp of a set of extras: made anew, by an installation, when pyproject.toml changes.
.venv/.has-%: pyproject.toml | $(BIN)/python
	@echo "Installing what [$*] needs into .venv; the first time takes minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
