# `make grid` and `make test` set everything up in .venv by themselves; nothing else is needed on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: grid test test-slow lint docs clean

grid: $(VENV)/.base
	$(BIN)/plr grid configs/studies/quickstart.yaml

# Two processes, a file in one of them: what the tests of a file share is made once.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/site; `python docs/fill.py` first where commands, keys or recorded results changed.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# GPTQModel compiles a small extension: without a C compiler the tests that need it skip and say so.
$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev,bitsandbytes]'
	@if command -v cc >/dev/null 2>&1; then $(PIP) -e '.[gptqmodel]'; else echo "no C compiler: GPTQModel is left out"; fi
	@touch $@

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "plr needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	@touch $@

clean:
	rm -rf $(VENV) artifacts runs .pytest_cache .ruff_cache
