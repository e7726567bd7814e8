# `make demo` and `make test` make a virtual environment if there is none, install, and do it all.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo prefect-demo test test-long test-prefect soak check format lint types bench install

demo: install
	@$(BIN)/python sample_data/demo.py

prefect-demo: install
	@$(BIN)/python sample_data/prefect_demo.py

test: install
	@$(BIN)/pytest -q -n 2 --dist worksteal -m "not long and not prefect"

# Every crash point, 600 random schedules, many drivers that are killed.
test-long: install
	@$(BIN)/pytest -q -n 2 --dist worksteal -m long

# A real Prefect server with a worker and the deployments of prefect.yaml; a Dask cluster of which processes die.
test-prefect: install
	@$(BIN)/pytest -q -n 2 --dist loadfile -m prefect

# Random schedules of several drivers for SECONDS, on both databases in turn.
SECONDS ?= 600
soak: install
	@$(BIN)/python -m tests.simulation --seconds $(SECONDS) --processes 2
	@$(BIN)/python -m tests.simulation --seconds $(SECONDS) --processes 2 --postgresql

check: install
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: install
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Every target of docs/performance.md, up to 10,000,000 rows: up to an hour, and 30 GB of disk. OPTIONS=--quick: less.
bench: install
	@$(BIN)/python benchmarks/bench.py --out docs/performance $(OPTIONS); code=$$?; \
	$(BIN)/python benchmarks/picture.py docs/performance.json docs/performance.svg; exit $$code

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[prefect,dev]'
	@touch $(INSTALLED)
