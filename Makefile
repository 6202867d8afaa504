# The two commands of the README are `make train` and `make test`; both build .venv when it is missing.

PYTHON ?= python3
# Options for the training run, e.g. make train ARGS="smoke --train.steps 5"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := pyproject.toml constraints.txt $(wildcard native/*)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two workers with one torch thread each: more threads than cores make the tests many times slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: venv install train test lint clean

venv: $(VENV)/.made
install: $(VENV)/.installed

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made $(REQUIREMENTS)
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.made $(REQUIREMENTS)
	$(PIP_INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed

train: $(VENV)/.installed
	$(BIN)/moeworks train $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

# jaxtyping's hook breaks fullgraph compilation, so those tests run in a pass without it. The last pass does what
# depends on the native library once more without it.
test: lint
	$(PYTEST) -m compile --no-jaxtyping
	$(PYTEST) -m 'not compile'
	$(PYTEST) -m 'not compile' --no-native tests/ops/backends tests/layers/test_moe_modes.py tests/train/test_step.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .pyrefly_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
