# One venv, exact versions from constraints.txt. `make demo` and `make test` need nothing but Python ≥ 3.11 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint types docs bench stress clean

demo: $(VENV)/.demo
	$(BIN)/retarget build examples/digits/recipe.yaml -o build/digits

test: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) -m "not stress and not gpu"

stress: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) -m "stress" --timeout 1800

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/python tests/conformance/support_table.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.optimize
	$(BIN)/python -m benchmarks.emit

clean:
	rm -rf build

# A venv may have been made by hand: pip is run again whenever a pin or a dependency changed.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e ".[all]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
