# Everything below creates .venv by itself; only Python 3.11+ and make are needed.
SHELL := /bin/bash
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
READY := .venv/.ready
# Two processes: much of a test is waiting for Ray to start. A file's tests share what they made, and
# tests/conftest.py says which files share a process.
# After a crash the other one goes on to its end: with a new process pytest-xdist would wait for ever.
SIDE_BY_SIDE := -n 2 --dist loadgroup --no-loadscope-reorder --max-worker-restart=0
# A test that hangs ends after five minutes, with the stacks of all threads. Slow ones may take longer.
NONE_HANGS := -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

.PHONY: help demo quick test browser coverage test-all check bench bundled-model clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Where this is set, every process compiles anew what it imports, PyTorch for ten seconds; and
# pytest what it tests.
unexport PYTHONDONTWRITEBYTECODE
# So byte code is made at once, for those who run .venv/bin/meld themselves: on all cores, where
# pip would do it on one.
# A file that does not compile is one that nobody imports: it stops no installation.
NEVER_IMPORTED := /(tests?|testing|_inductor|rllib|tune|serve|dashboard|autoscaler|triton)/|/transformers/models/(?!auto|bert/)
# --no-deps: requirements.txt is the whole closure, every file pinned by hash.
$(READY): requirements.txt requirements-faces.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "meld needs Python 3.11, 3.12 or 3.13 on the PATH (or: make PYTHON=/path/to/python $(MAKECMDGOALS))"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --require-hashes -r requirements.txt -r requirements-faces.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -j 0 -x '$(NEVER_IMPORTED)' .venv/lib || true
	@touch $@

demo: $(READY) ## generated corpus -> features -> trained models -> what fusion gained, a prediction
	$(BIN)/meld demo --out demo

quick: $(READY) ## the tests that start neither Ray nor a child process, while you write
	$(BIN)/python -m pytest --quick $(SIDE_BY_SIDE) $(NONE_HANGS)

test: $(READY) ## the tests that must always pass
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE) $(NONE_HANGS)

browser: $(READY) ## what the tests of pages need beside an installed Chromium
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-browser.txt

coverage: $(READY) ## the same, and the lines that ran, in this process, Ray's and all others
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE) $(NONE_HANGS) --cov --cov-report=term:skip-covered

test-all: $(READY) ## the slow ones too (kill -9 hundreds of times, the whole demo)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

check: $(READY) ## format, lint, types, layout, the recipes of containers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tests/layout.py
	$(BIN)/python tests/recipes.py

bench: $(READY) ## ratios against the floor and against the tutorial way
	$(BIN)/python -m bench

DATA ?= data
bundled-model: $(READY) ## train the model that the package carries, on MELD's CSVs in DATA=folder
	$(BIN)/python -m fusion.bundled.make --data "$(DATA)"

clean: ## remove what the targets made, but not features/ or runs/
	rm -rf .venv demo
