# One command per concern. Everything lives in .venv, under the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.diffmd-installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup build demo test test-slow lint bench dashboard clean
help:             ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(STAMP)   ## a virtual environment with the package (editable), its tests and its tools
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/* kernels/*/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch numpy scikit-build-core pybind11 ninja
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

build:            ## rebuild the extension in place after a change to csrc/
	@flock /tmp/diffmd-build.lock $(BIN)/pip install -q -c constraints.txt --no-build-isolation --no-deps -e .
