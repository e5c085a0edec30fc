# Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DONE   := .cache/test-all

# What may change the outcome of a test, and the folders of tests that hold slow ones.
SOURCES := $(shell find engine storage jobs migrations ops tests -name '*.py' -o -name '*.c') \
           nightmill.py submit_job.py pyproject.toml constraints.txt
SLOW    := $(sort $(shell grep -rl --include='*.py' 'mark\.slow' tests | cut -d/ -f2))

.PHONY: install models demo check test test-all bench bench-quick bench-publish clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "No Python 3.11 or newer found (tried python3.11, python3.12, python3.13, python3)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

models: install
	$(BIN)/python -m ops.demo.models

demo: install
	$(BIN)/python -m ops.demo.models gemma3-270m
	$(BIN)/python -m ops.demo.run

# --- tests: each tier contains the one before -----------------------------------------------------------------

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit -n 2

# Two test processes with one thread each: on two cores, threads that wait for one another cost more than they give.
# Files in their order: by number of tests, as xdist would have them, the long ones come last and one process waits.
test: check models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/unit -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

# Resumable: a part that passed is not run again before a source changes.
test-all: $(DONE)/test $(SLOW:%=$(DONE)/%)

$(DONE)/test: $(SOURCES)
	$(MAKE) test
	@mkdir -p $(DONE) && touch $@

$(SLOW:%=$(DONE)/%): $(DONE)/%: $(SOURCES) | $(DONE)/test
	$(BIN)/python -m pytest tests/$* -m slow --timeout 3000
	@touch $@

# --- measurements ---------------------------------------------------------------------------------------------

# Resumable; the first call sets up an environment for each peer, which builds llama.cpp.
bench: models
	$(BIN)/python -m ops.bench.run

# Share of the limit and ratio to transformers, beside the last committed ones of this processor.
bench-quick: models
	$(BIN)/python -m ops.bench.quick

# The results of `bench` and `bench-quick` become the committed ones of this processor: table, lines, plot.
bench-publish: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m ops.bench.publish

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache $(DONE)
