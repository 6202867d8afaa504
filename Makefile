# The two commands of the README are `make train` and `make test`; both build .venv when it is missing.

PYTHON ?= python3
# Options for the training run, e.g. make train ARGS="smoke --train.steps 5"
ARGS ?=
# Each package's tested version, and the environment that has them. `make test-floor` takes others of both.
CONSTRAINTS ?= constraints.txt
VENV ?= .venv

BIN := $(VENV)/bin
# What an installation is made of, by content: a changed pin or source installs again, a new checkout of the same does not.
CONTENT := $(shell cat pyproject.toml $(CONSTRAINTS) native/* | cksum | tr ' ' '-')
INSTALLED := $(VENV)/.installed-$(CONTENT)
INSTALLED_DEV := $(VENV)/.installed-dev-$(CONTENT)
# In the environment, so that pip follows them where it builds packages as well: old versions of it read the first
# variable there, new ones the second.
export PIP_CONSTRAINT := $(CONSTRAINTS)
export PIP_BUILD_CONSTRAINT := $(CONSTRAINTS)
# Errors only: a machine with package folders of its own gets a warning for each package that is not in them.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
# Two workers with one torch thread each: more threads than cores make the tests many times slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: venv install install-dev train test test-floor test-isa lint update clean

venv: $(VENV)/.made
install: $(INSTALLED)
install-dev: $(INSTALLED_DEV)

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(INSTALLED): $(VENV)/.made
	@echo "Installing into $(VENV): the first time takes minutes"
	@rm -f $(VENV)/.installed*
	$(PIP_INSTALL) -e .
	@touch $@

$(INSTALLED_DEV): $(VENV)/.made
	@echo "Installing into $(VENV), with all that the tests take: the first time takes minutes"
	@rm -f $(VENV)/.installed*
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(INSTALLED)

train: $(INSTALLED)
	$(BIN)/moeworks train $(ARGS)

lint: $(INSTALLED_DEV)
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

# The same tests with the oldest versions that pyproject.toml allows.
test-floor:
	$(MAKE) test VENV=.venv-floor CONSTRAINTS=constraints-floor.txt

# What computes, under instruction sets and numbers of threads of other machines: no test may rest on the rounding
# of one processor. torch, oneDNN and MKL each have their switch; none goes beyond what this processor has.
COMPUTING := tests/layers tests/models tests/ops tests/parity tests/train tests/generate tests/doctor
test-isa: $(INSTALLED_DEV)
	MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default $(PYTEST) -m 'not compile' $(COMPUTING)
	MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m 'not compile' $(COMPUTING)
	MKL_CBWR=AVX512 ONEDNN_MAX_CPU_ISA=AVX512_CORE ATEN_CPU_CAPABILITY=avx512 $(PYTEST) -m 'not compile' $(COMPUTING)
	OMP_NUM_THREADS=3 $(BIN)/python -m pytest -n 1 -m 'not compile' $(COMPUTING)

# Moves the pins to the newest versions that suit Python 3.11 and all later ones at once, and those of the floor to
# the oldest that pyproject.toml allows on 3.11, with the newest of what it does not name.
RESOLVE := $(BIN)/uv --quiet pip compile pyproject.toml constraints.in --all-extras --python-version 3.11 \
	--no-annotate --upgrade --custom-compile-command "make update"
update: $(VENV)/.made
	$(PIP_INSTALL) uv
	$(RESOLVE) --universal --fork-strategy fewest --output-file constraints.txt
	$(RESOLVE) --resolution lowest-direct --output-file constraints-floor.txt

clean:
	rm -rf $(VENV) .venv-floor build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .pyrefly_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
