# `make demo` does the main job and `make test` the tests; either first builds .venv if it has to. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Your own pip configuration (index, proxy, wheel folder) decides where packages come from; constraints.txt which versions.
# Not compiled: Python does so for what is imported, and most of it never is (a minute less).
# Conflicts are not reported: constraints.txt is tested as a whole, and robosuite's own pins are known not to hold.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --no-warn-conflicts --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest

RENDERING := libegl1 libgl1-mesa-dri
# robosuite pins packages that the rest has outgrown, so it comes without its dependencies and brings these instead. gym-pusht, whose
# dependencies `sim` has, would bring a second OpenCV.
ROBOSUITE_NEEDS := numba opencv-python-headless qpsolvers quadprog termcolor pynput

# Small models on few cores: several processes of one thread beat one process of several.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup system demo test test-thorough test-slow test-faults lint style types imports site bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  DECODER=name chooses the decoder of the demo, ARGS="..." passes anything else on, PYTHON=python3.11 the interpreter.'

setup: system $(INSTALLED) ## create .venv and install everything (other targets do this by themselves)

demo: setup ## collect, pretrain, evaluate, fine-tune a new robot; writes runs/demo/report.html
	$(BIN)/python -m vla demo $(if $(DECODER),--decoder $(DECODER)) $(ARGS)

test: setup ## the quick tests
	$(PYTEST) $(ARGS)

test-thorough: setup ## longer cases of what the quick tests show
	$(PYTEST) -m "thorough and not slow and not faults and not gpu and not network" $(ARGS)

test-slow: setup ## the tests that take minutes
	$(PYTEST) -m "slow and not gpu and not network" --timeout 1800 $(ARGS)

test-faults: setup ## kill, fill, cut and damage things
	$(PYTEST) -m "faults and not gpu and not network" --timeout 1800 $(ARGS)

lint: style types imports ## style, types on the core files, import contracts

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

site: setup ## the documentation as a site, into site/ (strict: a dead link is an error)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup ## measure what docs/performance.md shows (an hour and more)
	@$(BIN)/python -m benchmarks.pages --commands | while read -r command; do \
	  echo "== $$command"; PATH="$(BIN):$$PATH" $$command $(ARGS) || echo "== failed: $$command" >&2; \
	done

clean: ## remove caches and build outputs; .venv, runs and data stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

# The stamp comes last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: constraints.txt holds versions for Python 3.11 and newer. Run: make setup PYTHON=python3.11' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo 'error: no venv module. On Debian run: sudo apt-get install -y python3-venv' >&2; exit 1; }
	@echo 'installing into $(VENV) (a few minutes the first time) ...'
	@# torch alone and first: its build decides about gigabytes of CUDA packages.
	$(PIP) torch
	$(PIP) --editable '.[train,quantize,sim,serve,groot,remote,convert,mcap,tfds,docs,dev]' --editable ./client
	$(PIP) $(ROBOSUITE_NEEDS) && $(PIP) --no-deps robosuite || \
	  echo 'note: the optional robosuite could not be installed (see above); its robots are missing, all else works.' >&2
	$(PIP) --no-deps gym-pusht || echo 'note: gym-pusht could not be installed (see above); the pusht suite is missing, all else works.' >&2
	@touch $@

# Simulators render without a screen, through EGL. macOS brings its own.
system:
	@libraries() { PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p; }; \
	if [ "$$(uname)" != Linux ]; then exit 0; fi; \
	if libraries | grep -q 'libEGL\.so\.1 ' && libraries | grep -qE 'libEGL_(mesa|nvidia)\.so\.0 '; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo 'installing $(RENDERING) for rendering ...'; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(RENDERING) >/dev/null; \
	else \
	  echo 'note: rendering needs two system libraries. Run: sudo apt-get update && sudo apt-get install -y $(RENDERING)' >&2; \
	fi
