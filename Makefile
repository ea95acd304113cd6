# One command per concern. Everything lives in .venv, under the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.diffmd-installed
TEST_STAMP := $(VENV)/.diffmd-test-installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup build demo test test-slow test-sanitize fuzz gpu-check lint bench validate dashboard clean
help:             ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(STAMP)   ## a virtual environment with the package (editable)
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/* kernels/*/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy scikit-build-core pybind11 cmake ninja
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e .
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

build:            ## rebuild the extension in place after a change to csrc/
	@flock /tmp/diffmd-build.lock $(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation --no-deps -e .

demo: setup       ## sample alanine dipeptide, train butane, and show the figures (demo-output/)
	$(BIN)/python examples/demo.py

test: $(TEST_STAMP)  ## the default tests, under 10 minutes on 2 cores
	$(BIN)/python -m pytest

test-slow: $(TEST_STAMP)  ## the tests marked slow as well
	$(BIN)/python -m pytest -m ''

# The package once more, instrumented, in a folder of its own; its environment borrows the libraries of $(VENV).
SANITIZED := build/sanitize/venv
SANITIZE_STAMP := $(SANITIZED)/.installed
SANITIZE_TESTS ?= tests/test_sanitized.py tests/fuzz tests/ops tests/models tests/sampling
$(SANITIZE_STAMP): $(TEST_STAMP) scripts/sanitized.py $(shell find csrc kernels python -type f -not -name '*.pyc')
	@test -x $(SANITIZED)/bin/python || $(BIN)/python -m venv --without-pip $(SANITIZED)
	$(BIN)/python scripts/sanitized.py install $(SANITIZED)
	@touch $@

test-sanitize: $(SANITIZE_STAMP)  ## the tests of native code under AddressSanitizer and UBSan, 4 minutes
	$(SANITIZED)/bin/python scripts/sanitized.py run -m pytest --capture=sys $(SANITIZE_TESTS)

FUZZ_SECONDS ?= 60
fuzz: $(SANITIZE_STAMP)  ## random shapes, values and files under the sanitizers, FUZZ_SECONDS=60
	$(SANITIZED)/bin/python scripts/sanitized.py run -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_OPTIONS)

# On a machine with a card, in that machine's own python: nothing is installed, and .venv is not looked at.
GPU_PYTHON ?= python3
gpu-check:        ## is the GPU side right on this card, and how fast is it; under 8 minutes (GPU_PYTHON, GPU_OPTIONS)
	@$(GPU_PYTHON) -m scripts.gpu_check $(GPU_OPTIONS)

lint:             ## style of Python and C++
	$(BIN)/python -m pip install -q -c constraints.txt ruff
	$(BIN)/ruff check python tests benchmarks validation examples scripts kernels

bench: setup      ## every operation against reference and peers; the figures go into docs/performance.md
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[bench]'
	cd benchmarks && ../$(BIN)/asv machine --yes && ../$(BIN)/asv run --python=same --set-commit-hash $$(git rev-parse HEAD) --show-stderr
	$(BIN)/python benchmarks/summary.py

validate: $(TEST_STAMP)  ## physics against exact answers and references; writes docs/validation.md
	$(BIN)/python -m validation

dashboard:        ## the static site of all benchmark results, in benchmarks/.asv/html
	cd benchmarks && ../$(BIN)/asv publish

clean:            ## remove builds and outputs, keep the environment
	rm -rf build dist demo-output validation-output
