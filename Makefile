# Each target sets up .venv first (once). Any Python 3.11 or newer will do: make PYTHON=python3.12 quickstart
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
# threads that wait sleep: spinning ones make everything slower as soon as the cores are shared
export OMP_WAIT_POLICY := PASSIVE
# two at a time, a file to each: what starts a server or a training process keeps about one core busy
TWO := -n 2 --dist loadfile --no-loadscope-reorder
FAST := tests/unit tests/adversarial $(TWO)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test unit check clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv and install everything into it
	@$(PYTHON) tools/setup_env.py

quickstart: setup  ## run the whole recipe of recipes/quickstart.yaml (again: only what is not done)
	@$(BIN)/tulu-lite run recipes/quickstart.yaml

unit: setup  ## the fast tests
	@$(BIN)/python -m pytest $(FAST)

test: setup  ## all tests, the real rollout server included
	@$(BIN)/python -m pytest $(FAST)
	@$(BIN)/python -m pytest tests/integration $(TWO)

check: setup  ## style, types and the rules between rooms
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean:  ## remove what runs and tools left, but not .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
