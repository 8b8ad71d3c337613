# Everything a newcomer types: make demo, make test. Each sets up what it needs.
PYTHON ?= python3
# One known torch for development and CI; any torch from 2.11 on serves.
TORCH ?= torch==2.13.0
OTHER_TORCH ?= torch
VENV ?= .venv
BIN = $(VENV)/bin
TESTS ?= tests

.PHONY: demo test lint bench gpu-check gpu-bench test-other-torch clean

demo: $(VENV)/.installed
	$(BIN)/fastdiff sample --num 100 --out samples.png
	@echo "look at samples.png"

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu')

# Law 3: the library built above, loaded by the newest torch, a CUDA build.
test-other-torch: $(VENV)/.installed-dev
	PYTHON=$(PYTHON) tests/other_torch.sh "$(OTHER_TORCH)" build/other-torch

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest benchmarks

# On a machine with an NVIDIA GPU, by the Python whose torch sees it: GPU_PYTHON=python3.
GPU_PYTHON ?= $(BIN)/python
RESULTS ?= build

gpu-check:
	$(GPU_PYTHON) tests/gpu_check.py $(RESULTS)/gpu-check

gpu-bench:
	$(GPU_PYTHON) -m pytest benchmarks -m gpu -s --benchmark-json=$(RESULTS)/gpu-bench.json

# Build isolation would fetch a second torch only to compile against it.
$(VENV)/.installed: pyproject.toml setup.py csrc/sources.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" setuptools wheel ninja pybind11
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[triton]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[triton,dev]"
	# Alone: its torchvision would bring another torch. Tests stand in for that.
	$(BIN)/pip install --quiet --no-deps torch-fidelity
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info fastdiff/*.so
