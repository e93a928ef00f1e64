# One venv, exact versions from constraints.txt. `make demo` and `make test` need nothing but Python ≥ 3.11 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
# Interpreters with old frameworks, for the tests of `toolchains`: the oldest Python that there is.
TOOLCHAINS := $(VENV)-toolchains
OLD_PYTHON ?= $(shell for minor in 8 9 10 11; do \
	for python in python3.$$minor $(HOME)/.pyenv/versions/3.$$minor.*/bin/python; do \
	"$$python" -m ensurepip --version >/dev/null 2>&1 && echo "$$python" && exit; done; done)

.PHONY: demo test lint types docs bench stress clean

demo: $(VENV)/.demo
	$(BIN)/retarget build examples/digits/recipe.yaml -o build/digits

test: $(VENV)/.dev $(TOOLCHAINS)/tensorflow/.made
	$(BIN)/pytest -n $(WORKERS) -m "not stress and not gpu"

stress: $(VENV)/.dev $(TOOLCHAINS)/tensorflow/.made $(TOOLCHAINS)/pytorch/.made
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
	$(BIN)/python -m benchmarks.frontends
	test -x build/onnx2tf/bin/python || $(BIN)/python -m benchmarks.tflite --install
	$(BIN)/python -m benchmarks.tflite
	$(BIN)/python -m benchmarks.coreml
	$(BIN)/python -m benchmarks.ncnn --install
	$(BIN)/python -m benchmarks.ncnn

clean:
	rm -rf build

# A venv may have been made by hand: pip is run again whenever a pin or a dependency changed.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e ".[coreml,ncnn,pytorch,openvino,tensorrt-rtx,tflite]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip

# 1 GB in a minute for TensorFlow; 3 GB in two for PyTorch, which brings CUDA. Where no Python is old enough, the tests
# that need these are skipped.
$(TOOLCHAINS)/%/.made: tests/toolchains/%.txt
	rm -rf $(@D) && mkdir -p $(@D)
	if test -n "$(OLD_PYTHON)"; then $(OLD_PYTHON) -m venv $(@D) && $(@D)/bin/pip install -q -r $<; fi
	touch $@
