# Every target sets up what it needs. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

.PHONY: demo linkage sim sim-full test long properties fuzz check bench bench-market bench-ledger bench-growth bench-poe bench-trade bench-hem bench-forecast bench-savings bench-plan flood scenarios format clean help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))' || \
	  { echo "hearthgrid needs Python 3.11 to 3.13: make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Ten homes trade for a day; report in out/demo (ARGS="--homes 10 --seed 1 …")
	$(BIN)/hearthgrid demo --out out/demo $(ARGS)

sim: $(STAMP) ## Try to break consensus: SEED=42 replays one schedule, SEEDS=10000 runs many
	$(BIN)/hearthgrid sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),100)) $(ARGS)

sim-full: $(STAMP) ## The same with the real ledger in it: SEED=42 (VALIDATORS=5), SEEDS=90
	$(BIN)/hearthgrid sim --full $(if $(SEED),--seed $(SEED) --validators $(or $(VALIDATORS),4),--seeds $(or $(SEEDS),90)) $(ARGS)

scenarios: $(STAMP) ## The papers' examples, one after the other, each over a broker and four validators
	@set -e; for name in $$($(BIN)/hearthgrid scenario list --names); do $(BIN)/hearthgrid scenario run $$name; done

linkage: $(STAMP) ## Who is who? The attack on a month of trading addresses, fixed and fresh (ARGS="--days 30 --study")
	@mkdir -p out
	$(BIN)/hearthgrid linkage --chart out/linkage.svg $(ARGS)

test: $(STAMP) ## Run the tests (ARGS="-k name" to choose)
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not long" $(ARGS)

long: $(STAMP) ## The tests that take a minute each: days offline and clock steps of real homes
	$(BIN)/python -m pytest -n 4 --dist worksteal -m long $(ARGS)

properties: $(STAMP) ## Property tests, 2,000 new examples each, where `make test` takes the same few
	$(BIN)/python -m pytest -n 4 --dist worksteal --timeout 3600 --hypothesis-profile=search tests/market tests/ledger tests/wire tests/hem $(ARGS)

fuzz: $(STAMP) ## Fuzz by coverage: TARGET=name (default: all in turn) SECONDS=60 for each
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),60) $(TARGET)

flood: $(STAMP) ## One home floods a market in every way: how long the others wait (ARGS="--kinds bids --addresses 32 --json")
	$(BIN)/python -m bench.flood $(ARGS)

check: $(STAMP) ## Formatting, lint, strict typing, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

bench: $(STAMP) ## Benchmarks: how fast a market clears
	$(BIN)/python -m bench.clearing $(ARGS)

bench-market: $(STAMP) ## Every auction from 100 to 1,000,000 orders, beside numpy and pymarket (ARGS="--short")
	$(BIN)/python -m bench.market $(ARGS)

bench-ledger: $(STAMP) ## Four validators on a real broker: throughput, finality, cost (ARGS="--broker embedded")
	$(BIN)/python -m bench.ledger $(ARGS)

bench-poe: $(STAMP) ## Who leads under TMI's rule and ours, 30 days with cheats (ARGS="--days 30 --seed 1")
	@mkdir -p out
	$(BIN)/hearthgrid poe --chart out/poe.svg $(ARGS)

bench-trade: $(STAMP) ## How long a trade takes, offer to final acceptance; PETra's histogram in out/trade.svg (ARGS="--trades 1000")
	$(BIN)/python -m bench.trade --chart out/trade.svg $(ARGS)

bench-growth: $(STAMP) ## What grows with the chain: a transaction, disk, joining, a light client (ARGS="--out out/growth")
	$(BIN)/python -m bench.growth $(ARGS)

bench-hem: $(STAMP) ## A whole HEM on this machine: memory, idle CPU, disk writes, start, imports (ARGS="--short")
	$(BIN)/python -m bench.hem $(ARGS)

bench-savings: $(STAMP) ## What a battery saves measured homes, by who controls it; an hour on two cores (ARGS="--data DIR --short")
	$(BIN)/python -m bench.savings $(ARGS)

bench-forecast: $(STAMP) ## Forecasts of measured homes beside persistence and means (ARGS="--data DIR --short")
	$(BIN)/python -m bench.forecast $(ARGS)

bench-plan: $(STAMP) ## Plans of 48 h: model and solve, and as a process of its own (ARGS="--repeats 20 --json")
	$(BIN)/python -m bench.plan $(ARGS)

format: $(STAMP) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove what was built and the demo's output
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
