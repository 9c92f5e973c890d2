# `make demo` and `make test` are all that a newcomer needs; both make .venv first when it is missing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: venv demo test test-slow lint notebooks clean

venv: .venv/installed

# The stamp is written last, so that an interrupted installation is done again.
.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: venv
	$(BIN)/partialseg demo --out demo

test: lint
	$(BIN)/python -m pytest -m "not slow" --durations=15

# Whole trainings: the demo, a study, real label maps dressed as CT.
test-slow: venv
	$(BIN)/python -m pytest -m slow --durations=15

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The .py files are the source; this makes the .ipynb files from them and runs them.
notebooks: venv
	$(BIN)/jupytext --to ipynb --execute notebooks/*.py

clean:
	rm -rf .venv demo build *.egg-info
