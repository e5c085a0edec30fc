# Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install models demo check test test-all bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

models: install
	$(BIN)/python -m ops.demo.models

demo: models
	$(BIN)/python -m ops.demo.run

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit -n 2

test: check models
	$(BIN)/python -m pytest tests -m "not slow" --ignore tests/unit

test-all: test
	$(BIN)/python -m pytest tests -m slow

bench: models
	$(BIN)/python -m ops.bench.run

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
