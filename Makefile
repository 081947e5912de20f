# The one way to run anything; .ci/run calls the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help
help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: install
install: $(VENV)/installed ## install the package and its tools into .venv

.PHONY: test
test: install ## run all tests but those of the images
	$(BIN)/pytest tests/unit tests/integration tests/netns

.PHONY: style
style: install ## check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: types
types: install ## check types
	$(BIN)/mypy

.PHONY: format
format: install ## mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
