# Both main commands set themselves up: nothing but Python 3.10 or newer and a package index is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: test check demo bench campaign clean
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(VENV)/.ready
	$(BIN)/spotrun demo

# All figures beside torchrun's, in benchmarks/out/report.html: some 20 minutes on two cores.
bench: $(VENV)/.ready
	$(BIN)/spotrun bench --out benchmarks/out

# Faults without end against real jobs, each checked: make campaign HOURS=2 SEED=7 (what breaks is kept in campaign-out).
HOURS ?= 1
campaign: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fault.campaign --hours $(HOURS) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out campaign-out
