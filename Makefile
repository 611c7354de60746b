# Everything runs in .venv, made on first use; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check bench

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: $(VENV)/demo.stamp  ## make the embedded network faster, and show it
	$(BIN)/sinf demo

# Types are checked beside the tests, which leave a core idle at first; what is wrong with them is said at the end.
test: $(VENV)/dev.stamp  ## style, types and all fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy > $(VENV)/mypy.log 2>&1 & mypy=$$!; \
	$(BIN)/python -m pytest -q -n 2 --dist worksteal; tests=$$?; \
	wait $$mypy; types=$$?; cat $(VENV)/mypy.log; exit $$((tests + types))

test-slow: $(VENV)/dev.stamp  ## tests that need minutes, or ../shared
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/dev.stamp  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp  ## measure again what is in benchmarks/results
	$(BIN)/python benchmarks/run.py $(SHARED) $(if $(KEEP),--keep)

# torch first: a package that asks for any torch then finds this one.
$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "sinf needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	$(INSTALL) -e '.[onnx]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(INSTALL) -e '.[dev]'
	touch $@
