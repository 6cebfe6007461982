# Every target does its own set-up: a machine needs Python 3.11 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Two workers of one thread each: TensorFlow starts twice, and both cores stay busy. Files keep the order that
# tests/conftest.py gives them, the longest first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
ON_JAX := tests/contract tests/losses tests/teachers/test_ensemble.py tests/teachers/test_moving_average.py \
	tests/specialists/test_combiner.py tests/specialists/test_training.py tests/targets/test_store.py \
	tests/targets/test_batches.py tests/targets/test_labelled_batches.py tests/test_distiller.py \
	tests/test_distiller_features.py tests/test_logits.py tests/test_structured_outputs.py tests/cli/test_distill.py \
	tests/cli/test_label.py tests/cli/test_teacher_formats.py tests/deploy/test_other_backends.py \
	tests/targets/test_tokens.py tests/targets/test_augmentation.py tests/targets/test_layer_step.py tests/targets/test_growing.py \
	tests/test_inner_layers.py tests/examples/test_cifar100.py
NOTEBOOKS := $(patsubst docs/%.md,build/%.ipynb,$(filter-out %/index.md,$(wildcard docs/tutorials/*.md)))

.PHONY: demo test test-slow test-jax lint docs bench results reliability clean

demo: .venv/installed
	$(BIN)/keras-distill demo

test: .venv/installed
	$(PYTEST) -m "not slow"

# What takes long: thousands of random models, whole journeys, other processes and environments.
test-slow: .venv/installed
	$(PYTEST) -m slow

# What must run on JAX, once more on JAX, where TensorFlow is as if it were not installed.
test-jax: .venv/installed
	KERAS_BACKEND=jax $(PYTEST) -m "not slow" $(ON_JAX)

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, into build/site. Tutorials are run, two at a time, where their text has changed since. Not --quiet, which
# keeps --strict from seeing warnings. NO_MKDOCS_2_WARNING:
# its theme advertises a successor on every run.
docs: .venv/installed
	$(MAKE) --no-print-directory -j 2 $(NOTEBOOKS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build/tutorials/%.ipynb: docs/tutorials/%.md docs/run_tutorial.py .venv/installed
	$(BIN)/python docs/run_tutorial.py $< $@

bench: .venv/installed
	$(BIN)/python -m benchmarks

# The tables of README.md and docs/results.md, out of docs/results/*.json; what writes those says each file's "command".
results: .venv/installed
	$(BIN)/python -m examples.results

# The promises of docs/reliability.md, kept or broken, and its figures.
reliability: .venv/installed
	$(BIN)/python tests/reliability/report.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,lint,tables,text,tflm,jax,ray,hub,docs]"
	touch $@

clean:
	rm -rf .venv build/tutorials
