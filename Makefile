# Every target makes the virtual environment if there is none. `make demo` installs the package alone; the other targets
# add Prefect and the tools of the tests to the same environment. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
DEMO_INSTALLED := $(VENV)/.demo-installed
INSTALLED := $(VENV)/.installed

# Processes of tests would compile each module again, which takes a tenth of their time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo prefect-demo test test-long test-prefect test-browser soak check format package bench install help

demo: $(DEMO_INSTALLED) ## run the sample job of 500 rows against the emulator, offline (what `make` alone does)
	@$(BIN)/python sample_data/demo.py

prefect-demo: install ## run the same as Prefect flows, with a temporary Prefect server
	@$(BIN)/python sample_data/prefect_demo.py

test: install ## run the tests, offline
	@$(BIN)/pytest -q -n 2 --dist worksteal -m "not long and not prefect and not browser"

# Each crash point, on SQLite and PostgreSQL in turn, 120 random schedules, many drivers that are killed.
test-long: install ## run the long proofs: crash points, random schedules, killed drivers
	@$(BIN)/pytest -q -n 2 --dist worksteal -m long

# A real Prefect server with a worker and the deployments of prefect.yaml; a Dask cluster of which processes die.
test-prefect: install ## run the tests with a real Prefect server and a Dask cluster
	@$(BIN)/pytest -q -n 2 --dist loadfile -m prefect

# Debian's package chromium, or another Chromium in the path.
test-browser: install ## run the tests that open a report in a browser, which needs Chromium
	@$(BIN)/pytest -q -m browser

# Random schedules of several drivers for SECONDS, on both databases in turn, and each crash point on both.
SECONDS ?= 600
soak: install ## run more random schedules, for SECONDS on each database, and each crash point on both
	@$(BIN)/python -m tests.proofs.simulation --seconds $(SECONDS) --processes 2
	@$(BIN)/python -m tests.proofs.simulation --seconds $(SECONDS) --processes 2 --postgresql
	@CRASH_POINTS=all $(BIN)/pytest -q -n 2 -m long tests/proofs/test_crash_points.py

check: install ## check format, lint, types and layers, then run the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(MAKE) --no-print-directory test

format: install ## format the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

package: install ## build the sdist and the wheel, install each alone and run a job with it
	@$(BIN)/python .ci/package.py

# Every target of docs/performance.md, up to 10,000,000 rows: up to an hour, and 30 GB of disk. OPTIONS=--quick: less.
bench: install ## measure the figures of docs/performance.md (OPTIONS=--quick measures fewer)
	@$(BIN)/python benchmarks/bench.py --out docs/performance $(OPTIONS); code=$$?; \
	case " $(OPTIONS)" in *" --against"*) exit $$code;; esac; \
	$(BIN)/python benchmarks/picture.py docs/performance.json docs/performance.svg; exit $$code

install: $(INSTALLED) ## make the virtual environment, with the package and all tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile

$(DEMO_INSTALLED): pyproject.toml
	@echo "installing the package alone into $(VENV): about a minute, 560 MB (make install adds the tools)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $(DEMO_INSTALLED)

# All that the demo needs is part of this, so that after it `make demo` installs nothing.
$(INSTALLED): pyproject.toml
	@echo "installing the package, Prefect and the tools of the tests into $(VENV): a few minutes, 1.5 GB"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[prefect,dev]'
	@touch $(DEMO_INSTALLED) $(INSTALLED)
