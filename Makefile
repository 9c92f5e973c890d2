# `make demo` and `make test` are all that a newcomer needs; both make .venv first when it is missing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: venv demo test test-jax torch-available test-torch test-slow lint notebooks clean

venv: .venv/installed

# The stamp is written last, so that an interrupted installation is done again.
.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: venv
	$(BIN)/partialseg demo --out demo

# What is written on keras.ops alone gives the same numbers on each backend; the rest is TensorFlow's, as strategies are.
ON_ANY_BACKEND := tests/losses tests/models partialseg/losses partialseg/models --ignore=tests/losses/test_replicas.py

# Test files are shared out among so many processes; each takes up to 2 GB.
TEST_JOBS ?= 2

test: lint
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_JOBS) --dist loadfile --durations=15
	$(MAKE) test-jax

# Each test compiles something else, once: nothing is gained by letting XLA optimise it, which takes two fifths of the time.
test-jax: venv
	XLA_FLAGS=--xla_backend_optimization_level=0 KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow" -n $(TEST_JOBS) --dist loadfile --durations=5 $(ON_ANY_BACKEND)

# The CPU build, by its full version: what PyPI has under this number brings gigabytes of CUDA on Linux.
# Where pip does not find it, see CONTRIBUTING.md.
TORCH ?= torch==2.13.0+cpu

torch-available: venv
	$(BIN)/python -m pip install --dry-run --quiet --disable-pip-version-check -c constraints.txt --no-deps '$(TORCH)'

test-torch: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '$(TORCH)'
	OMP_NUM_THREADS=1 KERAS_BACKEND=torch $(BIN)/python -m pytest -m "not slow" -n $(TEST_JOBS) --dist loadfile --durations=5 $(ON_ANY_BACKEND)
	$(BIN)/python -m pytest -m slow --durations=5 tests/training/test_backends.py -k torch

# Whole trainings: the demo, a study, real label maps dressed as CT.
test-slow: venv
	$(BIN)/python -m pytest -m slow -n $(TEST_JOBS) --dist loadfile --durations=15

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The .py files are the source; this makes the .ipynb files from them and runs them. The state of widgets, which holds all
# of their JavaScript and their volumes, is not kept.
notebooks: venv
	$(BIN)/jupytext --to ipynb --execute notebooks/*.py
	$(BIN)/jupytext --quiet --update-metadata '{"widgets": null}' notebooks/*.ipynb

clean:
	rm -rf .venv demo build *.egg-info
