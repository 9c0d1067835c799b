# Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test paper current lint docs clean setup

demo: setup
	$(BIN)/python -m experiments.run experiment=leakage_vs_epsilon

test: setup
	$(BIN)/python -m pytest

paper: setup
	$(BIN)/python -m experiments.paper

current: setup
	$(BIN)/python -m experiments.paper --check

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	rm -rf build/docs docs/api
	$(BIN)/python -m sphinx -q -W --keep-going -n -j auto -b html docs build/docs
	@echo "Open build/docs/index.html"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Mirage needs Python 3.11 or newer; this is %d.%d (set PYTHON=python3.11, say)" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build docs/api *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis results/runs results/ci
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
