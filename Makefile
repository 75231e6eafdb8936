# make demo: install and expand the real scans that come with the package. make test, make lint, make benchmarks.

PYTHON ?= python3
VENV ?= .venv
# Further options for the install of torch, such as another index.
TORCH ?=
OUT ?= demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help install demo test slow lint benchmarks clean

help:
	@echo "make demo        synthetic scans from real ones, in $(OUT)/"
	@echo "make test        the whole test suite"
	@echo "make slow        the tests and measurements that the suite leaves out"
	@echo "make lint        style, types and layers"
	@echo "make benchmarks  the figures in the README"
	@echo "make clean       away with $(VENV) and $(OUT)"

install: $(STAMP)

# Torch first and alone: every other package is then resolved against the build that is there.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(PIP) install $(TORCH) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/diffaug expand brain_mri --backbone brain_mri --method da_fusion --method healthy_counterfactual --out $(OUT)

# One thread: the suite's networks are so small that a second one costs more than it brings.
test: $(STAMP)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(ARGS)

slow: $(STAMP)
	@$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

benchmarks: $(STAMP)
	@for name in $(notdir $(basename $(wildcard tests/benchmarks/[a-z]*.py))); do \
		echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name || exit 1; \
	done

clean:
	rm -rf $(VENV) $(OUT)
