# Every target does its own set-up: a machine needs Python 3.11 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Two workers of one thread each: TensorFlow starts twice, and both cores stay busy.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-fast lint bench reliability clean

demo: .venv/installed
	$(BIN)/keras-distill demo

test: .venv/installed
	$(PYTEST)

test-fast: .venv/installed
	$(PYTEST) -m "not slow"

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m benchmarks

reliability: .venv/installed
	$(BIN)/python tests/reliability/report.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,lint]"
	touch $@

clean:
	rm -rf .venv
