# `make demo` and `make test` need Python 3.11 to 3.13 and make, nothing else.
# Another Python:  make test PYTHON=python3.12

PYTHON ?= python3
JOBS ?= 2
OUT ?= runs/demo
BIN := .venv/bin
READY := .venv/.ready

# Waiting threads sleep instead of spinning: a factor of 4 to 10 where cores are shared.
export OMP_WAIT_POLICY := passive

.PHONY: help install demo test lint types unit format checksums clean

help:
	@echo "make demo     shipped models at work: denoising, a race, a small comparison, a report"
	@echo "make test     lint, types and all tests"
	@echo "make install  only the .venv (both of the above see to it)"
	@echo "make format   mend what the formatter and linter can mend"
	@echo "make clean    remove the .venv and caches; runs/ stays"

install: $(READY)

# --no-compile: Python compiles what it imports; compiling all of torch ahead takes longer than all else.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: redraft needs Python 3.11 to 3.13. Name one: make install PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: this Python has no venv module. Install it (Debian, Ubuntu: python3-venv)." >&2; exit 2; }
	@echo "Installing into .venv: pip fetches torch and more, which takes some minutes and says nothing meanwhile."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(READY)

demo: $(READY)
	$(BIN)/redraft demo --out $(OUT)

test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# One torch thread per worker: two workers of two threads on two cores only wait for each other.
unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

# After adding or changing a checkpoint; `redraft doctor` and a test verify them.
checksums:
	cd zoo && sha256sum */* > SHA256SUMS

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
